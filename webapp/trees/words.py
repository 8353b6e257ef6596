"""What the trainer's states of a node read as. One list for pages, outline and canvas."""

from __future__ import annotations

from collections.abc import Mapping

from trainer.tree import CreditState, FinishReason

# In place of an advantage. Every state has its own word: "no credit" has many reasons, and none of them is 0.
CREDIT_WORDS: Mapping[CreditState, str] = {
    CreditState.NONE: "",
    CreditState.CREDITED: "",
    CreditState.DROPPED_BY_FILTER: "no credit: filtered out",
    CreditState.ONLY_CHILD: "no credit: nothing to compare",
    CreditState.NO_REWARD: "no credit: no reward",
    CreditState.PER_PATH: "per answer",
    CreditState.NOT_SELECTED: "no credit: not chosen",
    CreditState.GIVEN: "given",
    CreditState.NO_ADVANTAGE: "no advantage",
}

FINISH_WORDS: Mapping[FinishReason, str] = {
    FinishReason.NONE: "",
    FinishReason.EOS: "ended by the policy",
    FinishReason.SPLIT: "ended by the split rule",
    FinishReason.LENGTH: "ended by its length limit",
    FinishReason.GIVEN: "given, not sampled",
    FinishReason.FORK: "cut where another answer forks off",
    FinishReason.REPETITION: "ended because it repeated itself",
    FinishReason.PRUNED: "given up before its end",
}

# The choices above a tree, each in its order. Scripts take them from the page; the words of colours stand in
# their legend too (`signals.js`).
COLOUR_WORDS: Mapping[str, str] = {
    "advantage": "advantage",
    "value": "value",
    "change": "value \N{MINUS SIGN} parent",
    "verdict": "verdict",
    "entropy": "entropy",
    "logprob": "mean logprob",
    "mismatch": "mismatch",
    "tokens": "tokens",
    "difference": "estimator difference",
    "none": "none",
}
WIDTH_WORDS: Mapping[str, str] = {
    "leaves": "leaves",
    "tokens": "tokens",
    "equal": "equal per child",
    "loss": "weight in the loss",
}
ORDER_WORDS: Mapping[str, str] = {"sampling": "as sampled", "value": "by value"}
# Of advantages. `run`: where the run's own limit is known.
SCALE_WORDS: Mapping[str, str] = {
    "run": "this run",
    "tree": "this tree",
    "fixed": "fixed \N{PLUS-MINUS SIGN}2",
    "symlog": "symlog",
}
