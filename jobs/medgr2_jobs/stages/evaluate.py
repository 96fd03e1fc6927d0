"""Stage evaluate: how often each checkpoint is right on validation and on every benchmark, and the controls.

Iteration 0 measures the base model (part `models/policy` of prepare); iteration t the checkpoints of sft t and grpo t,
also of a grpo whose checkpoint does not go on.
Each is measured under each condition with both scorings: `greedy`, what the model writes (an answer that cannot be
parsed is wrong), and `option_logprob`, which offered option it finds likeliest. The greedy pass yields the rationale
that `option_logprob` stands on, so the controls get both scorings as well. `option_prior` and `chance` need no
checkpoint: they are in iteration 0 only, under checkpoint `base`.

Publishes table `predictions` and `results.json`: rows {iteration, checkpoint, split, benchmark, condition, scoring,
slice, metric, value, low, high, n}, low and high null where no interval is computed.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np

from medgr2_api.metrics import MICRO_ACCURACY, counter, deciding
from medgr2_api.stages.evaluate import EvaluateParameters

from ..engine.opening import opened
from ..engine.sampler import Sampler
from ..errors import ConfigError, DataError
from ..evaluate.checkpoint_answers import answer
from ..evaluate.controls import CONDITION_OF, BlankEncoder, OptionPrior, rows
from ..evaluate.metrics import ItemSet, Measurement, QuestionSet, measurements
from ..models import checkpoint, vlm
from ..models.checkpoint import Checkpoint
from ..prompts import answers
from ..runner.context import StageContext, StageOutcome
from ..store import tables
from ..store.rows import Split
from ..store.rows.evaluation import EvalCondition, Prediction, Scoring
from ..store.rows.prepared import Item

_BASE = "base"


def run(ctx: StageContext[EvaluateParameters]) -> StageOutcome:
    """Measures and publishes.

    Raises:
        ConfigError: an iteration after 0 without a checkpoint to measure.
        DataError: prepare made neither validation nor test questions.
        Checkpointed: asked to stop; what is measured so far is kept in `ctx.work`.
    """
    parameters = ctx.parameters
    items = ctx.input("prepare").rows(Item)
    sets = _item_sets(items)
    conditions = [EvalCondition.REAL, *(CONDITION_OF[control] for control in parameters.controls)]
    checkpoints = _checkpoints(ctx)
    model_conditions = [condition for condition in conditions if condition is not EvalCondition.OPTION_PRIOR]
    total = len(checkpoints) * len(model_conditions) * sum(map(len, sets.values()))
    progress = _Progress(ctx, total)

    predictions: dict[QuestionSet, list[Prediction]] = defaultdict(list)
    with opened(ctx, parameters.engine) as engine:
        for name, found in checkpoints.items():
            asked = _Asked(engine.sampler(found), found)
            for questions, in_set in sets.items():
                for condition in model_conditions:
                    part = _Part(name, questions, condition, in_set)
                    path = ctx.work / part.file_name
                    if not path.exists():
                        tables.write(path, Prediction, _measure(ctx, asked, part, progress))
                    predictions[questions] += tables.read(path, Prediction)
                    progress.next(len(in_set))
    if parameters.iteration == 0 and EvalCondition.OPTION_PRIOR in conditions:
        prior = OptionPrior(item for item in items if item.split is Split.TRAIN)
        for questions, in_set in sets.items():
            predictions[questions] += _guess(prior, _Part(_BASE, questions, EvalCondition.OPTION_PRIOR, in_set))

    results: list[Measurement] = []
    for questions, in_set in sets.items():
        results += measurements(
            ItemSet(in_set),
            predictions[questions],
            iteration=parameters.iteration,
            questions=questions,
            seed=parameters.seed,
            chance=parameters.iteration == 0,
        )
    ctx.writer.table(Prediction, [row for questions in sets for row in predictions[questions]])
    document = json.dumps([asdict(row) for row in results], indent=0, allow_nan=False)
    ctx.writer.path("results.json").write_text(document + "\n")
    return StageOutcome(counters=_counters(results))


def _item_sets(items: Sequence[Item]) -> dict[QuestionSet, list[Item]]:
    """Validation's questions first, then each benchmark's in the order of the table."""
    sets: dict[QuestionSet, list[Item]] = {}
    for split in (Split.VALIDATION, Split.TEST):
        for item in items:
            if item.split is split:
                benchmark = (item.benchmark or item.source) if split is Split.TEST else ""
                sets.setdefault(QuestionSet(split, benchmark), []).append(item)
    if not sets:
        raise DataError(
            "nothing to measure on: prepare made neither validation nor test questions; "
            "set data.split.validationFraction above 0 or name a benchmark"
        )
    return sets


@dataclass(frozen=True)
class _Part:
    """What is measured at a time: a checkpoint on a set of questions under one condition."""

    checkpoint: str
    questions: QuestionSet
    condition: EvalCondition
    items: Sequence[Item]

    @property
    def file_name(self) -> str:
        """Of the finished part; the benchmark's name is hashed, for a source may be called anything."""
        mark = hashlib.sha256(self.questions.benchmark.encode()).hexdigest()[:12]
        return f"{self.checkpoint}-{self.questions.split}-{mark}-{self.condition}.parquet"

    def prediction(
        self,
        item: Item,
        scoring: Scoring,
        predicted: int | None,
        *,
        option_logprobs: Sequence[float] = (),
        text: str = "",
    ) -> Prediction:
        """An answer to one of the questions."""
        return Prediction(
            checkpoint=self.checkpoint,
            split=self.questions.split,
            benchmark=self.questions.benchmark,
            item_id=item.item_id,
            image_sha256=item.image_sha256,
            modality=item.modality,
            question_type=item.question_type,
            condition=self.condition,
            scoring=scoring,
            answer_index=item.answer_index,
            predicted=predicted,
            correct=predicted == item.answer_index,
            option_logprobs=tuple(option_logprobs),
            text=text,
        )


def _checkpoints(ctx: StageContext[EvaluateParameters]) -> dict[str, Checkpoint]:
    """Each checkpoint of this iteration."""
    if ctx.parameters.iteration == 0:
        return {_BASE: checkpoint.base(ctx)}
    made = [name for name in ("sft", "grpo") if ctx.has_input(name)]
    # GRPO may have been skipped; a checkpoint that does not go on is measured all the same
    checkpoints = {name: checkpoint.published(ctx, name) for name in made if checkpoint.is_published(ctx.input(name))}
    if not checkpoints:
        raise ConfigError(f"evaluate@{ctx.parameters.iteration}: neither sft nor grpo among the inputs")
    return checkpoints


class _Asked:
    """A checkpoint that is measured; nothing of it is loaded where all parts are there already, after a kill."""

    def __init__(self, sampler: Sampler, found: Checkpoint) -> None:
        self.sampler = sampler
        self._found = found

    @cached_property
    def processor(self) -> Any:
        """Its processor."""
        return self._found.processor()


class _Progress:
    """Counts questions over all parts, and stops between batches when asked to."""

    def __init__(self, ctx: StageContext[EvaluateParameters], total: int) -> None:
        self._ctx, self._total, self._before = ctx, total, 0

    def next(self, count: int) -> None:
        """A part of `count` questions is complete."""
        self._before += count
        self._ctx.progress("measuring", self._before, self._total)

    def within(self, phase: str, share: float) -> None:
        """Inside a part; `share` in questions."""
        self._ctx.check_stop(self._before)
        self._ctx.progress(phase, self._before + int(share), self._total)


def _measure(
    ctx: StageContext[EvaluateParameters], asked: _Asked, part: _Part, progress: _Progress
) -> list[Prediction]:
    """Both scorings; empty when the condition cannot be made here."""
    answer_format = ctx.parameters.answer_format
    prompt_rows = rows(part.condition, part.items, answer_format)
    if prompt_rows is None:
        return []
    ctx.check_stop()
    encoder = (BlankEncoder if part.condition is EvalCondition.BLANK else vlm.Encoder)(asked.processor, ctx.images)
    answered = answer(
        asked.sampler, encoder, prompt_rows, [item.options for item in part.items], answer_format, progress.within
    )
    written = [
        part.prediction(item, Scoring.GREEDY, answers.extract(text, item.options, answer_format), text=text)
        for item, text in zip(part.items, answered.texts, strict=True)
    ]
    likeliest = [
        part.prediction(item, Scoring.OPTION_LOGPROB, int(np.argmax(values)), option_logprobs=values)
        for item, values in zip(part.items, answered.logprobs, strict=True)
    ]
    return written + likeliest


def _guess(prior: OptionPrior, part: _Part) -> list[Prediction]:
    """The option prior's answers."""
    guesses = [(item, *prior.predict(item)) for item in part.items]
    return [
        part.prediction(item, Scoring.OPTION_LOGPROB, best, option_logprobs=scores) for item, best, scores in guesses
    ]


def _headlines() -> list[tuple[str, Split, EvalCondition, str]]:
    """(counter with a gap for the checkpoint, split, condition, metric): few, for a stage's result must stay within
    2 KiB."""
    scores = [(counter(Split.VALIDATION, "{}", metric), Split.VALIDATION, metric.name) for metric in deciding()]
    return [
        *((name, split, EvalCondition.REAL, metric) for name, split, metric in scores),
        (counter(Split.TEST, "{}", MICRO_ACCURACY), Split.TEST, EvalCondition.REAL, MICRO_ACCURACY.name),
        ("test/{}/blankMicroAccuracy", Split.TEST, EvalCondition.BLANK, MICRO_ACCURACY.name),
    ]


def _counters(results: Sequence[Measurement]) -> dict[str, float]:
    """Headline figures, of the likeliest option over all questions; of several benchmarks the mean over all their
    questions."""
    sums: dict[str, tuple[float, int]] = {}
    for template, *headline in _headlines():
        for row in results:
            if row.scoring is not Scoring.OPTION_LOGPROB or row.slice != "all":
                continue
            if [row.split, row.condition, row.metric] == headline:
                value, count = sums.get(name := template.format(row.checkpoint), (0.0, 0))
                sums[name] = value + row.value * row.n, count + row.n
    return {name: round(value / count, 6) for name, (value, count) in sums.items()}
