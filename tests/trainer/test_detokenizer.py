from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from trainer.detokenizer import SegmentDecoder
from trainer.policy import Policy


def byte_fallback_tokenizer() -> Any:
    """As Llama 2's: words with ▁ for a blank, and one token per byte for the rest."""
    vocabulary = {"<s>": 0, "</s>": 1, "<unk>": 2}
    vocabulary |= {f"<0x{byte:02X}>": 3 + byte for byte in range(256)}
    vocabulary |= {"▁the": 259, "▁": 260, "cat": 261, "é": 262}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>", byte_fallback=True))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in ("<s>", "</s>", "<unk>")])
    fast: Any = PreTrainedTokenizerFast
    return fast(tokenizer_object=tokenizer, eos_token="</s>", clean_up_tokenization_spaces=False)


@st.composite
def id_trees(draw: st.DrawFn, ids: st.SearchStrategy[int]) -> tuple[list[int], list[list[int]]]:
    n = draw(st.integers(1, 8))
    parents = sorted(draw(st.integers(0, i)) for i in range(n))
    parents = [min(p, i) for i, p in enumerate(parents)]
    segments = draw(st.lists(st.lists(ids, min_size=0, max_size=4), min_size=n, max_size=n))
    return [-1, *parents], [[], *segments]


def assert_texts_join(
    decoder: SegmentDecoder, tokenizer: Any, parent: list[int], segments: list[list[int]]
) -> None:
    texts = decoder.texts(parent, segments)
    assert texts[0] == ""
    leaves = set(range(1, len(parent))) - set(parent)
    for leaf in leaves:
        path, node = [], leaf
        while node:
            path.append(node)
            node = parent[node]
        ids = [t for n in path[::-1] for t in segments[n]]
        whole = (
            tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
            if ids
            else ""
        )
        assert "".join(texts[n] for n in path[::-1]) == whole


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tree=id_trees(st.integers(1, 401)))
def test_byte_level_texts_join_to_the_decoded_path(
    tiny_reasoner: Policy, tree: tuple[list[int], list[list[int]]]
) -> None:
    tokenizer = tiny_reasoner.tokenizer
    assert_texts_join(SegmentDecoder(tokenizer, frozenset([0])), tokenizer, *tree)


FALLBACK = byte_fallback_tokenizer()


@given(
    tree=id_trees(st.sampled_from([259, 260, 261, 262, 0, *(3 + b for b in "aé€😀\n".encode()), 3 + 0xFF]))
)
def test_byte_fallback_texts_join_to_the_decoded_path(tree: tuple[list[int], list[list[int]]]) -> None:
    assert_texts_join(SegmentDecoder(FALLBACK, frozenset([1])), FALLBACK, *tree)


def test_a_split_character_goes_to_the_segment_that_completes_it(tiny_reasoner: Policy) -> None:
    decoder = SegmentDecoder(tiny_reasoner.tokenizer, tiny_reasoner.end_ids)
    euro = tiny_reasoner.encode("€")
    assert len(euro) == 3
    # root -> "a" and two of the three bytes -> the third byte and "b"; or an end, where the rest is shown as
    # broken.
    a, b = tiny_reasoner.encode("a"), tiny_reasoner.encode("b")
    segments = [[], a + euro[:2], euro[2:] + b, sorted(tiny_reasoner.end_ids)]
    assert decoder.texts([-1, 0, 1, 1], segments) == ["", "a", "€b", "\ufffd"]


def test_both_ways_of_decoding_agree(tiny_reasoner: Policy) -> None:
    fast = SegmentDecoder(tiny_reasoner.tokenizer, tiny_reasoner.end_ids)
    slow = SegmentDecoder(tiny_reasoner.tokenizer, tiny_reasoner.end_ids)
    slow._bytes = None
    for text in ("45+26=71 books.\n", "naïve €5 😀\n\n", "\x00\x7f tab\t"):
        ids = tiny_reasoner.encode(text)
        for cut in range(len(ids) + 1):
            parent, segments = [-1, 0, 1], [[], ids[:cut], ids[cut:]]
            assert fast.texts(parent, segments) == slow.texts(parent, segments)
    assert (fast.newline_tokens(420) == slow.newline_tokens(420)).all()


def test_end_tokens_leave_no_text_and_other_special_tokens_do(tiny_reasoner: Policy) -> None:
    (end,) = tiny_reasoner.end_ids
    pad = tiny_reasoner.tokenizer.pad_token_id
    decoder = SegmentDecoder(tiny_reasoner.tokenizer, tiny_reasoner.end_ids)
    assert decoder.texts([-1, 0], [[], [pad, end]]) == ["", tiny_reasoner.tokenizer.pad_token]


@pytest.mark.parametrize(("tokenizer", "text"), [(FALLBACK, "<0x0A>"), (None, "Ċ")])
def test_newline_tokens_are_those_whose_text_has_a_line_break(
    tokenizer: Any, text: str, tiny_reasoner: Policy
) -> None:
    tokenizer = tokenizer or tiny_reasoner.tokenizer
    mask = SegmentDecoder(tokenizer, frozenset()).newline_tokens(len(tokenizer) + 5)
    assert len(mask) == len(tokenizer) + 5
    assert mask.nonzero()[0].tolist() == [tokenizer.get_vocab()[text]]
