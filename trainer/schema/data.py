"""Where problems come from, and how a row becomes a prompt. Torch-free."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from trainer.schema.section import Section, knob


class ChainData(Section):
    """Generated arithmetic problems of so many operations; training and evaluation never share one."""

    kind: Literal["chain"] = "chain"
    operations: int = knob(
        5,
        title="Operations",
        unit="per problem",
        description="Length of the chain: how many sums a solution takes. The tiny reasoner knows 3 to 8.",
        ge=1,
        le=12,
    )


class GraphData(Section):
    """Generated problems in which people own things in dependence on each other, told in shuffled order. The
    tiny reasoner has not learnt it; `python -m trainer.warmup --task graph` makes a policy to start from."""

    kind: Literal["graph"] = "graph"
    people: int = knob(
        4,
        title="People",
        unit="per problem",
        description="How many amounts a solution works out.",
        ge=2,
        le=12,
    )


class _RowsData(Section):
    """What sources of rows have in common: columns, templates, the held-out share."""

    question_column: str = knob(
        "question",
        title="Question column",
        description="The problem's text.",
        min_length=1,
        max_length=200,
        advanced=True,
    )
    answer_column: str = knob(
        "answer",
        title="Answer column",
        description="The reference answer, in the form below.",
        min_length=1,
        max_length=200,
        advanced=True,
    )
    answer_form: Literal["gsm8k", "plain"] = knob(
        "gsm8k",
        title="Answer form",
        description="gsm8k: what follows the last `#### ` is the answer, the whole text the worked solution. "
        "plain: the whole text is the answer.",
        advanced=True,
    )
    solution_column: str = knob(
        "",
        title="Solution column",
        description="A worked solution, for objectives that mix an expert in. Empty: none, or that of gsm8k.",
        max_length=200,
        advanced=True,
    )
    template: str = knob(
        "{question}\n",
        title="Prompt template",
        description="What the policy reads; {question} stands for the problem's text.",
        min_length=1,
        max_length=4096,
        advanced=True,
    )
    chat: bool = knob(
        False,
        title="Chat template",
        description="Wrap the prompt as a user's message in the model's own chat template.",
        advanced=True,
    )
    evaluation_share: float = knob(
        0.1,
        title="Evaluation share",
        description="Share of the problems held out for evaluation, chosen by the hash of the question.",
        gt=0,
        lt=1,
        advanced=True,
    )
    max_prompt_tokens: int = knob(
        0,
        title="Longest prompt",
        unit="tokens",
        description="Problems with longer prompts are left out and counted. 0: whatever fits the model.",
        ge=0,
        le=1_000_000,
        advanced=True,
    )

    @model_validator(mode="after")
    def _template_has_its_place(self) -> Self:
        if "{question}" not in self.template:
            raise ValueError("template has no {question} in it, so every prompt would be the same. Add it.")
        return self


class JsonlData(_RowsData):
    """Problems from a local JSONL file, one object per line (GSM8K's form unless columns are named)."""

    kind: Literal["jsonl"] = "jsonl"
    path: str = knob(
        title="File",
        description="A JSONL file; `answer` ends with `#### ` and the reference answer.",
        min_length=1,
        max_length=1024,
    )


class ParquetData(_RowsData):
    """Problems from a local Parquet file, or from all Parquet files of a folder."""

    kind: Literal["parquet"] = "parquet"
    path: str = knob(
        title="File or folder",
        description="A .parquet file, or a folder of them.",
        min_length=1,
        max_length=1024,
    )


class HubData(_RowsData):
    """Problems from a data set by its name, through the `datasets` library."""

    kind: Literal["datasets"] = "datasets"
    name: str = knob(
        title="Data set",
        description="Its name, or a local folder that `datasets` reads.",
        min_length=1,
        max_length=1024,
    )
    subset: str = knob(
        "",
        title="Subset",
        description="Its configuration; empty for the only one.",
        max_length=200,
        advanced=True,
    )
    split: str = knob("train", title="Split", description="Which part.", min_length=1, max_length=200)


Data = Annotated[ChainData | GraphData | JsonlData | ParquetData | HubData, Field(discriminator="kind")]
