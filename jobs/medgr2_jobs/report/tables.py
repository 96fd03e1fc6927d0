"""What the report says, as plain rows: made from a cycle's tables, written as CSV."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any

from medgr2_api.metrics import HEADLINE, METRICS
from medgr2_api.printable import csv_cell

from ..curate.training_set import becomes, capped
from ..evaluate import metrics
from ..evaluate.metrics import Interval, Measurement, QuestionSet
from ..store.manifest import Manifest
from ..store.rows import Split
from ..store.rows.evaluation import EvalCondition, Scoring
from . import corrections, funnel, quarantine, releases, students
from .compare import CHECKPOINTS, Answers, answers_of, difference, label
from .cycle_frame import CycleFrame, PredictionColumns
from .known_truth import settled_precision
from .parameters import ParameterRow, parameter_rows

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

#: Controls that depend on the checkpoint, in the order of the headline table.
CONTROLS = (EvalCondition.BLANK, EvalCondition.SHUFFLED, EvalCondition.OPTIONS_ONLY)
#: References that need no model.
REFERENCES = (EvalCondition.OPTION_PRIOR, EvalCondition.CHANCE)


@dataclass(frozen=True, slots=True)
class HeadlineRow:
    """A checkpoint on a set of questions; what was not measured is None."""

    split: Split
    benchmark: str
    checkpoint: str
    n: int
    accuracy: float
    low: float
    high: float
    metrics: dict[str, float | None]
    """What else is measured, by the columns' headings (`medgr2_api.metrics`)."""
    greedy: float | None
    parse_failures: float | None
    blank: float | None
    shuffled: float | None
    options_only: float | None
    option_prior: float | None
    chance: float | None
    step: float | None
    """Change from the checkpoint before: paired, so its interval is narrower than the two accuracies' suggest."""
    step_low: float | None
    step_high: float | None

    def under(self, condition: EvalCondition) -> float | None:
        """Accuracy under a control or reference."""
        value: float | None = getattr(self, condition)
        return value

    @property
    def paired_step(self) -> Interval | None:
        """The step with its interval; None: there is no checkpoint before."""
        if self.step is None or self.step_low is None or self.step_high is None:
            return None
        return Interval(self.step, self.step_low, self.step_high)


@dataclass(frozen=True, slots=True)
class FilterRow:
    """What the filter of an iteration kept; against the truth where the generator knows it."""

    iteration: int
    candidates: int
    kept: int
    threshold: float | None
    precision_raw: float | None
    """Share of right candidates before the filter."""
    precision_kept: float | None
    recall: float | None
    """Share of the right ones that was kept."""
    reasons: str


@dataclass(frozen=True, slots=True)
class RewardRow:
    """A reward model: how it answers the validation questions, its figures on held-out grades, what it was retrained
    on, and whether it was taken over."""

    iteration: int
    answer_accuracy: float | None
    """Share of validation questions whose right option scores highest."""
    answer_auroc: float | None
    """Right options against wrong ones."""
    auroc_gain: float | None
    """Over the model in force, with its 95 % interval (paired, images drawn together)."""
    auroc_gain_low: float | None
    auroc_gain_high: float | None
    spearman: float | None
    pairwise_accuracy: float | None
    image_sensitivity: float | None
    auroc: float | None
    settled: float | None
    """Questions that it was retrained on, of all iterations so far."""
    settled_against_reward: float | None
    """Those whose settled answer is not the reward model's own."""
    settled_precision: float | None
    """Share of right answers among them, where the truth is known."""
    promoted: str
    reason: str
    """What the gate says."""

    @property
    def gain(self) -> Interval | None:
        """The AUROC's gain; None: there was no model before."""
        if self.auroc_gain is None or self.auroc_gain_low is None or self.auroc_gain_high is None:
            return None
        return Interval(self.auroc_gain, self.auroc_gain_low, self.auroc_gain_high)


@dataclass(frozen=True, slots=True)
class GRPORow:
    """A GRPO run: means over the last fifth of its steps."""

    iteration: int
    prompts: float | None
    steps: float | None
    reward_first: float | None
    reward_last: float | None
    match: float | None
    parse_failures: float | None
    zero_variance_groups: float | None
    variance_share_reward_model: float | None
    variance_share_match: float | None


@dataclass(frozen=True, slots=True)
class SeenRow:
    """How many questions of a set show an image that was trained on (same bytes after decoding)."""

    split: Split
    benchmark: str
    n: int
    share: float


@dataclass(frozen=True)
class CycleTables:
    """Everything the report is made of. Tables whose stage is not there are empty."""

    cycle: str
    iteration: int
    settings: Mapping[str, Any]
    results: list[Measurement]
    headline: list[HeadlineRow]
    """A row per checkpoint and set of questions."""
    filters: list[FilterRow]
    """A row per iteration."""
    rewards: list[RewardRow]
    """A row per reward model."""
    grpo: list[GRPORow]
    """A row per GRPO run."""
    seen: list[SeenRow]
    """A row per set of questions."""
    funnel: list[funnel.FunnelRow] = field(default_factory=list)
    """A row per iteration, paradigm, modality and question type: candidates from generated to kept."""
    parameters: list[ParameterRow] = field(default_factory=list)
    """A row per parameter of every stage."""
    quarantine: list[quarantine.QuarantineRow] = field(default_factory=list)
    """A row per source and reason why records were set aside."""
    releases: list[releases.ReleaseRow] = field(default_factory=list)
    """A row per iteration: which of its checkpoints went on."""
    corrections: list[corrections.CorrectionRow] = field(default_factory=list)
    """A row per iteration whose questions were asked again."""
    students: students.StudentTables = field(default_factory=students.StudentTables)
    """Of the generators that the loop has taught."""

    def went_on(self, checkpoint: str) -> bool:
        """Whether a checkpoint, such as `grpo@2`, is the one of its iteration that the loop went on with, or on the way
        to it."""
        return all(checkpoint == row.goes_on or checkpoint != f"grpo@{row.iteration}" for row in self.releases)


def gather(frame: CycleFrame, cycle: str, settings: Mapping[str, Any]) -> CycleTables:
    """The tables of a cycle."""
    results = results_of(frame)
    predictions = {t: frame.predictions(t) for t in frame.iterations("measure")}
    return CycleTables(
        cycle,
        frame.last,
        settings,
        results,
        headline(results, predictions),
        [filter_row(frame, t) for t in frame.iterations("curate")],
        [reward_row(frame, t) for t in frame.iterations("reward")],
        [grpo_row(t, frame.artifact("grpo", t).manifest) for t in frame.iterations("grpo") if frame.trained("grpo", t)],
        seen_rows(frame, predictions),
        funnel.rows(frame),
        parameter_rows(frame),
        quarantine.rows(frame),
        releases.rows(frame),
        corrections.rows(frame),
        students.tables(frame),
    )


def results_of(frame: CycleFrame) -> list[Measurement]:
    """Rows of all evaluations."""
    return [
        row
        for t in frame.iterations("measure")
        for row in metrics.read(frame.artifact("measure", t).file("results.json").read_text())
    ]


def pick(results: Iterable[Measurement], **values: str | int) -> list[Measurement]:
    """Rows with these values in these fields."""
    return [row for row in results if all(getattr(row, name) == value for name, value in values.items())]


def sets(results: Iterable[Measurement]) -> list[QuestionSet]:
    """The sets of questions, the tests first."""
    questions = dict.fromkeys(QuestionSet(row.split, row.benchmark) for row in results)
    return sorted(questions, key=lambda one: one.split is not Split.TEST)


def checkpoints(results: Iterable[Measurement]) -> list[tuple[int, str]]:
    """(iteration, checkpoint) of all models, in the order in which the loop made them."""
    pairs = {(row.iteration, row.checkpoint) for row in results if row.condition is EvalCondition.REAL}
    return sorted(pairs, key=lambda pair: (pair[0], CHECKPOINTS.index(pair[1])))


def headline(
    results: Sequence[Measurement], predictions: Mapping[int, Sequence[PredictionColumns]]
) -> list[HeadlineRow]:
    """A row per set of questions and checkpoint."""
    whole = pick(results, slice="all")
    rows = []
    for split, benchmark in sets(whole):
        here = pick(whole, split=split, benchmark=benchmark)
        references = {condition.value: _accuracy(here, condition) for condition in REFERENCES}
        before: tuple[str, Answers] | None = None
        for iteration, checkpoint in checkpoints(here):
            own = pick(here, iteration=iteration, checkpoint=checkpoint)
            [accuracy] = pick(metrics.headline(own), condition=EvalCondition.REAL)
            answers = answers_of(predictions.get(iteration, ()), split).get((checkpoint, benchmark), {})
            name = label(checkpoint, iteration)
            step = difference(before[1], answers, before[0]) if before and answers else None
            rows.append(
                HeadlineRow(
                    split=split,
                    benchmark=benchmark,
                    checkpoint=name,
                    n=accuracy.n,
                    accuracy=accuracy.value,
                    low=accuracy.interval.low,
                    high=accuracy.interval.high,
                    metrics={
                        metric.column: _accuracy(own, EvalCondition.REAL, metric=metric.name)
                        for metric in METRICS.values()
                        if metric.column
                    },
                    greedy=_accuracy(own, EvalCondition.REAL, scoring=Scoring.GREEDY),
                    parse_failures=_value(pick(own, condition=EvalCondition.REAL, metric="parseFailures")),
                    **{condition.value: _accuracy(own, condition) for condition in CONTROLS},
                    **references,
                    step=step.value if step else None,
                    step_low=step.low if step else None,
                    step_high=step.high if step else None,
                )
            )
            before = (name, answers) if answers else before
    return rows


def filter_row(frame: CycleFrame, iteration: int) -> FilterRow:
    """What the filter of an iteration kept."""
    decisions = frame.decisions(iteration)
    kept = {row.triplet_id for row in decisions if row.keep}
    reasons = Counter(reason for row in decisions for reason in row.reasons)
    truth = frame.truth(iteration)
    right = {name for name, correct in truth.items() if correct}
    kept_with_truth = kept & truth.keys()
    return FilterRow(
        iteration=iteration,
        candidates=len(decisions),
        kept=len(kept),
        threshold=frame.artifact("curate", iteration).manifest.counters.get("threshold"),
        precision_raw=_share(right, truth.keys()),
        precision_kept=_share(right, kept_with_truth),
        recall=_share(kept, right),
        reasons="; ".join(f"{name} {count}" for name, count in sorted(reasons.items(), key=lambda x: (-x[1], x[0]))),
    )


def reward_row(frame: CycleFrame, iteration: int) -> RewardRow:
    """The figures that stage reward published, and what is known of the questions that it was retrained on."""
    reader = frame.artifact("reward", iteration)
    promoted = reader.manifest.promoted
    decision = json.loads(reader.file("gate.json").read_text()) if reader.has("gate.json") else {}
    gain = decision.get("gains", {}).get("answer_auroc", {})
    figures = _counters(
        reader.manifest, "answer_accuracy", "answer_auroc", "spearman", "pairwise_accuracy", "image_sensitivity",
        "auroc", "settled", "settled_against_reward",
    )  # fmt: skip
    return RewardRow(
        iteration=iteration,
        **figures,
        auroc_gain=gain.get("value"),
        auroc_gain_low=gain.get("low"),
        auroc_gain_high=gain.get("high"),
        settled_precision=settled_precision(frame, iteration) if figures["settled"] is not None else None,
        promoted="first" if promoted is None else "yes" if promoted else "no, the one before stays",
        reason=decision.get("reason", ""),
    )


def grpo_row(iteration: int, manifest: Manifest) -> GRPORow:
    """The figures that stage grpo published."""
    names = [column.name for column in fields(GRPORow) if column.name != "iteration"]
    return GRPORow(iteration=iteration, **_counters(manifest, *names))


def seen_rows(frame: CycleFrame, predictions: Mapping[int, Sequence[PredictionColumns]]) -> list[SeenRow]:
    """For each set of questions the share whose very image is in D_gen; empty where nothing is trained on."""
    trained = {row.image_sha256 for row in frame.items if row.split is Split.TRAIN}
    for t in frame.iterations("curate"):
        kept = {row.triplet_id for row in frame.decisions(t) if row.keep}
        if any(frame.learnt_corrected("sft", later, t) for later in frame.iterations("sft")):
            found = frame.posteriors(t)
            later = {row.triplet_id for row in frame.decisions(t) if becomes(row, found.get(row.triplet_id))}
            kept |= later - capped(frame.artifacts, t)
        trained |= {row.image_sha256 for row in frame.candidates(t) if row.triplet_id in kept}
    if not trained or not predictions:
        return []
    images: dict[tuple[Split, str], dict[str, str]] = {}
    for row in predictions[min(predictions)]:
        images.setdefault((row.split, row.benchmark), {})[row.item_id] = row.image_sha256
    return [
        SeenRow(split, benchmark, len(by_item), sum(image in trained for image in by_item.values()) / len(by_item))
        for (split, benchmark), by_item in sorted(images.items())
    ]


def to_csv(rows: Sequence[DataclassInstance]) -> str:
    """CSV text of dataclasses, a field per column (of a dict, one per key), with a header; empty cells where a value is
    unknown."""
    flat = [_columns(row) for row in rows]
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(map(csv_cell, flat[0]))
    writer.writerows(map(_cell, row.values()) for row in flat)
    return stream.getvalue()


def _cell(value: Any) -> Any:
    if isinstance(value, float):
        return f"{value:.6g}"
    return csv_cell(value) if isinstance(value, str) else value


def _columns(row: DataclassInstance) -> dict[str, Any]:
    columns: dict[str, Any] = {}
    for name, value in asdict(row).items():
        columns |= value if isinstance(value, dict) else {name: value}
    return columns


def to_json(rows: Sequence[DataclassInstance], **first: str) -> str:
    """JSON text of dataclasses; `first` are the same in every row."""
    return json.dumps([{**first, **asdict(row)} for row in rows], indent=0, allow_nan=False) + "\n"


def _share(part: Iterable[str], whole: Iterable[str]) -> float | None:
    """How much of `whole` is in `part`; None of nothing."""
    names = set(whole)
    return len(names.intersection(part)) / len(names) if names else None


def _counters(manifest: Manifest, *names: str) -> dict[str, float | None]:
    return {name: manifest.counters.get(name) for name in names}


def _accuracy(
    results: Iterable[Measurement],
    condition: EvalCondition,
    *,
    metric: str = HEADLINE.name,
    scoring: Scoring = Scoring.OPTION_LOGPROB,
) -> float | None:
    return _value(pick(results, condition=condition, metric=metric, scoring=scoring))


def _value(results: Sequence[Measurement]) -> float | None:
    return results[0].value if results else None
