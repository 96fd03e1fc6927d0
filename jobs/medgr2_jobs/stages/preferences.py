"""Stage preferences: the policy's own answers, graded, for the next reward model (docs/decisions.md, 6), in shards.

Each answer gets a target by rule, not by R: on seed questions the right answer is known, on kept candidates it is the
filter's opinion (`gold` is false there, and at most 1 - seedFraction of the prompts are such).
"""

from __future__ import annotations

import hashlib
import math
import random
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from medgr2_api.stages.preferences import PreferencesParameters
from medgr2_api.training_spec import AnswerFormat

from ..curate.training_set import Origin, TrainingRow, training_set
from ..engine.opening import opened
from ..engine.sampler import Between, Sampler
from ..errors import DataError
from ..models import checkpoint, vlm
from ..models.generation import Decoding
from ..models.vlm import Encoder, PromptResponse
from ..prompts import answers
from ..prompts.answer_forms import named
from ..prompts.answers import Prompt
from ..runner.context import StageContext, StageOutcome
from ..runner.parts import Parts
from ..store.rows import AnsweredQuestion, Split
from ..store.rows.prepared import Grade, Item
from ..store.rows.training import Preference

_BATCH = 128  # samples that are drawn together, with a seed of their own
_HELD_OUT = 8  # every n-th prompt comes from the validation split, for R's promotion gates
_LONGEST = 512  # tokens
_THINK = re.compile(r"<think>(.*?)</think>", re.DOTALL | re.IGNORECASE)


def run(ctx: StageContext[PreferencesParameters]) -> StageOutcome:
    """Samples the policy about this shard's prompts and publishes table `preferences`.

    Raises:
        DataError: there is no question to ask.
        Checkpointed: asked to stop; finished parts stay.
    """
    parameters = ctx.parameters
    settings = parameters.preferences
    training = training_set(ctx, ctx.request.iteration, parameters.answer_format)
    chosen = choose_prompts(
        training, ctx.input("prepare").rows(Item), settings.prompts, settings.seed_fraction, parameters.seed
    )
    batches = list(vlm.chunks(chosen, max(1, _BATCH // settings.samples_per_prompt)))
    mine = ctx.request.shard.part_of(len(batches))
    units = batches[mine.start : mine.stop]
    policy = checkpoint.published(ctx, "policy")
    encoder = Encoder(policy.processor(), ctx.images)
    limit = longest_answer(encoder, training)

    parts = Parts(ctx)
    with opened(ctx, parameters.engine) as engine:
        sampler = engine.sampler(policy)
        made = parts.make(
            "samples",
            units,
            lambda some, first: _sample(
                parameters, some, sampler, encoder, limit, mine.start + first, parts.check_stop
            ),
            lambda done: ctx.progress("sample", done, len(units)),
        )

    rows = [_loaded(row) for batch_rows, _ in made for row in batch_rows]
    drawn_grades: Counter[Grade] = Counter()
    for _, grades in made:
        drawn_grades.update({Grade(name): count for name, count in grades.items()})
    ctx.writer.table(Preference, rows)
    return StageOutcome(counters=_counters([asked for unit in units for asked in unit], rows, drawn_grades))


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


def _sample(
    parameters: PreferencesParameters,
    batches: Sequence[Sequence[Asked]],
    sampler: Sampler,
    encoder: Encoder,
    limit: int,
    first: int,
    between: Between,
) -> list[Any]:
    """Draws and grades the samples of consecutive batches, of which the first has this number among all.

    Returns:
        Of each batch the distinct samples, and how many were drawn of each grade.
    """
    settings = parameters.preferences
    prompts = [answers.prompt_of(asked.question, parameters.answer_format) for batch in batches for asked in batch]
    turns = [
        PromptResponse(prompt.image_sha256, prompt.text)
        for prompt in prompts
        for _ in range(settings.samples_per_prompt)
    ]
    completions = sampler.answers(
        encoder,
        turns,
        max_new_tokens=limit,
        decoding=Decoding(settings.temperature, settings.top_p),
        seed=(parameters.seed + first) % 2**31,
        batches=[len(batch) * settings.samples_per_prompt for batch in batches],
        between=between,
    )
    each = zip(prompts, vlm.chunks(completions, settings.samples_per_prompt), strict=True)
    return [_graded(batch, each, parameters) for batch in batches]


def _graded(
    batch: Sequence[Asked], drawn: Iterator[tuple[Prompt, Sequence[str]]], parameters: PreferencesParameters
) -> list[Any]:
    rows: list[Preference] = []
    grades: Counter[Grade] = Counter()
    for asked, (prompt, samples) in zip(batch, drawn, strict=False):
        for sample, times in Counter(samples).items():  # in the order of their first appearance
            rows.append(_row(asked, prompt.prompt_id, sample, parameters))
            grades[rows[-1].grade] += times
    return [[asdict(row) for row in rows], grades]


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
    """Of this shard. Shares are of all samples drawn, `samples` counts the distinct ones that are published."""
    total = drawn.total() or 1
    return {
        "prompts": len(prompts),
        "prompts_gold": sum(prompt.gold for prompt in prompts),
        "prompts_heldout": sum(prompt.split is Split.HELDOUT for prompt in prompts),
        "samples_drawn": drawn.total(),
        "samples": len(rows),
        "share_right": round((drawn[Grade.ORIGINAL] + drawn[Grade.PERTURBED]) / total, 6),
        "share_right_and_in_format": round(drawn[Grade.ORIGINAL] / total, 6),
        "share_unparsable": round(drawn[Grade.INCOHERENT] / total, 6),
        "share_wrong": round(drawn[Grade.IRRELEVANT] / total, 6),
    }
