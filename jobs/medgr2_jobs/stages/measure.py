"""Stage measure: from what an iteration's checkpoints answered to how often they are right. Needs no torch.

Publishes table `predictions`, all shards and checkpoints in one order, and `results.json`: rows {iteration, checkpoint,
split, benchmark, condition, scoring, slice, metric, value, low, high, n}, low and high null where no interval is
computed. `chance` needs no checkpoint: it is in iteration 0 only, under checkpoint `base`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict

from medgr2_api.metrics import MICRO_ACCURACY, counter, deciding
from medgr2_api.stages import EVALUATE, EVALUATE_GRPO, GRPO
from medgr2_api.stages.measure import MeasureParameters

from ..errors import ConfigError
from ..evaluate.metrics import ItemSet, Measurement, QuestionSet, measurements
from ..evaluate.question_sets import question_sets
from ..runner.context import StageContext, StageOutcome
from ..store.rows import Split
from ..store.rows.evaluation import EvalCondition, Prediction, Scoring
from ..store.rows.prepared import Item


def run(ctx: StageContext[MeasureParameters]) -> StageOutcome:
    """Measures and publishes.

    Raises:
        ConfigError: nobody was asked.
        DataError: prepare made neither validation nor test questions.
    """
    parameters = ctx.parameters
    sets = question_sets(ctx.input("prepare").rows(Item))
    predictions = _in_order(list(sets), _predictions(ctx))
    results: list[Measurement] = []
    for questions, items in sets.items():
        ctx.check_stop()
        results += measurements(
            ItemSet(items),
            [row for row in predictions if (row.split, row.benchmark) == (questions.split, questions.benchmark)],
            iteration=parameters.iteration,
            questions=questions,
            seed=parameters.seed,
            chance=parameters.iteration == 0,
        )
    ctx.writer.table(Prediction, predictions)
    document = json.dumps([asdict(row) for row in results], indent=0, allow_nan=False)
    ctx.writer.path("results.json").write_text(document + "\n")
    return StageOutcome(counters=_counters(results))


def _predictions(ctx: StageContext[MeasureParameters]) -> list[Prediction]:
    # versions before 3 of evaluate asked GRPO's checkpoint, too
    found = [row for row in ctx.input(EVALUATE.name).rows(Prediction) if row.checkpoint != GRPO.name]
    if ctx.has_input(EVALUATE_GRPO.name):
        found += ctx.input(EVALUATE_GRPO.name).rows(Prediction)
    if not found:
        raise ConfigError(f"measure@{ctx.parameters.iteration}: no checkpoint has answered anything")
    return found


def _in_order(sets: Sequence[QuestionSet], predictions: Sequence[Prediction]) -> list[Prediction]:
    """As one process that asks all would have written them, in however many shards they were made."""
    checkpoints, conditions = (
        list(dict.fromkeys(getattr(row, name) for row in predictions)) for name in ("checkpoint", "condition")
    )

    def place(row: Prediction) -> tuple[int, int, int, bool]:
        return (
            sets.index(QuestionSet(row.split, row.benchmark)),
            checkpoints.index(row.checkpoint),
            conditions.index(row.condition),
            row.scoring is Scoring.OPTION_LOGPROB,
        )

    return sorted(predictions, key=place)


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
