from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from trainer.policy import ModelError, Policy, load_policy


def change_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


# ---- folders that are refused


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"there is no folder .*/nowhere"):
        load_policy(tmp_path / "nowhere")


def test_folder_without_config(model_folder: Path) -> None:
    (model_folder / "config.json").unlink()
    with pytest.raises(ModelError, match=r"has no config\.json"):
        load_policy(model_folder)


@pytest.mark.parametrize("content", ["{", "[1]", "\xff", "[" * 100_000])
def test_unreadable_config(model_folder: Path, content: str) -> None:
    (model_folder / "config.json").write_text(content, encoding="latin-1")
    with pytest.raises(ModelError, match=r"config\.json"):
        load_policy(model_folder)


def test_folder_without_weights(model_folder: Path) -> None:
    (model_folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"has no weights"):
        load_policy(model_folder)


class Bomb:
    def __reduce__(self) -> Any:
        return Path.touch, (Path(__file__).with_name("exploded"),)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.pth"])
def test_pickled_weights_are_never_loaded(model_folder: Path, name: str) -> None:
    (model_folder / "model.safetensors").unlink()
    (model_folder / name).write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(ModelError, match=r"pickled weights .* Convert them to safetensors"):
        load_policy(model_folder)
    assert not Path(__file__).with_name("exploded").exists()


def test_pickles_beside_safetensors_are_ignored(model_folder: Path) -> None:
    (model_folder / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb()))
    load_policy(model_folder)
    assert not Path(__file__).with_name("exploded").exists()


def test_custom_code_is_never_run(model_folder: Path) -> None:
    change_config(model_folder, auto_map={"AutoModelForCausalLM": "modeling_x.X"})
    with pytest.raises(ModelError, match=r"code of its own, which is never run"):
        load_policy(model_folder)


@pytest.mark.parametrize(
    "changes",
    [
        {"_attn_implementation": "somebody/kernel"},
        {"attn_implementation": "somebody/kernel"},
        {"text_config": {"auto_map": {"AutoModel": "modeling_x.X"}}},
        {"layers": [{"auto_map": {}}]},
    ],
)
def test_code_that_is_asked_for_in_other_words_is_never_run(
    model_folder: Path, changes: dict[str, Any]
) -> None:
    change_config(model_folder, **changes)
    with pytest.raises(ModelError, match=r"code of its own, which is never run"):
        load_policy(model_folder)


@pytest.mark.parametrize("shard", ["../outside.safetensors", "/etc/shadow", "sub/x.safetensors", ".."])
def test_a_weight_index_that_leads_out_of_the_folder_is_refused(model_folder: Path, shard: str) -> None:
    (model_folder / "model.safetensors").rename(model_folder.parent / "outside.safetensors")
    (model_folder / "decoy.safetensors").write_bytes(b"")
    (model_folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": shard}}))
    with pytest.raises(ModelError, match=r"lies outside its folder"):
        load_policy(model_folder)


def test_a_weight_index_that_is_none_is_refused(model_folder: Path) -> None:
    (model_folder / "model.safetensors.index.json").write_text('{"weight_map": 3}')
    with pytest.raises(ModelError, match=r"cannot be read as a weight index"):
        load_policy(model_folder)


def test_damaged_weights(model_folder: Path) -> None:
    weights = model_folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ModelError, match=r"did not load: model.safetensors is cut off, empty or damaged"):
        load_policy(model_folder)


def test_folder_without_tokenizer(model_folder: Path) -> None:
    for file in model_folder.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(ModelError, match=r"did not load|tokenizer"):
        load_policy(model_folder)


def test_weights_of_another_shape(model_folder: Path) -> None:
    change_config(model_folder, hidden_size=120)
    with pytest.raises(ModelError, match=r"did not load|cannot be used"):
        load_policy(model_folder)


def test_another_model_s_tokenizer(model_folder: Path, random_model: Callable[..., Any]) -> None:
    random_model("llama", 60).save_pretrained(model_folder)
    change_config(model_folder, eos_token_id=2)
    with pytest.raises(ModelError, match=r"ids up to 399, and the model knows those below 60: it is another"):
        load_policy(model_folder)


def test_missing_tensors_are_not_made_up(model_folder: Path) -> None:
    change_config(model_folder, num_hidden_layers=4)
    with pytest.raises(ModelError, match=r"no weights for model.layers.3"):
        load_policy(model_folder)


def test_unsupported_architecture(tmp_path: Path, model_folder: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    model: Any = GPT2LMHeadModel
    model(GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=409)).save_pretrained(model_folder)
    with pytest.raises(ModelError, match=r"Model type 'gpt2' is not supported"):
        load_policy(model_folder)


def test_model_without_end_token(model_folder: Path) -> None:
    change_config(model_folder, eos_token_id=None)
    (model_folder / "generation_config.json").unlink()
    path = model_folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token": None}))
    with pytest.raises(ModelError, match=r"no end token"):
        load_policy(model_folder)


# ---- a policy that is loaded


def test_packaged_model_loads_by_name(tiny_reasoner: Policy) -> None:
    assert 300_000 < tiny_reasoner.parameter_count() < 400_000
    assert not tiny_reasoner.model.training
    assert {p.dtype for p in tiny_reasoner.model.parameters()} == {torch.float32}
    assert tiny_reasoner.newline_tokens.sum() == 1


def test_text_that_looks_like_a_special_token_is_text(tiny_reasoner: Policy) -> None:
    ids = tiny_reasoner.encode("<|end|> and <|pad|>")
    assert not tiny_reasoner.end_ids.intersection(ids)
    assert tiny_reasoner.tokenizer.decode(ids) == "<|end|> and <|pad|>"


def test_an_empty_prompt_still_has_a_token(tiny_reasoner: Policy) -> None:
    assert len(tiny_reasoner.encode("")) == 1


def test_logprobs_are_those_of_the_rows_alone(
    random_model: Callable[..., Any], tiny_reasoner: Policy
) -> None:
    policy = Policy(random_model("qwen2", 409), tiny_reasoner.tokenizer, tiny_reasoner.end_ids)
    rows = [[5, 6, 7, 8, 9, 10], [11, 12, 13]]
    tokens = torch.tensor([row + [0] * (6 - len(row)) for row in rows])
    at = [(0, 1), (0, 5), (1, 2)]
    got = policy.logprobs(tokens, torch.tensor([r for r, _ in at]), torch.tensor([c for _, c in at]), 0.7)
    expected = []
    for r, c in at:
        logits = policy.model(input_ids=torch.tensor([rows[r]])).logits[0, c - 1] / 0.7
        expected.append(float(logits.log_softmax(-1)[rows[r][c]].detach()))
    assert got.tolist() == pytest.approx(expected, abs=1e-4)
    assert got.requires_grad


def test_weights_hash_sees_every_bit(random_model: Callable[..., Any], tiny_reasoner: Policy) -> None:
    policy = Policy(random_model("qwen3", 409), tiny_reasoner.tokenizer, tiny_reasoner.end_ids)
    before = policy.weights_sha256()
    assert before == policy.weights_sha256()
    with torch.no_grad():
        last = list(policy.model.parameters())[-1]
        last.view(-1)[0] = torch.nextafter(last.view(-1)[0], torch.tensor(9.0))
    assert policy.weights_sha256() != before
