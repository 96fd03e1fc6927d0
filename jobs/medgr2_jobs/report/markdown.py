"""`report.md`: the tables and what they say, for a reader who has never seen the project."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from medgr2_api import printable
from medgr2_api.percent import percent, percent_interval, points, points_interval

from ..evaluate.metrics import Interval
from ..evaluate.release import PairedDifference
from ..store.rows import Split
from ..store.rows.evaluation import EvalCondition
from . import corrections, funnel, students
from .markdown_table import Markup, table
from .parameters import changed_on_the_way
from .quarantine import QuarantineRow
from .releases import ReleaseRow
from .tables import (
    CONTROLS,
    REFERENCES,
    CycleTables,
    FilterRow,
    GRPORow,
    HeadlineRow,
    RewardRow,
)

_NAMES = {
    EvalCondition.BLANK: "blank image",
    EvalCondition.SHUFFLED: "shuffled image",
    EvalCondition.OPTIONS_ONLY: "options only",
    EvalCondition.OPTION_PRIOR: "option prior",
    EvalCondition.CHANCE: "chance",
}
_MANY_PARSE_FAILURES = 0.05
_REASONS = 30  # why records were set aside, in the page; all of them are in the table beside it

_LEGEND = """\
How to read this:
- **micro accuracy**: share of all multiple-choice questions in which the right option is the one the model finds
  likeliest, given image, question and its own rationale; in brackets the 95 % interval (test images drawn again with
  replacement).
- **step**: change from the checkpoint in the line above, question by question; \\* its interval leaves out 0.
- **macro**: macro accuracy, the mean over modalities, each counting the same. **written**: micro accuracy of the
  answer the model writes out; **unreadable**: share of written answers that name no option (they count as wrong).
- **blank image**: the same questions beside a grey image. **shuffled image**: beside another image, of the same
  modality where there is one (so what the modality alone answers stays answerable). **options only**: neither image nor
  question. What a model scores there, it does not owe to what the image shows.
- **option prior**: no model at all, only how often each option text was right in the training questions (of the
  same source and modality, and by its spelling, where that says more).
  **chance**: guessing.
- `base` is the model the loop started from; `sft@t` and `grpo@t` are the checkpoints of iteration t after supervised
  fine-tuning and after reinforcement learning. One that *did not go on* was worse on validation than the one before it:
  the loop went on with that one."""


def report(cycle: CycleTables, figures: Sequence[tuple[str, str]]) -> str:
    """The whole document.

    Args:
        cycle: its tables.
        figures: (file below the report's folder, what it shows).
    """
    parts = [
        f"# MedGR² cycle `{cycle.cycle}`, after iteration {cycle.iteration}",
        "A vision-language model is improved in a loop: a generator proposes questions about images, a reward model "
        "filters them, the model learns from what is kept, and the reward model learns from the model's own answers. "
        "This page says what was measured, and nothing beyond it.",
    ]
    if cycle.settings:
        settings = (f"{name} {printable.markdown(str(value))}" for name, value in sorted(cycle.settings.items()))
        parts.append(f"Settings: {', '.join(settings)}.")
    parts += ["## Accuracy", *_accuracy(cycle), _LEGEND]
    notes = reading_notes(cycle)
    if notes:
        parts += ["### What the numbers say", "\n".join(f"- {note}" for note in notes)]
    parts += _funnel(cycle.funnel) + _filter(cycle.filters) + corrections.markdown(cycle.corrections)
    parts += _reward(cycle.rewards) + _grpo(cycle.grpo)
    parts += _releases(cycle.releases)
    parts += students.markdown(cycle.students)
    parts += _parameters(cycle) + _quarantine(cycle.quarantine)
    if figures:
        parts += ["## Figures", *(f"![{title}]({path})" for path, title in figures)]
    parts.append("All rows, with slices by modality and question type: `results.json`; the tables above: `tables/`.")
    return "\n\n".join(parts) + "\n"


def _parameters(cycle: CycleTables) -> list[str]:
    """With what the stages were made, where that changed on the way."""
    if not cycle.parameters:
        return []
    changed = changed_on_the_way(cycle.parameters, cycle.settings.get("seed"))
    parts = ["## How it was made", "Every parameter of every stage: `tables/parameters.csv`."]
    if changed:
        parts += [
            "**The spec was edited while the cycle ran**: its stages were not all made with the same parameters.",
            "\n".join(f"- {note}" for note in changed),
        ]
    return parts


def _quarantine(rows: Sequence[QuarantineRow]) -> list[str]:
    """Which records were not used, and why."""
    if not rows:
        return []
    head = ["source", "kind", "reason", "records", "the first"]
    cells = [[row.source, row.kind.value, row.reason, f"{row.records:,}", row.first] for row in rows[:_REASONS]]
    parts = ["## Records that were set aside", table(head, cells)]
    if more := rows[_REASONS:]:
        parts.append(
            f"{sum(row.records for row in more):,} more for {len(more)} other reasons: `tables/quarantine.csv`."
        )
    return parts


def title_of(split: Split, benchmark: str) -> str:
    """Name of a set of questions."""
    return f"test set {benchmark}" if split is Split.TEST else "validation (used for choices, not for claims)"


def _accuracy(cycle: CycleTables) -> list[str]:
    parts = []
    for key in dict.fromkeys((row.split, row.benchmark) for row in cycle.headline):
        rows = [row for row in cycle.headline if (row.split, row.benchmark) == key]
        measured = [x for x in (*CONTROLS, *REFERENCES) if any(row.under(x) is not None for row in rows)]
        head = ["checkpoint", "micro accuracy", "step", *rows[0].metrics, "written", "unreadable"]
        head += [_NAMES[x] for x in measured]
        cells = [
            [
                row.checkpoint if cycle.went_on(row.checkpoint) else f"{row.checkpoint} (did not go on)",
                Markup(percent_interval(row.accuracy, row.low, row.high)),
                _step(row.paired_step),
                *(percent(value) for value in (*row.metrics.values(), row.greedy, row.parse_failures)),
                *(percent(row.under(condition)) for condition in measured),
            ]
            for row in rows
        ]
        seen = [row.share for row in cycle.seen if (row.split, row.benchmark) == key]
        leak = f"; {percent(seen[0])} % of them show an image that was trained on" if seen else ""
        parts += [f"**{title_of(*key)}**, {rows[0].n} questions, in percent{leak}", table(head, cells)]
    return parts


def reading_notes(cycle: CycleTables) -> list[str]:
    """Plain sentences, each a comparison of numbers in the headline table (tests only)."""
    notes = []
    for benchmark in dict.fromkeys(row.benchmark for row in cycle.headline if row.split is Split.TEST):
        rows = [row for row in cycle.headline if row.split is Split.TEST and row.benchmark == benchmark]
        where = f"On {benchmark}"
        for row in rows:
            chance = row.chance
            if chance is not None and row.low <= chance <= row.high:
                notes.append(f"{where} `{row.checkpoint}` cannot be told from guessing ({percent(chance)}).")
        for above, row in pairwise(rows):
            if (step := row.paired_step) is not None:
                notes.append(_step_note(where, above.checkpoint, row.checkpoint, step))
        last = [row for row in rows if cycle.went_on(row.checkpoint)][-1]
        notes.append(_control_note(where, last))
        if last.parse_failures is not None and last.parse_failures > _MANY_PARSE_FAILURES:
            notes.append(
                f"{where} {percent(last.parse_failures)} % of the answers that `{last.checkpoint}` writes "
                "name no option."
            )
    return notes


def _step_note(where: str, above: str, checkpoint: str, step: Interval) -> str:
    note = f"{where} `{checkpoint}` is {points(step.value)} points from `{above}`"
    note += f"; the paired interval [{points(step.low)}, {points(step.high)}]"
    if step.low > 0 or step.high < 0:
        return f"{note} leaves out 0."
    return f"{note} holds 0: no difference is shown."


def _control_note(where: str, row: HeadlineRow) -> str:
    controls = [
        (_NAMES[x], value) for x in (*CONTROLS, EvalCondition.OPTION_PRIOR) if (value := row.under(x)) is not None
    ]
    below = [f"{name} ({percent(value)})" for name, value in controls if value < row.low]
    others = [f"{name} ({percent(value)})" for name, value in controls if value >= row.low]
    interval = f"the interval of `{row.checkpoint}` [{percent(row.low)}, {percent(row.high)}]"
    if not controls:
        return f"{where} no control was measured: how much of the accuracy needs the image is not known."
    if not others:
        return f"{where} {interval} lies above every control: {', '.join(below)}."
    rest = f"; it lies above {', '.join(below)}" if below else ""
    return f"{where} {interval} does not lie above {', '.join(others)}: that much is reached without the image{rest}."


def _funnel(rows: Sequence[funnel.FunnelRow]) -> list[str]:
    if not rows:
        return []
    whole = funnel.totals(rows)
    lines = [
        ("all", "", whole),
        *((funnel.DIMENSIONS[name], group, counts) for name, group, counts in funnel.marginals(rows)),
    ]
    cells = []
    before = ""
    for name, group, counts in lines:
        share = counts["kept"] / counts["generated"] if counts["generated"] else None
        cells.append(
            ["" if name == before else name, group, *(f"{counts[step]:,}" for step in funnel.STEPS), percent(share)]
        )
        before = name
    text = (
        "Candidates of all iterations: asked for (generated), with an answer that is a triplet (parsed), scored by the "
        "reward model, and kept for training. Every combination by iteration: `funnel.json`, `tables/funnel.csv`."
    )
    return ["## Funnel", text, table(["by", "", *funnel.STEPS, "kept, %"], cells)]


def _filter(rows: Sequence[FilterRow]) -> list[str]:
    if not rows:
        return []
    measured = any(row.precision_raw is not None for row in rows)
    head = ["iteration", "candidates", "kept", "threshold"]
    head += ["right before, %", "right after, %", "right ones kept, %"] if measured else []
    cells = []
    for row in rows:
        share = f" ({percent(row.kept / row.candidates)} %)" if row.candidates else ""
        line = [str(row.iteration), str(row.candidates), f"{row.kept}{share}", _number(row.threshold)]
        line += [percent(x) for x in (row.precision_raw, row.precision_kept, row.recall)] if measured else []
        cells.append([*line, row.reasons])
    text = "What the reward model let through. A rejected candidate is counted under each of its reasons."
    if measured:
        text += " The generator is scripted, so the true share of right candidates is known; no stage sees it."
    return ["## Filter", text, table([*head, "rejected because"], cells)]


def _reward(rows: Sequence[RewardRow]) -> list[str]:
    if not rows:
        return []
    measured = any(row.settled_precision is not None for row in rows)
    retrained = any(row.settled is not None for row in rows)
    head = ["made in iteration", "answers right, %", "AUROC", "against the one before, points"]
    head += ["settled", "against the one before"] if retrained else []
    head += ["settled rightly, %"] if measured else []
    cells = [
        [
            str(row.iteration), percent(row.answer_accuracy), _number(row.answer_auroc, 3), _step(row.gain),
            *([_number(row.settled, 0), _number(row.settled_against_reward, 0)] if retrained else []),
            *([percent(row.settled_precision)] if measured else []),
            _number(row.spearman), percent(row.pairwise_accuracy), percent(row.image_sensitivity),
            row.promoted, row.reason,
        ]
        for row in rows
    ]  # fmt: skip
    head += ["rank correlation", "pairs in order, %", "sees the image, %", "taken over", "because"]
    text = (
        "How it answers the validation questions, by its score of one text per option: share of questions whose right "
        "option scores highest, AUROC of right against wrong options, and how much that is above the model in force "
        "(points, with the 95 % interval of the paired difference). On held-out graded answers: Spearman's rank "
        "correlation with the grades; share of pairs of one question that are put in the right order; share of right "
        "answers that score higher beside their own image than beside another (50 %: it does not look)."
    )
    if retrained:
        text += (
            " It is retrained on the questions that policy, reward model and generator settle together; those against "
            "the model before are what it can learn from."
        )
    return ["## Reward model", text, table(head, cells)]


def _grpo(rows: Sequence[GRPORow]) -> list[str]:
    if not rows:
        return []
    head = [
        "iteration", "prompts", "steps", "reward, first fifth", "reward, last fifth", "answer match, %",
        "unreadable, %",
        "groups without variance, %", "variance from the reward model, %", "variance from the match, %",
    ]  # fmt: skip
    cells = [
        [
            *(_number(value, 0) for value in (row.iteration, row.prompts, row.steps)),
            *(_number(value) for value in (row.reward_first, row.reward_last)),
            *(
                percent(value)
                for value in (
                    row.match, row.parse_failures, row.zero_variance_groups, row.variance_share_reward_model,
                    row.variance_share_match,
                )
            ),
        ]
        for row in rows
    ]  # fmt: skip
    text = (
        "Reinforcement learning, means over the last fifth of the steps. A group whose answers all get the same reward "
        "teaches nothing. A higher reward is not a higher accuracy: compare `sft` and `grpo` above."
    )
    return ["## GRPO", text, table(head, cells)]


def _releases(rows: Sequence[ReleaseRow]) -> list[str]:
    if not rows:
        return []
    head = [
        "iteration", "goes on", "GRPO learnt from", "sft, %", "reward model, %", "sft over the reward model", "grpo, %",
        "grpo over sft",
    ]  # fmt: skip
    cells = [
        [
            str(row.iteration), row.goes_on, row.trained_on, percent(row.sft), percent(row.reward_model),
            _points(row.judge), percent(row.grpo), _points(row.gain),
        ]
        for row in rows
    ]  # fmt: skip
    text = (
        "Macro accuracy on the validation questions, in percent; differences in points, question by question. A policy "
        "that beats the reward model (which answers by the option whose text it scores highest) has nothing to learn "
        "from it; and where GRPO makes the policy worse, the checkpoint before it goes on. What was not looked at "
        "because nothing depended on it is a dash."
    )
    return ["## What went on", text, table(head, cells)]


def _points(difference: PairedDifference | None) -> str:
    return Markup(points_interval(difference.value, difference.low, difference.high)) if difference else "–"


def _step(step: Interval | None) -> str:
    return Markup(points_interval(*step)) if step else ""


def _number(value: float | None, digits: int = 2) -> str:
    return "–" if value is None else f"{value:.{digits}f}"
