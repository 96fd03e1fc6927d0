"""`report.md`: the tables and what they say, for a reader who has never seen the project."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from . import funnel
from .tables import CONTROLS, REFERENCES, Facts, Row

_NAMES = {"blank": "blank image", "shuffled": "shuffled image", "options_only": "options only",
          "option_prior": "option prior", "chance": "chance"}  # fmt: skip
_MANY_PARSE_FAILURES = 0.05

_LEGEND = """\
How to read this:
- **accuracy**: share of multiple-choice questions in which the right option is the one the model finds likeliest, given
  image, question and its own rationale; in brackets the 95 % interval (test images drawn again with replacement).
- **step**: change from the checkpoint in the line above, question by question; \\* its interval leaves out 0.
- **macro**: mean over modalities, each counting the same. **written**: accuracy of the answer the model writes out;
  **unreadable**: share of written answers that name no option (they count as wrong).
- **blank image**: the same questions beside a grey image. **shuffled image**: beside another image, of the same
  modality where there is one (so what the modality alone answers stays answerable). **options only**: neither image nor
  question. What a model scores there, it does not owe to what the image shows.
- **option prior**: no model at all, only how often each option text was right in the training questions.
  **chance**: guessing.
- `base` is the model the loop started from; `sft@t` and `grpo@t` are the checkpoints of iteration t after supervised
  fine-tuning and after reinforcement learning."""


def report(facts: Facts, figures: Sequence[tuple[str, str]]) -> str:
    """The whole document.

    Args:
        facts: the tables.
        figures: (file below the report's folder, what it shows).
    """
    parts = [
        f"# MedGR² cycle `{facts.cycle}`, after iteration {facts.iteration}",
        "A vision-language model is improved in a loop: a generator proposes questions about images, a reward model "
        "filters them, the model learns from what is kept, and the reward model learns from the model's own answers. "
        "This page says what was measured, and nothing beyond it.",
    ]
    if facts.settings:
        parts.append(
            "Settings: " + ", ".join(f"{name} {value}" for name, value in sorted(facts.settings.items())) + "."
        )
    parts += ["## Accuracy", *_accuracy(facts), _LEGEND]
    notes = reading_notes(facts)
    if notes:
        parts += ["### What the numbers say", "\n".join(f"- {note}" for note in notes)]
    parts += _funnel(facts.funnel) + _filter(facts.filters) + _reward(facts.rewards) + _grpo(facts.grpo)
    if figures:
        parts += ["## Figures", *(f"![{title}]({path})" for path, title in figures)]
    parts.append("All rows, with slices by modality and question type: `results.json`; the tables above: `tables/`.")
    return "\n\n".join(parts) + "\n"


def title_of(split: str, benchmark: str) -> str:
    """Name of a set of questions."""
    return f"test set {benchmark}" if split == "test" else "validation (used for choices, not for claims)"


def _accuracy(facts: Facts) -> list[str]:
    parts = []
    for key in dict.fromkeys((row["split"], row["benchmark"]) for row in facts.headline):
        rows = [row for row in facts.headline if (row["split"], row["benchmark"]) == key]
        shown = [name for name in (*CONTROLS, *REFERENCES) if any(row[name] is not None for row in rows)]
        head = ["checkpoint", "accuracy", "step", "macro", "written", "unreadable", *(_NAMES[name] for name in shown)]
        cells = [
            [
                row["checkpoint"],
                f"**{_percent(row['accuracy'])}** [{_percent(row['low'])}, {_percent(row['high'])}]",
                _step(row),
                *(_percent(row[name]) for name in ("macro", "greedy", "parse_failures", *shown)),
            ]
            for row in rows
        ]
        seen = [row["share"] for row in facts.seen if (row["split"], row["benchmark"]) == key]
        leak = f"; {_percent(seen[0])} % of them show an image that was trained on" if seen else ""
        parts += [f"**{title_of(*key)}**, {rows[0]['n']} questions, in percent{leak}", table(head, cells)]
    return parts


def reading_notes(facts: Facts) -> list[str]:
    """Plain sentences, each a comparison of numbers in the headline table (tests only)."""
    notes = []
    for benchmark in dict.fromkeys(row["benchmark"] for row in facts.headline if row["split"] == "test"):
        rows = [row for row in facts.headline if row["split"] == "test" and row["benchmark"] == benchmark]
        where = f"On {benchmark}"
        for row in rows:
            chance = row["chance"]
            if chance is not None and row["low"] <= chance <= row["high"]:
                notes.append(f"{where} `{row['checkpoint']}` cannot be told from guessing ({_percent(chance)}).")
        notes += [_step_note(where, above, row) for above, row in pairwise(rows) if row["step_low"] is not None]
        last = rows[-1]
        notes.append(_control_note(where, last))
        if last["parse_failures"] is not None and last["parse_failures"] > _MANY_PARSE_FAILURES:
            notes.append(
                f"{where} {_percent(last['parse_failures'])} % of the answers that `{last['checkpoint']}` writes "
                "name no option."
            )
    return notes


def _step_note(where: str, above: Row, row: Row) -> str:
    found = f"{where} `{row['checkpoint']}` is {_points(row['step'])} points from `{above['checkpoint']}`"
    found += f"; the paired interval [{_points(row['step_low'])}, {_points(row['step_high'])}]"
    if row["step_low"] > 0 or row["step_high"] < 0:
        return f"{found} leaves out 0."
    return f"{found} holds 0: no difference is shown."


def _control_note(where: str, row: Row) -> str:
    known = {_NAMES[name]: row[name] for name in (*CONTROLS, "option_prior") if row[name] is not None}
    below = [f"{name} ({_percent(value)})" for name, value in known.items() if value < row["low"]]
    others = [f"{name} ({_percent(value)})" for name, value in known.items() if value >= row["low"]]
    interval = f"the interval of `{row['checkpoint']}` [{_percent(row['low'])}, {_percent(row['high'])}]"
    if not known:
        return f"{where} no control was measured: how much of the accuracy needs the image is not known."
    if not others:
        return f"{where} {interval} lies above every control: {', '.join(below)}."
    rest = f"; it lies above {', '.join(below)}" if below else ""
    return f"{where} {interval} does not lie above {', '.join(others)}: that much is reached without the image{rest}."


def _funnel(rows: Sequence[Row]) -> list[str]:
    if not rows:
        return []
    whole = funnel.totals(rows)
    lines = [
        ("all", "", whole),
        *((funnel.NAMES[name], group, counts) for name, group, counts in funnel.marginals(rows)),
    ]
    cells = []
    before = ""
    for name, group, counts in lines:
        share = counts["kept"] / counts["generated"] if counts["generated"] else None
        cells.append(
            ["" if name == before else name, group, *(f"{counts[step]:,}" for step in funnel.STEPS), _percent(share)]
        )
        before = name
    text = (
        "Candidates of all iterations: asked for (generated), with an answer that is a triplet (parsed), scored by the "
        "reward model, and kept for training. Every combination by iteration: `funnel.json`, `tables/funnel.csv`."
    )
    return ["## Funnel", text, table(["by", "", *funnel.STEPS, "kept, %"], cells)]


def _filter(rows: Sequence[Row]) -> list[str]:
    if not rows:
        return []
    known = any(row["precision_raw"] is not None for row in rows)
    head = ["iteration", "candidates", "kept", "threshold"]
    head += ["right before, %", "right after, %", "right ones kept, %"] if known else []
    cells = []
    for row in rows:
        share = f" ({_percent(row['kept'] / row['candidates'])} %)" if row["candidates"] else ""
        line = [str(row["iteration"]), str(row["candidates"]), f"{row['kept']}{share}", _number(row["threshold"])]
        line += [_percent(row[name]) for name in ("precision_raw", "precision_kept", "recall")] if known else []
        cells.append([*line, row["reasons"]])
    text = "What the reward model let through. A rejected candidate is counted under each of its reasons."
    if known:
        text += " The generator is scripted, so the true share of right candidates is known; no stage sees it."
    return ["## Filter", text, table([*head, "rejected because"], cells)]


def _reward(rows: Sequence[Row]) -> list[str]:
    if not rows:
        return []
    head = ["made in iteration", "rank correlation", "pairs in order, %", "sees the image, %", "AUROC", "taken over"]
    cells = [
        [
            str(row["iteration"]), _number(row["spearman"]), _percent(row["pairwise_accuracy"]),
            _percent(row["image_sensitivity"]), _number(row["auroc"]), row["promoted"],
        ]
        for row in rows
    ]  # fmt: skip
    text = (
        "On held-out graded answers: Spearman's rank correlation with the grades; share of pairs of one question that "
        "are put in the right order; share of right answers that score higher beside their own image than beside "
        "another (50 %: it does not look)."
    )
    return ["## Reward model", text, table(head, cells)]


def _grpo(rows: Sequence[Row]) -> list[str]:
    if not rows:
        return []
    head = [
        "iteration", "prompts", "steps", "reward, first fifth", "reward, last fifth", "answer match, %",
        "unreadable, %",
        "groups without variance, %", "variance from the reward model, %", "variance from the match, %",
    ]  # fmt: skip
    percents = (
        "match",
        "parse_failures",
        "zero_variance_groups",
        "variance_share_reward_model",
        "variance_share_match",
    )
    cells = [
        [
            *(_number(row[name], 0) for name in ("iteration", "prompts", "steps")),
            *(_number(row[name]) for name in ("reward_first", "reward_last")),
            *(_percent(row[name]) for name in percents),
        ]
        for row in rows
    ]
    text = (
        "Reinforcement learning, means over the last fifth of the steps. A group whose answers all get the same reward "
        "teaches nothing. A higher reward is not a higher accuracy: compare `sft` and `grpo` above."
    )
    return ["## GRPO", text, table(head, cells)]


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _step(row: Row) -> str:
    if row["step"] is None:
        return ""
    star = "\\*" if row["step_low"] > 0 or row["step_high"] < 0 else ""
    return f"{_points(row['step'])} [{_points(row['step_low'])}, {_points(row['step_high'])}]{star}"


def _points(value: float) -> str:
    return f"{100 * value:+.1f}"


def _percent(value: Any) -> str:
    return "–" if value is None else f"{100 * value:.1f}"


def _number(value: Any, digits: int = 2) -> str:
    return "–" if value is None else f"{value:.{digits}f}"
