"""A generator made of code, for phantoms only: it knows the truth, and errs in a known way.

By value, its errors are those of a model with wrong beliefs, not noise: a value is taken for its neighbour in the list
of values, with a rationale to match. `blindSpots` are values that it never gets right, so that no filter can keep a
right answer about them. Beside these: answers whose rationale is about something else, or has lost words. Uniform
errors are as many of each kind, and tell nothing: the hard case for whoever learns which answers to believe.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

from medgr2_api.generator import ResolvedScripted, ScriptedErrors
from medgr2_api.training_spec import AnswerFormat

from ..data import paraphrase, synthetic_images
from ..data.synthetic_images import Attributes
from ..prompts import answers

#: Kinds of candidate, table `truth`.
GOOD, HALLUCINATED, IRRELEVANT, INCOHERENT = "good", "hallucinated", "irrelevant", "incoherent"
#: Error rate of the values that the script does not confuse systematically.
_LOW_RATE = 0.1
#: How often a right rationale comes in other words.
_PARAPHRASED = 0.15


def rng_for(seed: int, image_sha256: str, kind: str) -> random.Random:
    """The randomness of one candidate: the same whatever was generated before it."""
    return random.Random(f"scripted/{seed}/{image_sha256}/{kind}")


def is_blind(kind: str, value: str, share: float) -> bool:
    """Whether the script never gets this value right: `share` of the values, evenly spread, the first one included.

    A share of 1/n makes every n-th value blind.
    """
    index = synthetic_images.VALUES[kind].index(value)
    if share <= 0:
        return False
    return index == 0 or math.floor(index * share + 1e-9) > math.floor((index - 1) * share + 1e-9)


def error_shares(kind: str, value: str, scripted: ResolvedScripted) -> tuple[float, float, float]:
    """How often a question of this kind about this value is hallucinated, at most irrelevant, at most incoherent.

    Cumulative: each includes those before it, what is missing to 1 is good. Uniform errors have the mean over the
    kind's values, so that a type of question has as many errors of each kind either way.
    """
    if scripted.errors is ScriptedErrors.UNIFORM:
        of_values = [_shares_by_value(kind, each, scripted) for each in synthetic_images.VALUES[kind]]
        hallucinated, irrelevant, incoherent = (sum(shares) / len(of_values) for shares in zip(*of_values, strict=True))
        return hallucinated, irrelevant, incoherent
    return _shares_by_value(kind, value, scripted)


def _shares_by_value(kind: str, value: str, scripted: ResolvedScripted) -> tuple[float, float, float]:
    blind = is_blind(kind, value, scripted.blind_spots)
    confused = synthetic_images.VALUES[kind].index(value) % 2 == 0
    hallucinated = scripted.error_rate if confused else min(scripted.error_rate, _LOW_RATE)
    if blind:
        hallucinated = max(0.0, 1 - scripted.irrelevant_rate - scripted.incoherent_rate)
    irrelevant = hallucinated + scripted.irrelevant_rate
    incoherent = irrelevant + scripted.incoherent_rate
    if blind:
        whole = min(1.0, incoherent)  # never good, also when the rates do not add up to 1
        return hallucinated / whole, irrelevant / whole, incoherent / whole
    return hallucinated, min(1.0, irrelevant), min(1.0, incoherent)


@dataclass(frozen=True)
class Proposal:
    """A candidate triplet, and what the script knows of it."""

    question: str
    options: tuple[str, ...]
    answer_index: int
    rationale: str
    response: str
    kind: str
    """Kind of candidate, in table `truth`."""
    correct: bool


def propose(
    attributes: Attributes,
    kind: str,
    rng: random.Random,
    scripted: ResolvedScripted,
    answer_format: AnswerFormat,
) -> Proposal:
    """One candidate triplet.

    Args:
        attributes: what the phantom shows.
        kind: question kind, one of `phantoms.KINDS`.
        rng: see `rng_for`.
        scripted: rates.
        answer_format: how the response is written.

    Raises:
        ValueError: `kind` is none of the phantoms' kinds.
    """
    if kind not in synthetic_images.VALUES:
        raise ValueError(
            f"question type {kind!r}: the scripted generator asks for {', '.join(synthetic_images.KINDS)} only"
        )
    question = synthetic_images.question(attributes, kind, rng)
    truth = attributes.value(kind)
    gold = question.answer_index
    wrong = [index for index in range(len(question.options)) if index != gold]
    hallucinated, irrelevant, incoherent = error_shares(kind, truth, scripted)
    draw = rng.random()

    if draw < hallucinated:
        candidate_kind = HALLUCINATED
        by_value = scripted.errors is ScriptedErrors.BY_VALUE
        index = _neighbour(kind, truth, question.options, wrong, rng) if by_value else rng.choice(wrong)
        text = synthetic_images.rationale(kind, question.options[index])
    elif draw < irrelevant:
        candidate_kind, index = IRRELEVANT, rng.choice(wrong)
        other = rng.choice([name for name in synthetic_images.KINDS if name != kind])
        text = synthetic_images.rationale(other, rng.choice(synthetic_images.VALUES[other]))
    elif draw < incoherent:
        candidate_kind, index = INCOHERENT, rng.choice(wrong)
        text = paraphrase.drop_phrases(synthetic_images.rationale(kind, question.options[index]), rng)
    else:
        candidate_kind, index = GOOD, gold
        text = synthetic_images.rationale(kind, truth, paraphrased=rng.random() < _PARAPHRASED)
    response = answers.response(text, index, question.options, answer_format)
    return Proposal(question.text, question.options, index, text, response, candidate_kind, index == gold)


def _neighbour(kind: str, truth: str, options: tuple[str, ...], wrong: list[int], rng: random.Random) -> int:
    """The option the script believes in: the next value in the list, or any wrong one when that is not offered."""
    values = synthetic_images.VALUES[kind]
    believed = values[(values.index(truth) + 1) % len(values)]
    return options.index(believed) if believed in options else rng.choice(wrong)
