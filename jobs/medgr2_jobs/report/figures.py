"""The report's figures. Colours are Okabe and Ito's, which colour-blind readers can tell apart.

PNG bytes depend on the versions of matplotlib and its fonts, so figures do not count in the artifact's digest; they
hold no date and no version.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np

mpl.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from medgr2_api.metrics import HEADLINE
from medgr2_api.percent import percent

from ..evaluate.metrics import Measurement
from ..store.rows import Split
from ..store.rows.evaluation import EvalCondition, Scoring
from .compare import label
from .funnel import DIMENSIONS
from .tables import HeadlineRow, checkpoints, pick

BLUE, ORANGE, GREEN, RED, PINK, SKY, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#666666"
_COLOUR = {"base": GREY, "sft": BLUE, "grpo": ORANGE}
_CONTROL_STYLE = {
    EvalCondition.BLANK: ("s", SKY, "blank image"),
    EvalCondition.SHUFFLED: ("^", GREEN, "shuffled image"),
    EvalCondition.OPTIONS_ONLY: ("v", PINK, "options only"),
}
_REFERENCE_STYLE = {
    EvalCondition.CHANCE: (":", GREY, "chance"),
    EvalCondition.OPTION_PRIOR: ("--", RED, "option prior"),
}
_BINS = np.linspace(-6, 10, 33)  # R's range
_STYLE: Any = {
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "font.size": 10,
    "grid.color": "#e6e6e6",
    "legend.frameon": False,
    "savefig.dpi": 130,
}


def accuracy(headline: Sequence[HeadlineRow], path: Path) -> None:
    """Accuracy of each checkpoint with its interval, its controls beside it, the references as lines."""
    keys = list(dict.fromkeys((row.split, row.benchmark) for row in headline))
    widest = max(sum((row.split, row.benchmark) == key for row in headline) for key in keys)
    with plt.rc_context(_STYLE):
        figure, grid = plt.subplots(
            1, len(keys), figsize=(max(4.2, 0.95 * widest + 1.5) * len(keys), 4.6), sharey=True, squeeze=False,
            layout="constrained",
        )  # fmt: skip
        for axes, key in zip(grid[0], keys, strict=True):
            rows = [row for row in headline if (row.split, row.benchmark) == key]
            _accuracy_panel(axes, rows)
            axes.set_title(f"{'test: ' + key[1] if key[0] is Split.TEST else 'validation'} (n = {rows[0].n} questions)")
        grid[0][0].set_ylabel("micro accuracy, % (bars: 95 % interval)")
        entries: dict[str, Any] = {}
        for axes in grid[0]:
            entries |= dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
        figure.legend(entries.values(), entries.keys(), loc="outside lower center", ncols=min(6, len(entries)))
        _save(figure, path)


def _accuracy_panel(axes: Axes, rows: Sequence[HeadlineRow]) -> None:
    for reference, (style, colour, text) in _REFERENCE_STYLE.items():
        share = rows[0].under(reference)
        if share is not None:
            axes.axhline(100 * share, linestyle=style, color=colour, label=text, linewidth=1.5)
    for place, row in enumerate(rows):
        value = 100 * row.accuracy
        reach = [[value - 100 * row.low], [100 * row.high - value]]
        colour = _COLOUR[row.checkpoint.partition("@")[0]]
        axes.errorbar(
            place,
            value,
            reach,
            fmt="o",
            color=colour,
            capsize=4,
            markersize=8,
            label="real image" if not place else None,
        )
        axes.annotate(
            percent(row.accuracy),
            (place, value),
            (8, -3),
            textcoords="offset points",
            fontsize=9,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.8},
        )
    for number, (control, (marker, colour, text)) in enumerate(_CONTROL_STYLE.items()):
        shares = [(place, share) for place, row in enumerate(rows) if (share := row.under(control)) is not None]
        if shares:
            places = [place + 0.1 * (number - 1) for place, _ in shares]
            values = [100 * share for _, share in shares]
            axes.scatter(places, values, marker=marker, color=colour, s=34, label=text, zorder=3)
    axes.set_xticks(range(len(rows)), [row.checkpoint for row in rows])
    axes.set_xlim(-0.5, len(rows) - 0.35)
    axes.set_ylim(0, 103)


def modalities(results: Sequence[Measurement], split: Split, benchmark: str, path: Path) -> bool:
    """Accuracy by modality: the base model and the newest checkpoints. False when there is but one modality."""
    here = pick(results, split=split, benchmark=benchmark, condition=EvalCondition.REAL, scoring=Scoring.OPTION_LOGPROB,
                metric=HEADLINE.name)  # fmt: skip
    by_name = {
        label(checkpoint, iteration): {
            row.slice.removeprefix("modality="): row
            for row in pick(here, iteration=iteration, checkpoint=checkpoint)
            if row.slice.startswith("modality=")
        }
        for iteration, checkpoint in _newest(checkpoints(here))
    }
    names = sorted({modality for rows in by_name.values() for modality in rows})
    if len(names) < 2:
        return False
    counts = {modality: next(rows[modality].n for rows in by_name.values() if modality in rows) for modality in names}
    with plt.rc_context(_STYLE):
        figure, axes = plt.subplots(figsize=(max(6.0, 1.0 * len(names) + 1.5), 4.2), layout="constrained")
        width = 0.8 / len(by_name)
        for number, (name, rows) in enumerate(by_name.items()):
            values = np.array([[100 * x for x in rows[m].interval] for m in names]).T
            axes.bar(
                np.arange(len(names)) + (number - (len(by_name) - 1) / 2) * width, values[0], width * 0.92,
                yerr=[values[0] - values[1], values[2] - values[0]], color=_COLOUR[name.partition("@")[0]], label=name,
                error_kw={"elinewidth": 1, "capsize": 2, "ecolor": "#333333"},
            )  # fmt: skip
        axes.set_xticks(range(len(names)), [f"{name or 'unknown'}\nn = {counts[name]}" for name in names])
        axes.grid(visible=False, axis="x")
        axes.set_ylim(0, 103)
        axes.set_ylabel("micro accuracy, % (bars: 95 % interval)")
        axes.set_title(f"accuracy by modality, {'test: ' + benchmark if split is Split.TEST else 'validation'}")
        figure.legend(loc="outside lower center", ncols=len(by_name))
        _save(figure, path)
    return True


def _newest(points: Sequence[tuple[int, str]]) -> list[tuple[int, str]]:
    """The base model, and each kind's checkpoint of the newest iteration."""
    newest = max((iteration for iteration, _ in points), default=0)
    return [key for key in points if key[1] == "base" or key[0] == newest]


def scores(
    iteration: int,
    scores_of: Mapping[str, float],
    kept: Set[str],
    threshold: float | None,
    truth: Mapping[str, bool],
    path: Path,
) -> None:
    """Histogram of R's scores, by triplet id: kept and rejected; right and wrong where the truth is known."""
    passed = [score for name, score in scores_of.items() if name in kept]
    rejected = [score for name, score in scores_of.items() if name not in kept]
    panels = [("what the filter did", [("kept", passed, BLUE), ("rejected", rejected, ORANGE)])]
    if truth.keys() & scores_of.keys():
        right = [score for name, score in scores_of.items() if truth.get(name) is True]
        wrong = [score for name, score in scores_of.items() if truth.get(name) is False]
        panels.append(("what was true", [("right", right, GREEN), ("wrong", wrong, RED)]))
    with plt.rc_context(_STYLE):
        figure, grid = plt.subplots(
            1, len(panels), figsize=(5.2 * len(panels), 3.8), sharey=True, squeeze=False, layout="constrained"
        )
        for axes, (title, groups) in zip(grid[0], panels, strict=True):
            axes.hist(
                [values for _, values, _ in groups], _BINS, stacked=True, color=[colour for *_, colour in groups],
                label=[f"{name} (n = {len(values)})" for name, values, _ in groups], edgecolor="white", linewidth=0.3,
            )  # fmt: skip
            if threshold is not None:
                axes.axvline(
                    threshold, color="black", linestyle="--", linewidth=1.2, label=f"threshold {threshold:.2f}"
                )
            axes.set_title(f"iteration {iteration}: {title}")
            axes.set_xlabel("score of the reward model")
            axes.legend(loc="upper left")
            axes.margins(y=0.35)
        grid[0][0].set_ylabel("candidates")
        _save(figure, path)


def funnel(groups: Sequence[tuple[str, str, Mapping[str, int]]], whole: Mapping[str, int], path: Path) -> None:
    """What became of the candidates: a bar per group, as shares of what was generated; how many, beside its name."""
    panels: dict[str, list[tuple[str, Mapping[str, int]]]] = {"all candidates": [("all", whole)]}
    for dimension, name, counts in groups:
        panels.setdefault(f"by {DIMENSIONS[dimension]}", []).append((name, counts))
    heights = [len(lines) + 0.8 for lines in panels.values()]
    with plt.rc_context(_STYLE):
        figure, grid = plt.subplots(
            len(panels), 1, figsize=(7.4, 0.34 * sum(heights) + 1.1), sharex=True, squeeze=False, layout="constrained",
            height_ratios=heights,
        )  # fmt: skip
        for axes, (title, lines) in zip(grid[:, 0], panels.items(), strict=True):
            _funnel_panel(axes, lines)
            axes.set_title(title)
        grid[-1][0].set_xlabel("share of the generated, %")
        handles, labels = grid[0][0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=4)
        _save(figure, path)


def _funnel_panel(axes: Axes, lines: Sequence[tuple[str, Mapping[str, int]]]) -> None:
    """Stacked bars: kept, and where the others were lost; the largest group on top."""
    ends = (
        (BLUE, "kept", "kept"),
        (SKY, "scored, not kept", "scored"),
        (ORANGE, "parsed, not scored", "parsed"),
        (RED, "not parsed", "generated"),
    )
    left = np.zeros(len(lines))
    total = np.array([max(1, counts["generated"]) for _, counts in lines])
    reached = np.zeros(len(lines))
    for colour, text, step in ends:
        count = np.array([counts[step] for _, counts in lines], dtype=float)
        width = 100 * np.maximum(count - reached, 0) / total
        axes.barh(range(len(lines)), width, left=left, color=colour, label=text, height=0.72)
        left, reached = left + width, np.maximum(reached, count)
    for place, (_, counts) in enumerate(lines):
        share = 100 * counts["kept"] / max(1, counts["generated"])
        axes.annotate(f"{share:.1f}", (share, place), (4, 0), textcoords="offset points", va="center", fontsize=9,
                      bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6, "alpha": 0.8})  # fmt: skip
    axes.set_yticks(range(len(lines)), [f"{_short(name)} ({counts['generated']:,})" for name, counts in lines])
    axes.grid(visible=False, axis="y")
    axes.invert_yaxis()
    axes.set_xlim(0, 100)


def _short(name: str, limit: int = 28) -> str:
    return name if len(name) <= limit else f"{name[: limit - 1]}…"


def rewards(logs: Mapping[int, Sequence[tuple[float, float]]], path: Path) -> bool:
    """Mean reward of each GRPO step, and its running mean over a fifth of the steps. False when no log holds one.

    Args:
        logs: iteration → (step, reward) in the order of the steps.
        path: where to draw.
    """
    curves = {iteration: curve for iteration, curve in logs.items() if curve}
    if not curves:
        return False
    with plt.rc_context(_STYLE):
        figure, axes = plt.subplots(figsize=(6.4, 3.8), layout="constrained")
        for number, (iteration, curve) in enumerate(sorted(curves.items())):
            steps, values = np.array(curve, dtype=float).T
            colour = (BLUE, ORANGE, GREEN, RED, PINK, SKY)[number % 6]
            axes.plot(steps, values, color=colour, alpha=0.35, linewidth=1)
            window = max(1, len(values) // 5)
            running = np.convolve(values, np.ones(window) / window, mode="valid")
            axes.plot(
                steps[window - 1 :], running, color=colour, linewidth=2, label=f"grpo@{iteration} ({len(values)} steps)"
            )
        axes.set_title("GRPO: mean reward per step (thin: each; thick: running mean)")
        axes.set_xlabel("step")
        axes.set_ylabel("reward")
        axes.legend(loc="best")
        _save(figure, path)
    return True


def _save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Software": None})
    plt.close(figure)
