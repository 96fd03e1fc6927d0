"""Stage preferences: the policy's own answers, graded, for the next reward model (docs/decisions.md, 6).

Each answer gets a target by rule, not by R: on seed questions the right answer is known, on kept candidates it is the
filter's opinion (`gold` is false there, and at most 1 - seedFraction of the prompts are such).
"""

from __future__ import annotations

import hashlib
import json
import math
import random
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from medgr2_api.stages.preferences import PreferencesParameters
from medgr2_api.training_spec import AnswerFormat

from ..curate.training_set import Origin, TrainingRow, training_set
from ..engine.opening import opened
from ..engine.sampler import Sampler
from ..errors import DataError
from ..models import checkpoint, vlm
from ..models.generation import Decoding
from ..models.vlm import Encoder, PromptResponse
from ..prompts import answers
from ..prompts.answer_forms import named
from ..runner.context import StageContext, StageOutcome
from ..store import atomic
from ..store.rows import AnsweredQuestion, Split
from ..store.rows.prepared import Grade, Item
from ..store.rows.training import Preference

_BATCH = 128  # samples per batch and part
_HELD_OUT = 8  # every n-th prompt comes from the validation split, for R's promotion gates
_LONGEST = 512  # tokens
_THINK = re.compile(r"<think>(.*?)</think>", re.DOTALL | re.IGNORECASE)


def run(ctx: StageContext[PreferencesParameters]) -> StageOutcome:
    """Samples the policy and publishes table `preferences`.

    Raises:
        DataError: there is no question to ask.
        Checkpointed: asked to stop; finished parts stay.
    """
    parameters = ctx.parameters
    settings = parameters.preferences
    training = training_set(ctx, ctx.request.iteration, parameters.answer_format)
    prompts = choose_prompts(
        training, ctx.input("prepare").rows(Item), settings.prompts, settings.seed_fraction, parameters.seed
    )
    policy = checkpoint.published(ctx, "policy")
    encoder = Encoder(policy.processor(), ctx.images)
    limit = longest_answer(encoder, training)

    rows: list[Preference] = []
    drawn_grades: Counter[Grade] = Counter()
    parts = list(vlm.chunks(prompts, max(1, _BATCH // settings.samples_per_prompt)))
    with opened(ctx, parameters.engine) as engine:
        sampler = engine.sampler(policy)
        for index, part in enumerate(parts):
            ctx.progress("sample", index, len(parts))
            ctx.check_stop(index)
            path = ctx.work / f"part-{index:05d}.json"
            if not path.is_file():
                _sample_part(ctx, path, part, sampler, encoder, limit, index)
            part_rows, grades = json.loads(path.read_text())
            rows += [_loaded(row) for row in part_rows]
            drawn_grades.update({Grade(name): count for name, count in grades.items()})
    ctx.progress("sample", len(parts), len(parts))

    ctx.writer.table(Preference, rows)
    return StageOutcome(counters=_counters(prompts, rows, drawn_grades))


@dataclass(frozen=True)
class Asked:
    """A question that the policy is asked."""

    question: AnsweredQuestion
    split: Split
    """Train or heldout."""
    gold: bool
    """The answer is the seed's."""


def choose_prompts(
    training: Sequence[TrainingRow], items: Sequence[Item], count: int, seed_fraction: float, seed: int
) -> list[Asked]:
    """Draws the questions to ask, gold ones first.

    Args:
        training: D_gen: the seed is gold, kept candidates are not.
        items: prepare's; those of split `validation` make the held-out part, which R is not trained on.
        count: how many prompts in all; fewer when there are not so many questions.
        seed_fraction: least share of gold among those not held out.
        seed: of the draw.

    Raises:
        DataError: there is no question.
    """
    draw = random.Random(seed)

    def some(questions: Sequence[AnsweredQuestion], number: int, split: Split, gold: bool) -> list[Asked]:
        distinct = list({(row.image_sha256, row.question, row.options): row for row in questions}.values())
        return [Asked(row, split, gold) for row in draw.sample(distinct, min(number, len(distinct)))]

    validation = [item for item in items if item.split is Split.VALIDATION]
    seeds = [row for row in training if row.origin is Origin.SEED]
    kept = [row for row in training if row.origin is not Origin.SEED]

    heldout = some(validation, count // _HELD_OUT, Split.HELDOUT, True)
    rest = count - len(heldout)
    gold = some(seeds, max(math.ceil(seed_fraction * rest), rest - len(kept)), Split.TRAIN, True)
    most = rest - len(gold)
    if seed_fraction > 0:  # few seeds: rather fewer prompts than a larger share of the filter's opinion
        most = min(most, math.floor(len(gold) * (1 - seed_fraction) / seed_fraction))
    prompts = [*gold, *some(kept, most, Split.TRAIN, False), *heldout]
    if not prompts:
        raise DataError("no question to ask the policy: the training set has neither seed questions nor candidates")
    return prompts


def longest_answer(encoder: Encoder, training: Sequence[TrainingRow]) -> int:
    """Tokens an answer may have: half as long again as the longest that was taught, and 8; at most 512."""
    texts = [row.response for row in training]
    ids = encoder.tokenizer(texts, add_special_tokens=False)["input_ids"]
    return min(_LONGEST, math.ceil(1.5 * max(map(len, ids))) + 8)


def grade(text: str, options: Sequence[str], answer_index: int, answer_format: AnswerFormat) -> Grade:
    """The grade of an answer.

    original: right and in format. perturbed: right, but not in format, or its rationale speaks for another option.
    incoherent: no answer can be read from it. irrelevant: wrong.
    """
    picked = answers.extract(text, options, answer_format)
    if picked is None:
        return Grade.INCOHERENT
    if picked != answer_index:
        return Grade.IRRELEVANT
    faultless = answers.well_formed(text) and not contradicts(text, options, picked)
    return Grade.ORIGINAL if faultless else Grade.PERTURBED


def contradicts(text: str, options: Sequence[str], picked: int) -> bool:
    """Whether the rationale names another option and not the one that is then answered."""
    findings_named = named(" ".join(_THINK.findall(text)), options)
    return bool(findings_named) and picked not in findings_named


def _sample_part(
    ctx: StageContext[PreferencesParameters],
    path: Path,
    chosen: Sequence[Asked],
    sampler: Sampler,
    encoder: Encoder,
    limit: int,
    index: int,
) -> None:
    """Draws and grades the samples of some prompts; writes the distinct ones, and how many were drawn of each grade."""
    parameters, settings = ctx.parameters, ctx.parameters.preferences
    prompts = [answers.prompt_of(asked.question, parameters.answer_format) for asked in chosen]
    turns = [
        PromptResponse(prompt.image_sha256, prompt.text)
        for prompt in prompts
        for _ in range(settings.samples_per_prompt)
    ]
    decoding = Decoding(settings.temperature, settings.top_p)
    completions = sampler.answers(
        encoder,
        turns,
        max_new_tokens=limit,
        decoding=decoding,
        # its own: a part is the same whether or not the ones before it were drawn in this process
        seed=(parameters.seed + index) % 2**31,
        between=lambda _: ctx.check_stop(index),
    )
    rows: list[Preference] = []
    drawn_grades: Counter[Grade] = Counter()
    each = vlm.chunks(completions, settings.samples_per_prompt)
    for asked, prompt, drawn in zip(chosen, prompts, each, strict=True):
        samples = Counter(drawn)
        for sample, times in samples.items():  # in the order of their first appearance
            rows.append(_row(asked, prompt.prompt_id, sample, parameters))
            drawn_grades[rows[-1].grade] += times
    atomic.write_text(path, json.dumps([[asdict(row) for row in rows], drawn_grades]))


def _row(asked: Asked, prompt_id: str, text: str, parameters: PreferencesParameters) -> Preference:
    question = asked.question
    graded = grade(text, question.options, question.answer_index, parameters.answer_format)
    return Preference(
        sample_id=hashlib.sha256(f"{prompt_id}\n{text}".encode()).hexdigest()[:16],
        prompt_id=prompt_id,
        split=asked.split,
        image_sha256=question.image_sha256,
        modality=question.modality,
        question_type=question.question_type,
        question=question.question,
        options=question.options,
        response=text,
        grade=graded,
        target=getattr(parameters.grades, graded.value),
        gold=asked.gold,
    )


def _loaded(row: dict[str, Any]) -> Preference:
    """A row of a part, from its JSON."""
    return Preference(
        **{**row, "split": Split(row["split"]), "grade": Grade(row["grade"]), "options": tuple(row["options"])}
    )


def _counters(prompts: Sequence[Asked], rows: Sequence[Preference], drawn: Counter[Grade]) -> dict[str, float]:
    """Shares are of all samples drawn, `samples` counts the distinct ones that are published."""
    total = drawn.total()
    return {
        "prompts": len(prompts),
        "prompts_gold": sum(prompt.gold for prompt in prompts),
        "prompts_heldout": sum(prompt.split is Split.HELDOUT for prompt in prompts),
        "samples_drawn": total,
        "samples": len(rows),
        "share_right": round((drawn[Grade.ORIGINAL] + drawn[Grade.PERTURBED]) / total, 6),
        "share_right_and_in_format": round(drawn[Grade.ORIGINAL] / total, 6),
        "share_unparsable": round(drawn[Grade.INCOHERENT] / total, 6),
        "share_wrong": round(drawn[Grade.IRRELEVANT] / total, 6),
    }
