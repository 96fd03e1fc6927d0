"""What the report says, as plain rows: read from the artifacts of a cycle, written as CSV."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..runner.context import StageContext
from ..store.artifact import ArtifactReader
from . import funnel
from .compare import Answers, answers_of, difference, label

Row = dict[str, Any]

_CHECKPOINTS = ("base", "sft", "grpo")
#: Controls that depend on the checkpoint, in the order of the headline table.
CONTROLS = ("blank", "shuffled", "options_only")
#: References that need no model.
REFERENCES = ("option_prior", "chance")


@dataclass(frozen=True)
class Facts:
    """Everything the report is made of. Tables whose stage is not there are empty."""

    cycle: str
    iteration: int
    settings: Mapping[str, Any]
    results: list[Row]
    """`results.json`."""
    headline: list[Row]
    """A row per checkpoint and set of questions."""
    filters: list[Row]
    """A row per iteration: what the filter kept."""
    rewards: list[Row]
    """A row per reward model."""
    grpo: list[Row]
    """A row per GRPO run."""
    seen: list[Row]
    """A row per set of questions: how many of them show an image that was trained on."""
    funnel: list[Row] = field(default_factory=list)
    """A row per iteration, paradigm, modality and question type: candidates from generated to kept."""


def gather(ctx: StageContext[Any]) -> Facts:
    """Reads all inputs."""
    iterations = range(ctx.parameters.iteration + 1)
    evaluations = {t: ctx.input(f"evaluate-{t}") for t in iterations if ctx.has_input(f"evaluate-{t}")}
    results = results_of(ctx.parameters.cycle, evaluations)
    predictions = {t: reader.rows("predictions") for t, reader in evaluations.items()}
    return Facts(
        ctx.parameters.cycle,
        ctx.parameters.iteration,
        ctx.parameters.settings,
        results,
        headline(results, predictions),
        [filter_row(ctx, t) for t in iterations if ctx.has_input(f"curate-{t}")],
        [reward_row(t, ctx.input(f"reward-{t}")) for t in iterations if ctx.has_input(f"reward-{t}")],
        [_counters_row(t, ctx.input(f"grpo-{t}")) for t in iterations if ctx.has_input(f"grpo-{t}")],
        seen_rows(ctx, iterations, predictions),
        funnel.rows(ctx, iterations),
    )


def results_of(cycle: str, evaluations: Mapping[int, ArtifactReader]) -> list[Row]:
    """Rows of all evaluations, with the cycle's name first."""
    return [
        {"cycle": cycle, **row}
        for _, reader in sorted(evaluations.items())
        for row in json.loads(reader.file("results.json").read_text())
    ]


def pick(results: Iterable[Row], **wanted: Any) -> list[Row]:
    """Rows that have all the wanted values."""
    return [row for row in results if all(row[name] == value for name, value in wanted.items())]


def sets(results: Iterable[Row]) -> list[tuple[str, str]]:
    """(split, benchmark), the tests first."""
    found = dict.fromkeys((row["split"], row["benchmark"]) for row in results)
    return sorted(found, key=lambda key: key[0] != "test")


def checkpoints(results: Iterable[Row]) -> list[tuple[int, str]]:
    """(iteration, checkpoint) of all models, in the order in which the loop made them."""
    found = {(row["iteration"], row["checkpoint"]) for row in results if row["condition"] == "real"}
    return sorted(found, key=lambda key: (key[0], _CHECKPOINTS.index(key[1])))


def headline(results: Sequence[Row], predictions: Mapping[int, Sequence[Row]]) -> list[Row]:
    """A row per set of questions and checkpoint: accuracy with interval, its controls, and the step from the checkpoint
    before (paired, so its interval is narrower than the two accuracies' suggest)."""
    whole = pick(results, slice="all")
    rows = []
    for split, benchmark in sets(whole):
        here = pick(whole, split=split, benchmark=benchmark)
        references = {
            name: _value(pick(here, condition=name, metric="microAccuracy", scoring="option_logprob"))
            for name in REFERENCES
        }
        before: tuple[str, Answers] | None = None
        for iteration, checkpoint in checkpoints(here):
            mine = pick(here, iteration=iteration, checkpoint=checkpoint)
            accuracy = pick(mine, condition="real", metric="microAccuracy", scoring="option_logprob")[0]
            answers = answers_of(predictions.get(iteration, ()), split).get((checkpoint, benchmark), {})
            name = label(checkpoint, iteration)
            step = difference(before[1], answers, before[0]) if before and answers else None
            rows.append(
                {
                    "split": split,
                    "benchmark": benchmark,
                    "checkpoint": name,
                    "n": accuracy["n"],
                    "accuracy": accuracy["value"],
                    "low": accuracy["low"],
                    "high": accuracy["high"],
                    "macro": _value(pick(mine, condition="real", metric="macroAccuracy", scoring="option_logprob")),
                    "greedy": _value(pick(mine, condition="real", metric="microAccuracy", scoring="greedy")),
                    "parse_failures": _value(pick(mine, condition="real", metric="parseFailures")),
                    **{
                        name: _value(pick(mine, condition=name, metric="microAccuracy", scoring="option_logprob"))
                        for name in CONTROLS
                    },
                    **references,
                    "step": step.value if step else None,
                    "step_low": step.low if step else None,
                    "step_high": step.high if step else None,
                }
            )
            before = (name, answers) if answers else before
    return rows


def filter_row(ctx: StageContext[Any], iteration: int) -> Row:
    """What the filter of an iteration kept; against the truth where the generator knows it."""
    reader = ctx.input(f"curate-{iteration}")
    decisions = reader.rows("decisions")
    kept = {row["triplet_id"] for row in decisions if row["keep"]}
    reasons = Counter(reason for row in decisions for reason in row["reasons"])
    row: Row = {
        "iteration": iteration,
        "candidates": len(decisions),
        "kept": len(kept),
        "threshold": reader.manifest.counters.get("threshold"),
        "precision_raw": None,
        "precision_kept": None,
        "recall": None,
        "reasons": "; ".join(f"{name} {count}" for name, count in sorted(reasons.items(), key=lambda x: (-x[1], x[0]))),
    }
    truth = truth_of(ctx, iteration)
    if truth:
        right = [name for name, correct in truth.items() if correct]
        kept_known = [truth[name] for name in kept if name in truth]
        row |= {
            "precision_raw": len(right) / len(truth),
            "precision_kept": sum(kept_known) / len(kept_known) if kept_known else None,
            "recall": len(kept.intersection(right)) / len(right) if right else None,
        }
    return row


def truth_of(ctx: StageContext[Any], iteration: int) -> dict[str, bool]:
    """Whether each candidate is really right, where the generator knows (scripted); otherwise empty."""
    role = f"generate-{iteration}"
    if not ctx.has_input(role) or not ctx.input(role).has("truth.parquet"):
        return {}
    return {row["triplet_id"]: row["correct"] for row in ctx.input(role).rows("truth")}


def reward_row(iteration: int, reader: ArtifactReader) -> Row:
    """Held-out figures of a reward model, and whether it was taken over."""
    counters = reader.manifest.counters
    promoted = reader.manifest.promoted
    return {
        "iteration": iteration,
        **{name: counters.get(name) for name in ("spearman", "pairwise_accuracy", "image_sensitivity", "auroc")},
        "promoted": "first" if promoted is None else "yes" if promoted else "no, the one before stays",
    }


def _counters_row(iteration: int, reader: ArtifactReader) -> Row:
    names = (
        "prompts", "steps", "reward_first", "reward_last", "match", "parse_failures", "zero_variance_groups",
        "variance_share_reward_model", "variance_share_match",
    )  # fmt: skip
    return {"iteration": iteration, **{name: reader.manifest.counters.get(name) for name in names}}


def seen_rows(ctx: StageContext[Any], iterations: Iterable[int], predictions: Mapping[int, Sequence[Row]]) -> list[Row]:
    """For each set of questions the share whose very image is in the training data (same bytes after decoding)."""
    trained: set[str] = set()
    if ctx.has_input("prepare"):
        trained |= {row["image_sha256"] for row in ctx.input("prepare").rows("items") if row["split"] == "train"}
    for t in iterations:
        if ctx.has_input(f"curate-{t}"):
            trained |= set(ctx.input(f"curate-{t}").table("training").column("image_sha256").to_pylist())
    if not trained or not predictions:
        return []
    images: dict[tuple[str, str], dict[str, str]] = {}
    for row in predictions[min(predictions)]:
        images.setdefault((row["split"], row["benchmark"]), {})[row["item_id"]] = row["image_sha256"]
    return [
        {
            "split": split,
            "benchmark": benchmark,
            "n": len(by_item),
            "share": sum(image in trained for image in by_item.values()) / len(by_item),
        }
        for (split, benchmark), by_item in sorted(images.items())
    ]


def to_csv(rows: Sequence[Row]) -> str:
    """CSV text with a header; empty cells where a value is unknown."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: f"{x:.6g}" if isinstance(x, float) else x for name, x in row.items()} for row in rows)
    return stream.getvalue()


def _value(rows: Sequence[Row]) -> float | None:
    return rows[0]["value"] if rows else None
