"""Stage evaluate: how often each checkpoint is right on validation and on every benchmark, and the controls.

Iteration 0 measures the base model (part `models/policy` of prepare); iteration t the checkpoints of sft t and grpo t.
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
from pathlib import Path
from typing import Any

import numpy as np

from medgr2_api.stages.evaluate import EvaluateParameters

from ..errors import ConfigError, DataError
from ..evaluate.controls import CONDITION_OF, BlankEncoder, Condition, Item, OptionPrior, rows
from ..evaluate.metrics import ItemSet, result_rows
from ..evaluate.scoring import answer_context, greedy, option_logprobs
from ..models import vlm
from ..prompts import answers
from ..runner.context import Outcome, StageContext
from ..store import legacy_tables as tables

_BASE = "base"


def run(ctx: StageContext[EvaluateParameters]) -> Outcome:
    """Measures and publishes.

    Raises:
        ConfigError: an iteration after 0 without a checkpoint to measure.
        DataError: prepare made neither validation nor test questions.
        Checkpointed: asked to stop; what is measured so far is kept in `ctx.work`.
    """
    parameters = ctx.parameters
    items = ctx.input("prepare").rows("items")
    sets = _item_sets(items)
    conditions = [Condition.REAL, *(CONDITION_OF[control] for control in parameters.controls)]
    checkpoints = _checkpoints(ctx)
    asked = [condition for condition in conditions if condition is not Condition.OPTION_PRIOR]
    total = len(checkpoints) * len(asked) * sum(map(len, sets.values()))
    progress = _Progress(ctx, total)

    predictions: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for checkpoint, folder in checkpoints.items():
        model = _Lazy(folder)
        for key, questions in sets.items():
            for condition in asked:
                part = ctx.work / _part_name(checkpoint, *key, condition)
                if not part.exists():
                    measured = _measure(ctx, model, condition, questions, progress)
                    tables.write(part, "predictions", _labelled(measured, checkpoint, key, condition))
                predictions[key] += tables.read(part, "predictions").to_pylist()
                progress.next(len(questions))
    if parameters.iteration == 0 and Condition.OPTION_PRIOR in conditions:
        prior = OptionPrior(item for item in items if item["split"] == "train")
        for key, questions in sets.items():
            predictions[key] += _labelled(_guess(prior, questions), _BASE, key, Condition.OPTION_PRIOR)

    results = []
    for (split, benchmark), questions in sets.items():
        head = {"iteration": parameters.iteration, "split": split, "benchmark": benchmark}
        results += result_rows(
            ItemSet(questions), predictions[split, benchmark], head, parameters.seed, chance=parameters.iteration == 0
        )
    ctx.writer.table("predictions", [row for key in sets for row in predictions[key]])
    ctx.writer.path("results.json").write_text(json.dumps(results, indent=0, allow_nan=False) + "\n")
    return Outcome(counters=_counters(results))


def _item_sets(items: Sequence[Item]) -> dict[tuple[str, str], list[Item]]:
    """Questions by (split, benchmark): validation first, then each benchmark in the order of the table."""
    sets: dict[tuple[str, str], list[Item]] = {}
    for split in ("validation", "test"):
        for item in items:
            if item["split"] == split:
                benchmark = (item["benchmark"] or item["source"]) if split == "test" else ""
                sets.setdefault((split, benchmark), []).append(item)
    if not sets:
        raise DataError(
            "nothing to measure on: prepare made neither validation nor test questions; "
            "set data.split.validationFraction above 0 or name a benchmark"
        )
    return sets


def _checkpoints(ctx: StageContext[EvaluateParameters]) -> dict[str, Path]:
    """Folder of each checkpoint of this iteration."""
    if ctx.parameters.iteration == 0:
        return {_BASE: ctx.input("prepare").folder_of("models/policy")}
    found = {name: ctx.input(name).folder_of("model") for name in ("sft", "grpo") if ctx.has_input(name)}
    if not found:
        raise ConfigError(f"evaluate@{ctx.parameters.iteration}: neither sft nor grpo among the inputs")
    return found


class _Lazy:
    """A model folder, loaded when something has to be measured: after a kill all parts may be there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._loaded: tuple[Any, Any] | None = None

    def load(self) -> tuple[Any, Any]:
        """Model and processor."""
        if self._loaded is None:
            self._loaded = vlm.load_model(self.folder), vlm.load_processor(self.folder)
        return self._loaded


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
    ctx: StageContext[EvaluateParameters],
    lazy: _Lazy,
    condition: Condition,
    questions: Sequence[Item],
    progress: _Progress,
) -> list[dict[str, Any]]:
    """Both scorings of one checkpoint under one condition; empty when the condition cannot be made here."""
    answer_format = ctx.parameters.answer_format
    asked = rows(condition, questions, answer_format)
    if asked is None:
        return []
    ctx.check_stop()
    model, processor = lazy.load()
    encoder = (BlankEncoder if condition is Condition.BLANK else vlm.Encoder)(processor, ctx.images)
    options = [item["options"] for item in questions]
    texts = greedy(model, encoder, asked, answer_format, lambda done: progress.within("answering", done / 2))
    scores = option_logprobs(
        model,
        encoder,
        asked,
        [answer_context(text) for text in texts],
        options,
        answer_format,
        lambda done: progress.within("scoring", len(questions) / 2),
    )
    written = [
        _prediction(item, "greedy", answers.extract(text, item["options"]), text=text)
        for item, text in zip(questions, texts, strict=True)
    ]
    likeliest = [
        _prediction(item, "option_logprob", int(np.argmax(values)), option_logprobs=values)
        for item, values in zip(questions, scores, strict=True)
    ]
    return written + likeliest


def _guess(prior: OptionPrior, questions: Sequence[Item]) -> list[dict[str, Any]]:
    """The option prior's answers."""
    found = [(item, *prior.predict(item)) for item in questions]
    return [_prediction(item, "option_logprob", best, option_logprobs=scores) for item, best, scores in found]


def _prediction(item: Item, scoring: str, predicted: int | None, **rest: Any) -> dict[str, Any]:
    """A row of table `predictions`, less what `_labelled` adds."""
    return {
        **{name: item[name] for name in ("item_id", "image_sha256", "modality", "question_type", "answer_index")},
        "scoring": scoring,
        "predicted": predicted,
        "correct": predicted == item["answer_index"],
        "option_logprobs": [],
        "text": "",
        **rest,
    }


def _labelled(
    predictions: Sequence[dict[str, Any]], checkpoint: str, key: tuple[str, str], condition: Condition
) -> list[dict[str, Any]]:
    head = {"checkpoint": checkpoint, "split": key[0], "benchmark": key[1], "condition": str(condition)}
    return [{**head, **row} for row in predictions]


def _part_name(checkpoint: str, split: str, benchmark: str, condition: Condition) -> str:
    """File of a finished part; the benchmark's name is hashed, for a source may be called anything."""
    mark = hashlib.sha256(benchmark.encode()).hexdigest()[:12]
    return f"{checkpoint}-{split}-{mark}-{condition}.parquet"


#: Counter → (split, condition, metric); option_logprob, slice all. Few: a stage's result must stay within 2 KiB.
_COUNTERS = {
    "validation/{}/macroAccuracy": ("validation", "real", "macroAccuracy"),
    "validation/{}/microAccuracy": ("validation", "real", "microAccuracy"),
    "test/{}/microAccuracy": ("test", "real", "microAccuracy"),
    "test/{}/blankMicroAccuracy": ("test", "blank", "microAccuracy"),
}


def _counters(results: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Headline figures; of several benchmarks the mean over all their questions."""
    sums: dict[str, tuple[float, int]] = {}
    for template, wanted in _COUNTERS.items():
        for row in results:
            if row["scoring"] != "option_logprob" or row["slice"] != "all":
                continue
            if (row["split"], row["condition"], row["metric"]) == wanted:
                value, count = sums.get(name := template.format(row["checkpoint"]), (0.0, 0))
                sums[name] = value + row["value"] * row["n"], count + row["n"]
    return {name: round(value / count, 6) for name, (value, count) in sums.items()}
