"""Stage `reward`: R⁽⁰⁾ from D_grade; R⁽ᵗ⁺¹⁾ from the settled questions of all iterations so far, or from the policy's
graded answers (Algorithm 1, line 9)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from medgr2_api.reward_model import RetrainOn
from medgr2_api.stages.reward import RewardParameters
from medgr2_api.training_spec import AnswerFormat, InitFrom

from ..curate.settled import asked_questions, settled_questions
from ..data import wordnet
from ..data.graded_dataset import rationale_for
from ..errors import ConfigError, DataError
from ..models import vlm
from ..reward.lessons import Lessons, against_reward, graded
from ..reward.metrics import reward_metrics
from ..reward.model import INFO_FILE, RewardModel
from ..reward.option_scores import option_scores
from ..reward.promotion import PromotionGate, gate
from ..reward.scorer import answer_row, score
from ..reward.train import TrainingExample, fit
from ..reward.validation_answers import ValidationAnswers
from ..runner.context import StageContext, StageOutcome
from ..store import atomic
from ..store.rows import Split
from ..store.rows.prepared import GradedRow, Item
from ..store.rows.training import CalibrationRow, Preference, RewardAnswer

#: Figures that become counters.
_HEADLINES = (
    "spearman", "pairwise_accuracy", "auroc", "image_sensitivity", "mae", "answer_auroc", "answer_accuracy",
)  # fmt: skip


def run(ctx: StageContext[RewardParameters]) -> StageOutcome:
    """Trains, imports or retrains R; measures it on held-out rows and validation questions; decides whether it may
    replace the one in force.

    Reads `prepare` (base model or checkpoint, tables `grades` and `items`), and for a retraining `reward` and either
    `generate-t` with `relabel-t` or `preferences`. Publishes `model/`, `metrics.json`, `gate.json`, the tables
    `calibration` (for curation's FittedPrecision) and `answers`, and the training log. A model that is not promoted is
    published too, for inspection; where there is nothing to learn from, that is the one in force.

    Raises:
        DataError: no rows to train on or to measure with.
        ConfigError: a model folder or an option does not fit.
        Checkpointed: asked to stop.
    """
    parameters = ctx.parameters
    grades = ctx.input("prepare").rows(GradedRow)
    heldout = [row for row in grades if _held(row)]
    if not heldout:
        raise DataError("table grades has no held-out rows, so a reward model could not be judged; add seed images")
    lessons = _lessons(ctx) if parameters.retrain else Lessons(grades)
    questions = [item for item in ctx.input("prepare").rows(Item) if item.split is Split.VALIDATION]
    held = _Heldout(heldout, [row for row in lessons.rows if isinstance(row, Preference) and _held(row)], questions)
    examples = _examples(lessons.rows, parameters.answer_format)

    before = _measure_in_force(ctx, held) if parameters.retrain and ctx.process_group.main else None
    folder, finished = _start(ctx, nothing_new=parameters.retrain and not examples)
    torch.manual_seed(parameters.seed)
    model = _model(ctx, folder, finished=finished)
    encoder = vlm.Encoder(vlm.load_processor(folder), ctx.images)
    log: list[dict[str, float]] = []
    if not finished:
        log = fit(
            ctx,
            model,
            encoder,
            examples,
            replay=_examples(grades, parameters.answer_format) if parameters.retrain else (),
            replay_fraction=parameters.replay_fraction,
            training=parameters.training,
            retrain=parameters.retrain,
        )
    if not ctx.process_group.main:
        return StageOutcome()
    after = _measure(ctx, model, encoder, held, "measure")
    gains = after.answers.gain_over(before.answers) if before else None
    decision = gate(after.metrics["grades"], parameters.promotion, after.metrics["answers"], gains)
    if parameters.retrain and finished:
        decision = replace(decision, passed=False, reason="there was nothing to retrain on: no question is settled")
    _publish(ctx, folder if finished else None, model, encoder)
    _write_json(ctx, "metrics.json", {"new": after.metrics, "old": before.metrics if before else None})
    _write_json(ctx, "gate.json", decision.dump())
    _write_json(ctx, "training_log.json", log, digested=False)
    ctx.writer.table(CalibrationRow, [
        CalibrationRow(row.sample_id, row.grade, row.target, value)
        for row, value in zip(heldout, after.grades.tolist(), strict=True)
    ])  # fmt: skip
    ctx.writer.table(RewardAnswer, after.rows)
    return StageOutcome(
        counters=_counters(after, before, decision) | lessons.counters,
        promoted=decision.passed if parameters.retrain else None,
    )


def _lessons(ctx: StageContext[RewardParameters]) -> Lessons:
    """What a retraining learns from, beside D_grade."""
    parameters, iteration = ctx.parameters, ctx.request.iteration
    if parameters.retrain_on is RetrainOn.POLICY_ANSWERS:
        return Lessons(ctx.input("preferences").rows(Preference))
    settled = settled_questions(ctx, iteration)
    rows = graded(
        settled,
        grades=parameters.grades,
        mismatches=parameters.mismatches_per_item or 0,
        answer_format=parameters.answer_format,
        seed=parameters.seed,
        lexicon=_lexicon(ctx),
    )
    against = sum(against_reward([*asked_questions(ctx, t).values()]) for t in range(1, iteration + 1))
    counters = {"settled": len(settled), "settled_against_reward": against, "settled_rows": len(rows)}
    return Lessons(rows, {name: float(value) for name, value in counters.items()})


def _lexicon(ctx: StageContext[RewardParameters]) -> wordnet.Lexicon | None:
    """WordNet, where D_grade was made with it: the settled questions come in the same words."""
    if not ctx.input("prepare").manifest.counters.get("wordnet"):
        return None
    lexicon = wordnet.find(ctx.root / "cache" / "wordnet")
    if lexicon is None:
        raise ConfigError(
            "D_grade was made with WordNet (counter `wordnet` of stage prepare), which is not on this machine: put it "
            "where prepare found it (docs/grades.md), or run prepare again (`--restart-from prepare@0`)"
        )
    return lexicon


def _start(ctx: StageContext[RewardParameters], *, nothing_new: bool) -> tuple[Path, bool]:
    """The folder to start from, and whether it is finished: the user's own R⁽⁰⁾, or the R in force where a retraining
    has nothing to learn from."""
    if nothing_new or ctx.parameters.retrain_from is InitFrom.PREVIOUS:
        return ctx.input("reward").folder_of("model"), nothing_new
    prepare = ctx.input("prepare")
    if ctx.parameters.checkpoint:
        return prepare.folder_of("models/reward-checkpoint"), True
    return prepare.folder_of("models/reward"), False


def _model(ctx: StageContext[RewardParameters], folder: Path, *, finished: bool) -> RewardModel:
    """R as it is before its training: fresh on the base model, or an earlier one."""
    parameters = ctx.parameters
    if not finished and parameters.retrain_from is not InitFrom.PREVIOUS:
        return RewardModel.fresh(folder, parameters.head, parameters.grades, base=ctx.input("prepare").digest)
    model = RewardModel.load(folder, train=not finished)
    if model.info.head is not parameters.head:
        raise ConfigError(f"rewardModel.head is {parameters.head}, but {folder} was made with {model.info.head}")
    return model


@dataclass(frozen=True)
class _Heldout:
    """What R is judged on."""

    grades: Sequence[GradedRow]
    preferences: Sequence[Preference]
    questions: Sequence[Item]
    """Of the validation split."""


@dataclass(frozen=True)
class _Measured:
    """What one R says of it."""

    metrics: Mapping[str, Mapping[str, float]]
    """Figures on the held-out grades, on the held-out preferences where there are any, and of its answers."""
    grades: np.ndarray
    """(rows,) its scores of the held-out grades."""
    rows: Sequence[RewardAnswer]
    answers: ValidationAnswers


def _held(row: GradedRow | Preference) -> bool:
    return row.split is Split.HELDOUT


def _examples(rows: Sequence[GradedRow] | Sequence[Preference], answer_format: AnswerFormat) -> list[TrainingExample]:
    """The rows that R is trained on."""
    return [TrainingExample(answer_row(row, answer_format), row.target) for row in rows if row.split is Split.TRAIN]


def _measure(
    ctx: StageContext[RewardParameters], model: RewardModel, encoder: vlm.Encoder, held: _Heldout, phase: str
) -> _Measured:
    """Scores all that R is judged on."""
    answer_format, good = ctx.parameters.answer_format, model.info.good

    def on_progress(done: int, total: int) -> None:
        ctx.progress(phase, done, total)
        ctx.check_stop()

    def scored(rows: Sequence[GradedRow] | Sequence[Preference]) -> np.ndarray:
        return score(model, encoder, [answer_row(row, answer_format) for row in rows], on_progress=on_progress)

    grades = scored(held.grades)
    metrics = {"grades": reward_metrics(held.grades, [row.item_id for row in held.grades], grades, good)}
    if held.preferences:
        prompts = [row.prompt_id for row in held.preferences]
        metrics["preferences"] = reward_metrics(held.preferences, prompts, scored(held.preferences), good)
    rationales = [rationale_for(item) for item in held.questions]
    options = option_scores(model, encoder, held.questions, rationales, answer_format, on_progress=on_progress)
    rows = [
        RewardAnswer(item.item_id, item.image_sha256, item.answer_index, scores)
        for item, scores in zip(held.questions, options, strict=True)
    ]
    answers = ValidationAnswers.of(rows, held.grades, grades)
    return _Measured({**metrics, "answers": answers.measures()}, grades, rows, answers)


def _measure_in_force(ctx: StageContext[RewardParameters], held: _Heldout) -> _Measured:
    """The same of the R that the new one would replace."""
    folder = ctx.input("reward").folder_of("model")
    encoder = vlm.Encoder(vlm.load_processor(folder), ctx.images)
    return _measure(ctx, RewardModel.load(folder), encoder, held, "measure the model in force")


def _publish(
    ctx: StageContext[RewardParameters], finished: Path | None, model: RewardModel, encoder: vlm.Encoder
) -> None:
    if finished is not None:
        ctx.writer.take("model", finished)
    else:
        model.save(ctx.writer.path(f"model/{INFO_FILE}").parent, encoder.processor)


def _write_json(ctx: StageContext[RewardParameters], name: str, document: Any, *, digested: bool = True) -> None:
    atomic.write_text(ctx.writer.path(name, digested=digested), json.dumps(document, indent=1, sort_keys=True) + "\n")


def _counters(after: _Measured, before: _Measured | None, decision: PromotionGate) -> dict[str, float]:
    """Headlines: of the new R on held-out grades and of its answers, and with a prefix on held-out preferences and of
    the R in force."""
    counters = _headlines(after.metrics) | {"gate_passed": float(decision.passed)}
    counters |= {f"preferences_{name}": value for name, value in _known(after.metrics.get("preferences")).items()}
    return counters | {f"old_{name}": value for name, value in _headlines(before.metrics if before else {}).items()}


def _headlines(metrics: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    return _known(metrics.get("answers")) | _known(metrics.get("grades"))


def _known(figures: Mapping[str, float] | None) -> dict[str, float]:
    return {name: value for name, value in (figures or {}).items() if name in _HEADLINES}
