"""Stage `reward`: R⁽⁰⁾ from D_grade, or R⁽ᵗ⁺¹⁾ from the policy's graded answers (Algorithm 1, line 9)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from medgr2_api.stages.reward import RewardParameters
from medgr2_api.training_spec import AnswerFormat

from ..errors import ConfigError, DataError
from ..models import vlm
from ..reward.metrics import PromotionGate, gate, reward_metrics
from ..reward.model import INFO_FILE, RewardModel
from ..reward.scorer import answer_row, score
from ..reward.train import TrainingExample, fit
from ..runner.context import StageContext, StageOutcome
from ..store import atomic
from ..store.rows import CalibrationRow, GradedRow, Preference, Split

_HEADLINES = ("spearman", "pairwise_accuracy", "auroc", "image_sensitivity", "mae")

G = TypeVar("G", GradedRow, Preference)


def run(ctx: StageContext[RewardParameters]) -> StageOutcome:
    """Trains, imports or retrains R; measures it on held-out rows; decides whether it may replace the old one.

    Reads `prepare` (base model or checkpoint, table `grades`), and for a retraining `reward` and `preferences`.
    Publishes `model/`, `metrics.json`, `gate.json`, table `calibration` (for curation's FittedPrecision) and the
    training log. A model that is not promoted is published too, for inspection.

    Raises:
        DataError: no rows to train on or to measure with.
        ConfigError: a model folder or an option does not fit.
        Checkpointed: asked to stop.
    """
    parameters = ctx.parameters
    grades = ctx.input("prepare").rows(GradedRow)
    heldout = _split(grades, Split.HELDOUT)
    if not heldout:
        raise DataError("table grades has no held-out rows, so a reward model could not be judged; add seed images")
    preferences = ctx.input("preferences").rows(Preference) if parameters.retrain else []

    folder, imported = _start(ctx)
    torch.manual_seed(parameters.seed)
    if imported or parameters.retrain:
        model = RewardModel.load(folder, train=not imported)
        if model.info.head is not parameters.head:
            raise ConfigError(f"rewardModel.head is {parameters.head}, but {folder} was made with {model.info.head}")
    else:
        model = RewardModel.fresh(folder, parameters.head, parameters.grades, base=ctx.input("prepare").digest)
    encoder = vlm.Encoder(vlm.load_processor(folder), ctx.images)
    held = _Heldout(heldout, _split(preferences, Split.HELDOUT))

    before = (
        _measure(ctx, model, encoder, held, "measure old")[0] if parameters.retrain and ctx.process_group.main else None
    )
    log: list[dict[str, float]] = []
    if not imported:
        log = fit(
            ctx,
            model,
            encoder,
            _examples(preferences if parameters.retrain else grades, parameters.answer_format),
            replay=_examples(grades, parameters.answer_format) if parameters.retrain else (),
            replay_fraction=parameters.replay_fraction,
            training=parameters.training,
            retrain=parameters.retrain,
        )
    if not ctx.process_group.main:
        return StageOutcome()
    metrics, scores = _measure(ctx, model, encoder, held, "measure")
    decision = gate(metrics["grades"], before["grades"] if before else None, parameters.promotion)
    _publish(ctx, folder if imported else None, model, encoder)
    _write_json(ctx, "metrics.json", {"new": metrics, "old": before})
    _write_json(ctx, "gate.json", decision.dump())
    _write_json(ctx, "training_log.json", log, digested=False)
    ctx.writer.table(CalibrationRow, [
        CalibrationRow(row.sample_id, row.grade, row.target, value)
        for row, value in zip(heldout, scores.tolist(), strict=True)
    ])  # fmt: skip
    return StageOutcome(
        counters=_counters(metrics, before, decision), promoted=decision.passed if parameters.retrain else None
    )


def _start(ctx: StageContext[RewardParameters]) -> tuple[Path, bool]:
    """The folder to start from, and whether it is a finished R⁽⁰⁾ that the user brought."""
    if ctx.parameters.retrain:
        return ctx.input("reward").folder_of("model"), False
    prepare = ctx.input("prepare")
    if ctx.parameters.checkpoint:
        return prepare.folder_of("models/reward-checkpoint"), True
    return prepare.folder_of("models/reward"), False


@dataclass(frozen=True)
class _Heldout:
    """What R is judged on."""

    grades: Sequence[GradedRow]
    preferences: Sequence[Preference]


def _split(rows: Sequence[G], split: Split) -> list[G]:
    return [row for row in rows if row.split is split]


def _examples(rows: Sequence[GradedRow] | Sequence[Preference], answer_format: AnswerFormat) -> list[TrainingExample]:
    """The rows that R is trained on."""
    return [TrainingExample(answer_row(row, answer_format), row.target) for row in rows if row.split is Split.TRAIN]


def _measure(
    ctx: StageContext[RewardParameters], model: RewardModel, encoder: vlm.Encoder, held: _Heldout, phase: str
) -> tuple[dict[str, dict[str, float]], np.ndarray]:
    """Metrics on each held-out table that has rows, and the scores of the held-out grades."""

    def on_progress(done: int, total: int) -> None:
        ctx.progress(phase, done, total)
        ctx.check_stop()

    def scored(rows: Sequence[GradedRow] | Sequence[Preference]) -> np.ndarray:
        answer_rows = [answer_row(row, ctx.parameters.answer_format) for row in rows]
        return score(model, encoder, answer_rows, on_progress=on_progress)

    scores, good = scored(held.grades), model.info.good
    metrics = {"grades": reward_metrics(held.grades, [row.item_id for row in held.grades], scores, good)}
    if held.preferences:
        prompts = [row.prompt_id for row in held.preferences]
        metrics["preferences"] = reward_metrics(held.preferences, prompts, scored(held.preferences), good)
    return metrics, scores


def _publish(
    ctx: StageContext[RewardParameters], imported: Path | None, model: RewardModel, encoder: vlm.Encoder
) -> None:
    if imported is not None:
        ctx.writer.take("model", imported)
    else:
        model.save(ctx.writer.path(f"model/{INFO_FILE}").parent, encoder.processor)


def _write_json(ctx: StageContext[RewardParameters], name: str, document: Any, *, digested: bool = True) -> None:
    atomic.write_text(ctx.writer.path(name, digested=digested), json.dumps(document, indent=1, sort_keys=True) + "\n")


def _counters(
    metrics: Mapping[str, Mapping[str, float]],
    before: Mapping[str, Mapping[str, float]] | None,
    decision: PromotionGate,
) -> dict[str, float]:
    """Headlines: of the new R on held-out grades, and with a prefix on held-out preferences and of the old R."""
    headlines = {name: value for name, value in metrics["grades"].items() if name in _HEADLINES}
    headlines["gate_passed"] = float(decision.passed)
    for prefix, group in (("preferences", metrics.get("preferences")), ("old", before and before["grades"])):
        headlines |= {f"{prefix}_{name}": value for name, value in (group or {}).items() if name in _HEADLINES}
    return headlines
