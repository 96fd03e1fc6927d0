"""Stage `reward`: R⁽⁰⁾ from D_grade, or R⁽ᵗ⁺¹⁾ from the policy's graded answers (Algorithm 1, line 9)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from medgr2_api.stages.reward import RewardParameters
from medgr2_api.training_spec import AnswerFormat

from ..errors import ConfigError, DataError
from ..models import vlm
from ..prompts import answers
from ..reward.metrics import Gate, gate, reward_metrics
from ..reward.model import INFO_FILE, RewardModel
from ..reward.scorer import score
from ..reward.train import Graded, fit
from ..runner.context import Outcome, StageContext
from ..store import atomic

TRAIN, HELDOUT = "train", "heldout"
_HEADLINES = ("spearman", "pairwise_accuracy", "auroc", "image_sensitivity", "mae")

Rows = Sequence[Mapping[str, Any]]


def run(ctx: StageContext[RewardParameters]) -> Outcome:
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
    grades = ctx.input("prepare").rows("grades")
    heldout = _split(grades, HELDOUT)
    if not heldout:
        raise DataError("table grades has no held-out rows, so a reward model could not be judged; add seed images")
    preferences = ctx.input("preferences").rows("preferences") if parameters.retrain else []

    folder, imported = _start(ctx)
    torch.manual_seed(parameters.seed)
    if imported or parameters.retrain:
        model = RewardModel.load(folder, train=not imported)
        if model.info.head is not parameters.head:
            raise ConfigError(f"rewardModel.head is {parameters.head}, but {folder} was made with {model.info.head}")
    else:
        model = RewardModel.fresh(folder, parameters.head, parameters.grades, base=ctx.input("prepare").digest)
    encoder = vlm.Encoder(vlm.load_processor(folder), ctx.images)
    held = {"grades": heldout, "preferences": _split(preferences, HELDOUT)}

    before = _measure(ctx, model, encoder, held, "measure old")[0] if parameters.retrain and ctx.ranks.main else None
    log: list[dict[str, float]] = []
    if not imported:
        log = fit(
            ctx,
            model,
            encoder,
            _graded(_split(preferences if parameters.retrain else grades, TRAIN), parameters.answer_format),
            replay=_graded(_split(grades, TRAIN), parameters.answer_format) if parameters.retrain else (),
            replay_fraction=parameters.replay_fraction,
            training=parameters.training,
            retrain=parameters.retrain,
        )
    if not ctx.ranks.main:
        return Outcome()
    metrics, scores = _measure(ctx, model, encoder, held, "measure")
    verdict = gate(metrics["grades"], before["grades"] if before else None, parameters.promotion)
    _publish(ctx, folder if imported else None, model, encoder)
    _write_json(ctx, "metrics.json", {"new": metrics, "old": before})
    _write_json(ctx, "gate.json", verdict.dump())
    _write_json(ctx, "training_log.json", log, digested=False)
    ctx.writer.table("calibration", [
        {"sample_id": row["sample_id"], "grade": row["grade"], "target": row["target"], "score": value}
        for row, value in zip(heldout, scores.tolist(), strict=True)
    ])  # fmt: skip
    return Outcome(
        counters=_counters(metrics, before, verdict), promoted=verdict.passed if parameters.retrain else None
    )


def graded_row(row: Mapping[str, Any], answer_format: AnswerFormat) -> vlm.Row:
    """A row of grades, preferences or candidates as R reads it: image, the policy's prompt, the response."""
    return vlm.Row(
        row["image_sha256"], answers.prompt_text(row["question"], row["options"], answer_format), row["response"]
    )


def _start(ctx: StageContext[RewardParameters]) -> tuple[Path, bool]:
    """The folder to start from, and whether it is a finished R⁽⁰⁾ that the user brought."""
    if ctx.parameters.retrain:
        return ctx.input("reward").folder_of("model"), False
    prepare = ctx.input("prepare")
    if ctx.parameters.checkpoint:
        return prepare.folder_of("models/reward-checkpoint"), True
    return prepare.folder_of("models/reward"), False


def _split(rows: Rows, split: str) -> list[Mapping[str, Any]]:
    return [row for row in rows if row["split"] == split]


def _graded(rows: Rows, answer_format: AnswerFormat) -> list[Graded]:
    return [Graded(graded_row(row, answer_format), row["target"]) for row in rows]


def _measure(
    ctx: StageContext[RewardParameters], model: RewardModel, encoder: vlm.Encoder, held: Mapping[str, Rows], phase: str
) -> tuple[dict[str, dict[str, float]], np.ndarray]:
    """Metrics on each held-out table that has rows, and the scores of the held-out grades."""

    def on_progress(done: int, total: int) -> None:
        ctx.progress(phase, done, total)
        ctx.check_stop()

    metrics, scores = {}, {}
    for name, rows in held.items():
        if rows:
            scores[name] = score(
                model, encoder, [graded_row(row, ctx.parameters.answer_format) for row in rows], on_progress=on_progress
            )
            group = "item_id" if name == "grades" else "prompt_id"
            metrics[name] = reward_metrics(rows, scores[name], model.info.good, group=group)
    return metrics, scores["grades"]


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
    metrics: Mapping[str, Mapping[str, float]], before: Mapping[str, Mapping[str, float]] | None, verdict: Gate
) -> dict[str, float]:
    """Headlines: of the new R on held-out grades, and with a prefix on held-out preferences and of the old R."""
    shown = {name: value for name, value in metrics["grades"].items() if name in _HEADLINES}
    shown["gate_passed"] = float(verdict.passed)
    for prefix, found in (("preferences", metrics.get("preferences")), ("old", before and before["grades"])):
        shown |= {f"{prefix}_{name}": value for name, value in (found or {}).items() if name in _HEADLINES}
    return shown
