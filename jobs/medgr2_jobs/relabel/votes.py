"""What the policy says to a question: how often each option, and why."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from medgr2_api.training_spec import AnswerFormat

from ..data import graded_dataset, paraphrase
from ..prompts import answers
from ..prompts.answer_forms import named
from ..store.rows.candidates import Triplet

_THINK = re.compile(r"<think>(.*?)</think>", re.DOTALL | re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Votes:
    """The policy's answers to one question."""

    shares: tuple[float, ...]
    """Share of its readable answers that pick each option; zeros: none can be read."""
    rationales: tuple[str, ...]
    """Its commonest rationale for each option; empty: none that speaks for it."""

    @property
    def silent(self) -> bool:
        """No answer can be read."""
        return not any(self.shares)

    @property
    def pick(self) -> int:
        """The option that it picks most often, of equals the first."""
        return self.shares.index(max(self.shares))


def votes(samples: Sequence[str], options: Sequence[str], answer_format: AnswerFormat) -> Votes:
    """Counts a question's sampled answers. A rationale that names another option than its answer is none for it."""
    picked: Counter[int] = Counter()
    texts: list[Counter[str]] = [Counter() for _ in options]
    for sample in samples:
        index = answers.extract(sample, options, answer_format)
        if index is None:
            continue
        picked[index] += 1
        rationale = " ".join(_THINK.findall(sample)).strip()
        speaks_for = named(rationale, options)
        if rationale and answers.well_formed(sample) and (not speaks_for or index in speaks_for):
            texts[index][rationale] += 1
    total = picked.total() or 1
    return Votes(
        tuple(picked[index] / total for index in range(len(options))),
        tuple(count.most_common(1)[0][0] if count else "" for count in texts),
    )


def spoken(triplet: Triplet, said: Votes) -> tuple[int, str]:
    """The answer, with a rationale for it, that the texts for all options are made of: the policy's commonest, or the
    generator's where the policy says nothing that can be read."""
    if not said.silent and said.rationales[said.pick]:
        return said.pick, said.rationales[said.pick]
    return triplet.answer_index, triplet.rationale


def rationale_for(triplet: Triplet, said: Votes, answer_index: int, *, kept: bool) -> str:
    """A rationale for the settled answer.

    The generator's own where it was kept with that answer, for R found it good; else the policy's for that answer, or
    for its commonest one with the option exchanged; else a sentence that says no more than the answer.
    """
    if kept and answer_index == triplet.answer_index:
        return triplet.rationale
    if said.rationales[answer_index]:
        return said.rationales[answer_index]
    options = triplet.options
    index, rationale = spoken(triplet, said)
    exchanged = paraphrase.swap(rationale, options[index], options[answer_index])
    return exchanged if exchanged is not None else graded_dataset.neutral(options[answer_index])
