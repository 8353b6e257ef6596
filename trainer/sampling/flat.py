"""Flat samples: independent answers to one prompt (GRPO and its relatives), and two things that can be made
of them. Torch-free.

Merged (step-grpo): the answers are cut behind every token with a line break, and equal beginnings become one
node, so that equal states can be compared. A node is a distinct prefix; a leaf counts in `copies` how many
answers ended in just it. All answers are sampled, so a merged tree holds fewer tokens than were sampled.

Budgets (HBPO, arXiv:2507.15844): the answers fall into equal subgroups, one per budget; between prompt and
answers of subgroup i stands a sentence that announces budget i. The sentences are nodes of depth one, given,
not sampled; `subgroup` numbers the budgets from 0.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from trainer.sampling.growth import END, PROMPT, Ground, Keep, Orders, Request, Segment, Strand, tree_of
from trainer.schema.sampler import FlatSampler
from trainer.seeding import ROOT_PATH, child_path
from trainer.tree import FinishReason, RolloutTree


class FlatGrowth:
    """`growth.Growth` of independent answers."""

    def __init__(self, ground: Ground, sampler: FlatSampler) -> None:
        self._ground, self._sampler = ground, sampler
        self._answers: dict[int, Segment] = {}
        self._given: dict[int, Segment] = {}
        self._budget_of: dict[int, int] = {}
        self.total, self.done = sampler.group_size + len(sampler.budgets), 0

    def begin(self) -> Orders:
        budgets = self._sampler.budgets
        if not budgets:
            answers = range(1, self._sampler.group_size + 1)
            return Orders([self._answer(n, PROMPT, child_path(ROOT_PATH, n - 1)) for n in answers], (PROMPT,))
        requests = []
        for number, budget in enumerate(budgets):
            sentence = self._sampler.budget_sentence.replace("{budget}", str(budget))
            tokens = tuple(self._ground.vocabulary.encode(sentence))
            requests.append(
                Request(
                    chain=number + 1, most_tokens=len(tokens), forced=tokens, keep=Keep.END, is_given=True
                )
            )
        return Orders(requests, (PROMPT,))

    def take(self, segments: Sequence[Segment]) -> Orders:
        budgets = len(self._sampler.budgets)
        requests: list[Request] = []
        release = []
        for segment in segments:
            self.done += 1
            if segment.chain > budgets:
                self._answers[segment.chain] = segment
                continue
            self._given[segment.chain] = segment
            size = self._sampler.group_size // budgets
            first = budgets + 1 + size * (segment.chain - 1)
            path = child_path(ROOT_PATH, segment.chain - 1)
            for number in range(size):
                self._budget_of[first + number] = segment.chain
                requests.append(self._answer(first + number, segment.chain, child_path(path, number)))
            release.append(segment.chain)
        return Orders(requests, release)

    def _answer(self, chain: int, parent: int, path: int) -> Request:
        return Request(chain=chain, parent=parent, most_tokens=self._sampler.max_tokens, path=path)

    def tree(self) -> RolloutTree:
        if self._sampler.merge == "newline":
            return tree_of(self._ground, self._merged())
        strands = {}
        for chain, given in self._given.items():
            nothing = np.zeros(len(given.tokens), np.float32)
            strands[chain] = given._replace(
                logprobs=nothing, entropies=nothing, alternatives=None, kept=None
            ).strand(PROMPT, FinishReason.GIVEN, subgroup=chain - 1)
        for chain, answer in self._answers.items():
            parent = self._budget_of.get(chain, PROMPT)
            strands[chain] = answer.strand(parent, subgroup=max(parent - 1, 0))
        return tree_of(self._ground, strands)

    def _merged(self) -> dict[int, Strand]:
        """One strand per distinct prefix that ends behind a line break or with an answer.

        No answer ends where another goes on: it would hold an end token, or all the tokens it may.
        """
        strands: dict[int, Strand] = {}
        names: dict[tuple[int, bytes], int] = {}
        newlines = self._ground.vocabulary.newline_tokens
        for _, answer in sorted(self._answers.items()):
            count, parent, first = len(answer.tokens), PROMPT, 0
            for last in (*(np.flatnonzero(newlines[answer.tokens[:-1]]) + 1).tolist(), count):
                piece = answer.tokens[first:last]
                key = (parent, piece.tobytes())
                is_leaf = last == count
                if key not in names:
                    names[key] = len(names) + 1
                    strands[names[key]] = Strand(
                        parent,
                        END,
                        piece,
                        answer.logprobs[first:last],
                        answer.entropies[first:last],
                        answer.finish if is_leaf else FinishReason.SPLIT,
                        alternatives=None
                        if answer.alternatives is None
                        else answer.alternatives.cut(first, last),
                        kept=None if answer.kept is None else answer.kept.between(first, last),
                    )
                elif is_leaf:
                    found = strands[names[key]]
                    strands[names[key]] = found._replace(copies=found.copies + 1)
                parent, first = names[key], last
        return strands
