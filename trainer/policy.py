"""The policy: a causal language model of transformers and its tokenizer, loaded from a folder.

It turns prompts into ids and gives the logprobs of sampled tokens with gradient. It samples nothing
(`trainer.sampling`). Weights come from safetensors only: nothing is ever unpickled, and no code of a model
folder is run.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from hashlib import file_digest, sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint
from transformers import AutoModelForCausalLM, AutoTokenizer

from trainer.attention import layout_of, use_path_attention
from trainer.detokenizer import SegmentDecoder
from trainer.packing import FlatBatch, PackedBatch
from trainer.ranks import ALONE, Ranks
from trainer.sampling.decoder import UnsupportedModelError, refuse_unsupported
from trainer.seeding import generator
from trainer.sharding import Shards, whole

if TYPE_CHECKING:
    from trainer.parallel import Group

TINY_REASONER = "tiny-reasoner"
_ASSETS = Path(__file__).parent / "assets"
LOGITS_AT_ONCE = 1 << 26  # numbers, so 256 MB
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl")
_READ = (".json", ".safetensors", ".txt", ".model", ".jinja")  # what loading a folder may read


@dataclass(frozen=True, slots=True, eq=False)
class Outputs:
    """Of a micro-batch: logprobs [M] and entropies [M] of its loss tokens, nats, float32; values [Q] in
    [0, 1].
    None where they were not asked for.
    """

    logprobs: Tensor
    entropies: Tensor | None
    values: Tensor | None


def at_least_float32(values: Tensor) -> Tensor:
    """Half precision widened; float32 and float64 as they are."""
    return values.float() if values.dtype in (torch.bfloat16, torch.float16) else values


class ModelError(ValueError):
    """A model folder cannot be used; the message says why and what to do."""


class Policy:
    """Model and tokenizer. `end_ids`: tokens that end an answer; `newline_tokens` [V]: tokens whose text has
    a line break. `ranks`: who computes with it together (`shard`).
    """

    ranks: Ranks = ALONE
    _shards: Shards | None = None

    def __init__(self, model: Any, tokenizer: Any, end_ids: frozenset[int]) -> None:
        """A causal model and a fast tokenizer of transformers; Any because they are typed only in part."""
        self.model = model
        use_path_attention(model)
        self.tokenizer = tokenizer
        self.end_ids = end_ids
        self.decoder = SegmentDecoder(tokenizer, end_ids)
        vocabulary: int = self.model.config.vocab_size
        self.newline_tokens: NDArray[np.bool_] = self.decoder.newline_tokens(vocabulary)
        self.value_head: nn.Linear | None = None
        self.adapter: Any = None  # peft's model around `model`, when only an adapter is trained
        self.is_half = False  # autocast to bfloat16 in training
        self._buffers: dict[str, Tensor] = {}  # of a sharded model
        self._before: list[int] = []
        self._after: list[int] = []

    @property
    def device(self) -> torch.device:
        device: torch.device = next(self.model.parameters()).device
        return device

    def encode(self, prompt: str) -> list[int]:
        """Ids of a prompt, at least one. Text that looks like a special token is text. After
        `use_chat_template` the prompt stands in it as the user's message.
        """
        own = not self._before  # a chat template brings its own beginning
        ids: list[int] = self.tokenizer(prompt, split_special_tokens=True, add_special_tokens=own)[
            "input_ids"
        ]
        ids = [*self._before, *ids, *self._after]
        return ids or [next(iter(sorted(self.end_ids)))]

    def encode_text(self, text: str) -> list[int]:
        """Ids of a text, as it is: nothing before or after it."""
        ids: list[int] = self.tokenizer(text, split_special_tokens=True, add_special_tokens=False)[
            "input_ids"
        ]
        return ids

    def add_adapter(self, rank: int, alpha: int, seed: int) -> None:
        """From now on only low-rank updates of the linear layers are trained (LoRA, arXiv:2106.09685, by
        peft).

        `named_parameters` are the adapter's, drawn from `seed`; the base weights stay as they are.
        """
        from peft import LoraConfig, get_peft_model

        linear = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
        config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=0.0, target_modules=linear, bias="none")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.adapter = get_peft_model(self.model, config)

    @property
    def is_sharded(self) -> bool:
        return self._shards is not None

    def shard(self, group: Group) -> None:
        """From now on each rank holds a slice of every weight, the value head's included. What reads weights
        is collective then: `outputs`, `logprobs`, `merged`, `plain_weights`, `is_finite`, `weights_sha256`.
        """
        named = dict(self.model.named_parameters(remove_duplicate=False))
        # Later `state_dict` would split what is gathered.
        self._buffers = {name: own for name, own in self.model.state_dict().items() if name not in named}
        parts: dict[str, nn.Module] = {"model": self.model}
        if self.value_head is not None:
            parts["value_head"] = self.value_head
        self._shards = Shards(self.model, parts, group.mesh)
        self.ranks = group

    @contextmanager
    def merged(self) -> Iterator[Any]:
        """The model with its adapter added to the weights: what samples, and what a checkpoint holds. `Any`:
        a model of transformers. Of a sharded one every weight is whole inside, and gone after.
        """
        with nullcontext() if self._shards is None else self._shards.gathered(), self._with_adapter():
            yield self.model

    @contextmanager
    def _with_adapter(self) -> Iterator[None]:
        if self.adapter is None:
            yield
            return
        adapted = [module.base_layer for module in self.model.modules() if hasattr(module, "lora_A")]
        # What is gathered is given up afterwards, and the slices stay as they are.
        before = [] if self.is_sharded else [layer.weight.detach().clone() for layer in adapted]
        self.adapter.merge_adapter()
        try:
            yield
        finally:
            self.adapter.unmerge_adapter()
            with torch.no_grad():  # taking off what was added rounds; the base weights must not wander
                for layer, weight in zip(adapted, before, strict=not self.is_sharded):
                    layer.weight.copy_(weight)

    def plain_weights(self) -> dict[str, Tensor]:
        """Weights by the names that the base model gives them; inside `merged` with the adapter in them."""
        if self._shards is not None:
            named = dict(self.model.named_parameters(remove_duplicate=False))
            each = {id(parameter): whole(parameter.detach()) for parameter in named.values()}
            everything = self._buffers | {name: each[id(own)] for name, own in named.items()}
        else:
            everything = self.model.state_dict()
        return {
            name.replace(".base_layer.", "."): own for name, own in everything.items() if ".lora_" not in name
        }

    def use_gradient_checkpointing(self) -> None:
        """Less memory for about a third more work: activations are computed again in the backward pass."""
        self.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        self.model.train()  # transformers checkpoints in training mode alone; there is no dropout to turn on
        for module in self.model.modules():
            if isinstance(module, nn.Dropout) or getattr(module, "attention_dropout", False):
                raise ModelError(
                    "Gradient checkpointing would turn this model's dropout on. Set its dropout to 0."
                )

    def use_chat_template(self) -> None:
        """From now on prompts are user's messages in the tokenizer's own chat template.

        The template is applied to a stand-in and cut there, so that no prompt can hold one of the
        template's special tokens. Raises ModelError when there is no template, or when it does not leave a
        message as it is.
        """
        if not getattr(self.tokenizer, "chat_template", None):
            raise ModelError(
                "data.chat needs a chat template, and this model's tokenizer has none. Set data.chat off."
            )
        stand_in = "arborist-stands-for-a-message"
        text: str = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": stand_in}], tokenize=False, add_generation_prompt=True
        )
        before, found, after = text.partition(stand_in)
        if not found or stand_in in after:
            raise ModelError(
                "This model's chat template does not hold a message just as it is. Set data.chat off."
            )
        self._before = self.tokenizer(before, add_special_tokens=False)["input_ids"]
        self._after = self.tokenizer(after, add_special_tokens=False)["input_ids"]

    @property
    def positions(self) -> int:
        """Tokens that the model can look at: of a prompt and its answer."""
        found: int = self.model.config.max_position_embeddings
        return found

    def parameter_count(self) -> int:
        return sum(parameter.numel() for parameter in self.named_parameters().values())

    def named_parameters(self) -> dict[str, nn.Parameter]:
        """Trainable parameters by name, each tied weight once; those of the value head as `value_head.…`."""
        named: dict[str, nn.Parameter] = {
            name: own
            for name, own in self.model.named_parameters()
            if self.adapter is None or own.requires_grad
        }
        if self.value_head is not None:
            named |= {f"value_head.{name}": own for name, own in self.value_head.named_parameters()}
        return named

    def is_finite(self) -> bool:
        """Whether no weight is NaN or infinite."""
        return all(bool(torch.isfinite(whole(own)).all()) for own in self.named_parameters().values())

    def weights_sha256(self) -> str:
        """Hash of all parameters: names, shapes, dtypes and bytes, in the order of names."""
        hashed = sha256()
        for name, parameter in sorted(self.named_parameters().items()):
            values = whole(parameter.detach()).cpu().contiguous()
            hashed.update(f"{name} {tuple(values.shape)} {values.dtype}\n".encode())
            hashed.update(
                values.view(torch.uint8).numpy().tobytes() if values.dim() else values.numpy().tobytes()
            )
        return hashed.hexdigest()

    def logprobs(self, tokens: Tensor, rows: Tensor, columns: Tensor, temperature: float) -> Tensor:
        """Logprobs of chosen tokens given all before them in their row, the plain way: what other ways of
        computing them are compared with.

        tokens [B, T] int64, padded on the right (causal attention never sees the padding); rows, columns [M]
        int64 name the chosen tokens, columns >= 1. Returns [M] under softmax(logits / temperature).
        """
        if self._shards is not None:
            return self._shards.run(lambda: self._plain_logprobs(tokens, rows, columns, temperature))
        return self._plain_logprobs(tokens, rows, columns, temperature)

    def _plain_logprobs(self, tokens: Tensor, rows: Tensor, columns: Tensor, temperature: float) -> Tensor:
        hidden: Tensor = self.model.model(input_ids=tokens, use_cache=False).last_hidden_state  # [B, T, H]
        logits = at_least_float32(self.model.lm_head(hidden[rows, columns - 1])) / temperature  # [M, V]
        chosen = logits.gather(1, tokens[rows, columns][:, None])[:, 0]  # [M]
        return chosen - logits.logsumexp(-1)

    def add_value_head(self, seed: int) -> None:
        """A head that reads a value in [0, 1] off a hidden state: sigmoid(w h + b), at .5 everywhere to begin
        with. Nothing happens if there is one.
        """
        if self.value_head is None:
            head = nn.Linear(self.model.config.hidden_size, 1)
            drawn = generator(seed, "value head").random(head.in_features, dtype=np.float32)
            with torch.no_grad():
                head.weight.copy_(torch.from_numpy((drawn - 0.5) * 1e-3)[None])
                head.bias.zero_()
            self.value_head = head.to(self.device)

    def outputs(
        self, batch: PackedBatch | FlatBatch, temperature: float, *, entropy: bool = False
    ) -> Outputs:
        """What the losses of a micro-batch need, with gradient, under softmax(logits / temperature), the
        distribution that is sampled from; of a token that was drawn from a part of it (`LossTokens.kept`),
        under that part scaled up to 1, which does not move with the policy (the sampling mask of
        DeepSeek-V3.2). Logits are made for the places with a loss only, and once for tokens that follow the
        same place.
        """

        def computed() -> tuple[Tensor, Tensor | None, Tensor | None]:
            return self._outputs(batch, temperature, entropy=entropy)

        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.is_half):
            return Outputs(*(computed() if self._shards is None else self._shards.run(computed)))

    def _outputs(
        self, batch: PackedBatch | FlatBatch, temperature: float, *, entropy: bool
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Logprobs, entropies and values."""
        device = self.device
        if isinstance(batch, FlatBatch):
            tokens = torch.from_numpy(batch.tokens).to(
                device
            )  # [B, T]; causal attention never sees the padding
            hidden = self.model.model(input_ids=tokens, use_cache=False).last_hidden_state  # [B, T, H]
            width = tokens.shape[1]
            hidden = hidden.reshape(-1, hidden.shape[-1])  # [B * T, H]
            source = batch.row * width + batch.column - 1
            target = batch.row * width + batch.column
            values_at = batch.value_row * width + batch.value_column
            tokens = tokens.reshape(-1)
        else:
            tokens = torch.from_numpy(batch.tokens).to(device)  # [U]
            layout = layout_of(batch.runs, device)
            hidden = self.model.model(
                input_ids=tokens[None],
                position_ids=torch.from_numpy(batch.positions).to(device)[None],
                use_cache=False,
                path_layout=layout,
            ).last_hidden_state[0]  # [U, H]
            source, target, values_at = batch.source, batch.target, batch.values_at
        kept = None if batch.loss.kept is None else torch.from_numpy(batch.loss.kept).to(device)
        places, back = np.unique(source, return_inverse=True)
        chosen = tokens[torch.from_numpy(target).to(device)]  # [M]
        logprobs, entropies = self._logprobs(
            hidden.index_select(0, torch.from_numpy(places).to(device)),
            torch.from_numpy(back.reshape(-1)).to(device),
            chosen,
            kept,
            temperature,
            entropy=entropy,
        )
        values = None
        # A head that one rank leaves out would be missing in the sum of all ranks' gradients.
        if self.value_head is not None and (len(values_at) or self._shards is not None):
            read = hidden.index_select(0, torch.from_numpy(values_at).to(device))
            values = torch.sigmoid(at_least_float32(self.value_head(read))[:, 0])
        return logprobs, entropies, values

    def _logprobs(
        self,
        hidden: Tensor,
        of: Tensor,
        chosen: Tensor,
        kept: Tensor | None,
        temperature: float,
        *,
        entropy: bool,
    ) -> tuple[Tensor, Tensor | None]:
        """[M] logprobs of tokens `chosen` [M] after places `of` [M, into the rows of hidden [S, H]], and the
        entropies there if asked; `kept` [M, K] as in `LossTokens`. Logits of many places times a large
        vocabulary are made in parts and made again on the way back: they would be the largest array of all.
        """

        def part(hidden: Tensor, of: Tensor, chosen: Tensor, kept: Tensor | None) -> tuple[Tensor, Tensor]:
            logits = at_least_float32(self.model.lm_head(hidden))
            if temperature != 1:
                logits = logits / temperature  # [S, V]
            if kept is not None:
                return _of_kept(logits, of, chosen, kept)
            if not entropy:
                logprobs: Tensor = ChosenLogprobs.apply(logits, of, chosen)  # type: ignore[no-untyped-call]  # torch's
                return logprobs, logprobs
            log_p = logits.log_softmax(-1)
            return log_p[of, chosen], -(log_p.exp() * log_p).sum(-1)[of]

        rows = max(1, LOGITS_AT_ONCE // self.model.config.vocab_size)
        if len(hidden) <= rows:
            logprobs, entropies = part(hidden, of, chosen, kept)
            return logprobs, entropies if entropy else None
        found, spread, order = [], [], []
        for start in range(0, len(hidden), rows):
            here = torch.nonzero((of >= start) & (of < start + rows))[:, 0]
            one, other = checkpoint(
                part,
                hidden[start : start + rows],
                of[here] - start,
                chosen[here],
                None if kept is None else kept[here],
                use_reentrant=False,
            )
            found.append(one)
            spread.append(other)
            order.append(here)
        back = torch.cat(order).argsort()
        return torch.cat(found)[back], torch.cat(spread)[back] if entropy else None


def _of_kept(logits: Tensor, of: Tensor, chosen: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
    """[M] logprobs and entropies, each token's of the part `kept` [M, K] of its distribution; of all of it
    where that is -1 from the start. logits [S, V].
    """
    is_kept = kept >= 0
    is_cut = is_kept.any(-1)
    part = logits[of[:, None], kept.clamp(min=0)].masked_fill(~is_kept, torch.finfo(logits.dtype).min / 2)
    log_part = part.log_softmax(-1)
    logprobs = logits[of, chosen] - part.logsumexp(-1)
    entropies = -(log_part.exp() * log_part).sum(-1)
    if not bool(is_cut.all()):  # the whole distribution costs several times the memory
        log_p = logits.log_softmax(-1)
        logprobs = torch.where(is_cut, logprobs, log_p[of, chosen])
        entropies = torch.where(is_cut, entropies, -(log_p.exp() * log_p).sum(-1)[of])
    return logprobs, entropies


class ChosenLogprobs(torch.autograd.Function):
    """log softmax(logits)[of, chosen]: logits [S, V], of and chosen [M], result [M].

    As torch's own operations one by one, with one [S, V] array on the way back instead of four.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, of: Tensor, chosen: Tensor) -> Tensor:  # `Any`: torch's context
        total = logits.logsumexp(-1)
        ctx.save_for_backward(logits, total, of, chosen)
        return logits[of, chosen] - total[of]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        logits, total, of, chosen = ctx.saved_tensors
        each = gradient.new_zeros(len(total)).index_add_(0, of, gradient)  # [S]
        found = (logits - total[:, None]).exp_().mul_(-each[:, None])
        found.index_put_((of, chosen), gradient, accumulate=True)
        return found, None, None


def resolve_model(path: str) -> Path:
    """The folder of a model: the packaged `tiny-reasoner`, or a path."""
    return _ASSETS / TINY_REASONER if path == TINY_REASONER else Path(path)


def model_sha256(path: str | Path) -> str:
    """The revision of a model folder: SHA-256 over the names and bytes of the files that loading reads.
    Raises ModelError when it is gone.
    """
    folder = resolve_model(str(path))
    hashed = sha256()
    try:
        for file in sorted(entry for entry in folder.iterdir() if entry.suffix in _READ and entry.is_file()):
            with file.open("rb") as stream:
                hashed.update(f"{file.name} {file_digest(stream, 'sha256').hexdigest()}\n".encode())
    except OSError as error:
        raise ModelError(f"The model in {folder} cannot be read: {error.strerror or error}.") from error
    return hashed.hexdigest()


def load_policy(path: str | Path, device: torch.device | str = "cpu") -> Policy:
    """Load a folder with config.json, tokenizer and safetensors weights, in float32. Raises ModelError."""
    folder = resolve_model(str(path))
    config = _refuse_unsafe(folder)
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, use_fast=True
        )
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            dtype=torch.float32,
            output_loading_info=True,
        )
        model, loading = loaded
    except (
        Exception
    ) as error:  # transformers raises whatever its parsers raise; each means: this folder is no model
        raise ModelError(f"The model in {folder} did not load: {_why(folder, error)}") from error
    try:
        refuse_unsupported(model.config)
    except UnsupportedModelError as error:
        raise ModelError(f"The model in {folder} cannot be used: {error}") from error
    if missing := sorted(loading["missing_keys"]):  # transformers would make them up
        raise ModelError(
            f"The model in {folder} is not whole: no weights for {missing[0]}"
            + (f" and {len(missing) - 1} more." if missing[1:] else ".")
        )
    if not getattr(tokenizer, "is_fast", False):
        raise ModelError(
            f"The model in {folder} has no tokenizer.json. Save its tokenizer in the fast format."
        )
    if (largest := _largest_id(tokenizer)) >= model.config.vocab_size:
        raise ModelError(
            f"The tokenizer in {folder} has ids up to {largest}, and the model knows those below "
            f"{model.config.vocab_size}: it is another model's. Put the files of one model together."
        )
    model.to(device)
    model.eval()  # no dropout: the sampling policy and the trained policy are one function
    return Policy(model, tokenizer, _end_ids(folder, config, model, tokenizer))


def _largest_id(tokenizer: Any) -> int:
    """Of the tokens that a text may have: special ones, as some models have beyond their embedding, it has
    not.
    """
    special = {number for number, own in tokenizer.added_tokens_decoder.items() if own.special}
    return max((number for number in tokenizer.get_vocab().values() if number not in special), default=0)


def _why(folder: Path, error: Exception) -> str:
    """The error of a library as a sentence, with the file that it is about where that can be found."""
    if not isinstance(error, SafetensorError):
        return f"{type(error).__name__}: {_first_line(error)}"
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, framework="pt"):
                pass
        except SafetensorError as found:
            return f"{path.name} {damaged(found)}"
        except OSError:
            continue
    return f"a file of its weights {damaged(error)}"


def damaged(error: SafetensorError) -> str:
    """What a safetensors file is that cannot be read, as the end of a sentence about it."""
    detail = _first_line(error).removeprefix("Error while deserializing header: ").rstrip(".")
    return f"is cut off, empty or damaged ({detail})"


def load_reference(path: str | Path, device: torch.device | str = "cpu") -> Policy:
    """The same as `load_policy`, frozen: what a KL term and preference pairs compare with."""
    reference = load_policy(path, device)
    reference.model.requires_grad_(False)  # torch's own signature
    return reference


def _refuse_unsafe(folder: Path) -> dict[str, Any]:
    """The parsed config.json. Raises ModelError before anything else of the folder is opened."""
    if not folder.is_dir():
        raise ModelError(
            f"The model did not load: there is no folder {folder}. Give a folder or `{TINY_REASONER}`."
        )
    try:
        config = json.loads((folder / "config.json").read_bytes())
    except FileNotFoundError:
        raise ModelError(f"{folder} is no model folder: it has no config.json.") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{folder / 'config.json'} cannot be read: {_first_line(error)}") from error
    if not isinstance(config, dict):
        raise ModelError(f"{folder / 'config.json'} is not a JSON object.")
    if _asks_for_code(config) or any(folder.glob("modeling_*.py")):
        raise ModelError(
            f"The model in {folder} needs code of its own, which is never run. Use a model that transformers "
            f"knows."
        )
    _refuse_paths_outside(folder)
    if not any(folder.glob("*.safetensors")):
        pickles = sorted(file.name for pattern in _PICKLES for file in folder.glob(pattern))
        if pickles:
            raise ModelError(
                f"The model in {folder} has pickled weights ({pickles[0]}), which are never loaded because "
                "a pickle can run code. Convert them to safetensors."
            )
        raise ModelError(f"The model in {folder} has no weights: no *.safetensors file.")
    return config


def _asks_for_code(config: Any) -> bool:
    """Whether a config, at any depth, names code to import (`auto_map`) or an attention kernel that is not
    one of transformers' own (`_attn_implementation: owner/kernel` would be fetched and run)."""
    if isinstance(config, list):
        return any(map(_asks_for_code, config))
    if not isinstance(config, dict):
        return False
    kernels = [value for key, value in config.items() if key.endswith("_implementation")]
    known = (None, "eager", "sdpa", "flash_attention_2", "flex_attention")
    return (
        "auto_map" in config
        or any(k not in known for k in kernels)
        or any(map(_asks_for_code, config.values()))
    )


def _refuse_paths_outside(folder: Path) -> None:
    """Raise ModelError when a weight index names a shard by anything but a plain file name.
    (Links are allowed: the cache of a model hub is made of them.)"""
    for index in folder.glob("*.index.json"):
        try:
            shards = {str(shard) for shard in json.loads(index.read_bytes())["weight_map"].values()}
        except (OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
            raise ModelError(f"{index} cannot be read as a weight index: {_first_line(error)}") from error
        for shard in sorted(shards):
            if shard in ("", ".", "..") or "/" in shard or "\\" in shard:
                raise ModelError(
                    f"{index} names {shard!r}, which lies outside its folder. Put all shards beside "
                    "the index."
                )


def _end_ids(folder: Path, config: dict[str, Any], model: Any, tokenizer: Any) -> frozenset[int]:
    ends: set[int] = set()
    for source in (config.get("eos_token_id"), model.generation_config.eos_token_id, tokenizer.eos_token_id):
        ends.update(source if isinstance(source, list) else [] if source is None else [source])
    if not ends:
        raise ModelError(f"The model in {folder} has no end token. Set eos_token_id in its config.json.")
    return frozenset(ends)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or ["no message"])[0][:500]
