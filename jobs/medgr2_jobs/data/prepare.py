"""Stage `prepare`: the user's data and models, checked, stored, divided; D_grade built. Runs once per workspace input.

Publishes the tables images, items, grades, quarantine and (for phantom data) phantoms, `splits.json`, and the models
under `models/`. Images go to the workspace's image store.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medgr2_api.base import sha256_of
from medgr2_api.data import Benchmark, DataFormat, DataSource, Phantom, SourceRole
from medgr2_api.parameters import PrepareParameters

from ..context import Outcome, StageContext
from ..errors import ConfigError, DataError
from ..store import atomic
from . import basemodels, grades, omnimedvqa, phantoms, splits
from .omnimedvqa import BadRecord, Record
from .splits import TEST, TRAIN, VALIDATION, Leak

Context = StageContext[PrepareParameters]
_SHOWN = 5  # bad records in a message
_TICK = 64  # records between two looks at the clock and at the stop signal


@dataclass
class _Loaded:
    """One source or benchmark, read."""

    name: str
    where: str
    """Where it stands in the spec, for messages."""
    records: list[Record] = field(default_factory=list)
    bad: list[BadRecord] = field(default_factory=list)
    attributes: dict[str, phantoms.Attributes] = field(default_factory=dict)
    """For phantoms: what each image (by its image_path) shows."""
    questions: bool = True
    """Whether its questions are used, or only its images."""
    allow_external: bool = True

    @property
    def images(self) -> set[str]:
        return {record.image.sha256 for record in self.records}


def run(ctx: Context) -> Outcome:
    """Runs the stage.

    Raises:
        ConfigError: something the spec asks for is not there or not possible in this version.
        DataError: too many bad records, nothing left to train on, or a leak with `onLeak: Fail`.
        Checkpointed: asked to stop.
    """
    data = ctx.parameters.data
    splits.check(data.split)
    _check_formats(ctx)
    basemodels.check(ctx.root, ctx.parameters)

    sources = [_load(ctx, source, f"data.sources[{source.name}]") for source in data.sources]
    benchmarks = [_load(ctx, benchmark, f"data.benchmarks[{benchmark.name}]") for benchmark in data.benchmarks]
    for loaded in [*sources, *benchmarks]:
        _check_bad(loaded, data.max_bad_fraction)

    found = _leaks(sources, benchmarks, data.benchmarks)
    leaked = {sha256 for leak in found for sha256 in leak.images}
    for loaded in sources:
        loaded.records = [record for record in loaded.records if record.image.sha256 not in leaked]
    assigned = splits.assign([loaded.images for loaded in sources if loaded.questions], data.split, ctx.parameters.seed)
    for loaded in sources:
        for sha256 in loaded.images:
            assigned.setdefault(sha256, TRAIN)

    items = [row for loaded in sources if loaded.questions for row in _items(loaded, assigned)]
    items += [row for loaded in benchmarks for row in _items(loaded, None)]
    counts = Counter(row["split"] for row in items)
    if not counts[TRAIN]:
        raise DataError(_nothing_to_train(sources, leaked, counts))
    graded = _grades(ctx, items)
    counters = _write(ctx, sources, benchmarks, assigned, items, graded, found)
    ctx.images.sync()
    return Outcome(counters={**counters, **basemodels.publish(ctx)})


def _check_formats(ctx: Context) -> None:
    """Refuses, before any work, the formats that the API knows and this version does not read."""
    data = ctx.parameters.data
    for kind, inputs in (("sources", data.sources), ("benchmarks", data.benchmarks)):
        for given in inputs:
            if given.format not in (DataFormat.PHANTOM, DataFormat.OMNIMEDVQA):
                raise ConfigError(
                    f"data.{kind}[{given.name}].format: {given.format}: this version reads OmniMedVQA and Phantom"
                )


def _load(ctx: Context, given: DataSource | Benchmark, where: str) -> _Loaded:
    """Reads one source or benchmark; phantoms are drawn to files first and go through the same loader."""
    loaded = _Loaded(given.name, where)
    if isinstance(given, DataSource):
        loaded.questions = given.role is not SourceRole.IMAGES
        loaded.allow_external = given.allow_external is not False
    uri, images = given.uri, given.images
    expected = 0
    if given.format is DataFormat.PHANTOM:
        phantom = given.phantom or Phantom()
        expected = phantom.images * max(1, phantom.questions_per_image)
        loaded.questions = loaded.questions and phantom.questions_per_image > 0
        uri = str(_draw(ctx, given.name, phantom, loaded).relative_to(ctx.root))
        images = ""
    records = omnimedvqa.read(
        ctx.root,
        uri,
        images,
        store=ctx.images,
        max_pixels=ctx.parameters.data.max_pixels,
        what=f"{where}.uri",
    )
    for number, record in enumerate(records):
        if number % _TICK == 0:
            ctx.check_stop()
            ctx.progress(f"read {given.name}", number, expected)
        if isinstance(record, BadRecord):
            loaded.bad.append(record)
        else:
            loaded.records.append(record)
    return loaded


def _draw(ctx: Context, name: str, phantom: Phantom, loaded: _Loaded) -> Path:
    """Draws a phantom source below the stage's work folder."""
    folder = ctx.work / "phantoms" / name
    atomic.remove_tree(folder)

    def tick(done: int) -> None:
        if done % _TICK == 0:
            ctx.check_stop()
            ctx.progress(f"draw {name}", done, phantom.images)

    loaded.attributes = phantoms.write(
        folder,
        dataset=name,
        seed=int(sha256_of({"phantoms": name, "seed": ctx.parameters.seed})[:12], 16),
        images=phantom.images,
        questions_per_image=phantom.questions_per_image,
        tick=tick,
    )
    return folder


def _check_bad(loaded: _Loaded, most: float) -> None:
    """Raises DataError when too many of the records cannot be used, naming the first few."""
    total = len(loaded.records) + len(loaded.bad)
    if total == 0:
        raise DataError(f"{loaded.where}: holds no records")
    shown = "; ".join(str(bad) for bad in loaded.bad[:_SHOWN])
    if len(loaded.bad) > _SHOWN:
        shown += f"; and {len(loaded.bad) - _SHOWN} more"
    if loaded.bad and not loaded.records:
        raise DataError(f"{loaded.where}: none of its {total} records can be used: {shown}")
    if len(loaded.bad) > most * total:
        raise DataError(
            f"{loaded.where}: {len(loaded.bad)} of {total} records cannot be used, more than data.maxBadFraction "
            f"({most:g}) allows: {shown}. Correct them, or raise data.maxBadFraction to set them aside"
        )


def _leaks(sources: list[_Loaded], benchmarks: list[_Loaded], specs: list[Benchmark]) -> list[Leak]:
    names = {
        record.image.sha256: f"{loaded.name}/{record.image_path}" for loaded in sources for record in loaded.records
    }
    return [
        splits.leaks(set(names), loaded.name, loaded.images, spec.on_leak, names)
        for loaded, spec in zip(benchmarks, specs, strict=True)
    ]


def _items(loaded: _Loaded, assigned: dict[str, str] | None) -> Iterator[dict[str, Any]]:
    """Rows of table `items`; without `assigned` (a benchmark) all are test."""
    for record in loaded.records:
        split = TEST if assigned is None else assigned[record.image.sha256]
        yield {
            "item_id": f"{loaded.name}/{record.question_id}",
            "source": loaded.name,
            "split": split,
            "benchmark": loaded.name if split == TEST else "",
            "image_sha256": record.image.sha256,
            "modality": record.modality,
            "question_type": record.question_type,
            "question": record.question,
            "options": list(record.options),
            "answer_index": record.answer_index,
            "rationale": record.rationale,
        }


def _nothing_to_train(sources: list[_Loaded], leaked: set[str], counts: Counter[str]) -> str:
    if not any(loaded.questions for loaded in sources):
        return "data.sources: none has questions and answers; at least one source with role Seed is needed"
    return (
        f"nothing is left to train on: the train split has no item ({counts[VALIDATION]} validation, {counts[TEST]} "
        f"test; {len(leaked)} image(s) were dropped because a benchmark holds them). Add data, or lower "
        "data.split.validationFraction and testFraction"
    )


def _grades(ctx: Context, items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """D_grade of the seed: train items, and the held-out rows from the validation items."""
    graded: list[dict[str, Any]] = []
    for split in (TRAIN, VALIDATION):
        chosen = [item for item in items if item["split"] == split]
        rows = grades.rows(
            chosen,
            grades=ctx.parameters.grades,
            mismatches=ctx.parameters.mismatches_per_item,
            answer_format=ctx.parameters.answer_format,
            seed=ctx.parameters.seed,
        )
        for number, row in enumerate(rows):
            if number % _TICK == 0:
                ctx.check_stop()
                ctx.progress(f"grade {split}", number, 0)
            graded.append(row)
    return graded


def _write(
    ctx: Context,
    sources: list[_Loaded],
    benchmarks: list[_Loaded],
    assigned: dict[str, str],
    items: list[dict[str, Any]],
    graded: list[dict[str, Any]],
    found: list[Leak],
) -> dict[str, float]:
    """Writes the tables and `splits.json`; returns the counters."""
    images: dict[str, dict[str, Any]] = {}
    truth: dict[str, dict[str, Any]] = {}
    for loaded in [*sources, *benchmarks]:
        for record in loaded.records:
            sha256 = record.image.sha256
            row = images.setdefault(
                sha256,
                {
                    "image_sha256": sha256,
                    "width": record.image.width,
                    "height": record.image.height,
                    "modality": record.modality,
                    "source": loaded.name,
                    "source_path": record.image_path,
                    "split": assigned.get(sha256, TEST),
                    "allow_external": loaded.allow_external,
                },
            )
            row["allow_external"] = row["allow_external"] and loaded.allow_external  # the stricter source decides
            if shown := loaded.attributes.get(record.image_path):
                values = {kind: shown.value(kind) for kind in phantoms.KINDS}
                truth.setdefault(sha256, {"image_sha256": sha256, **values})
    quarantine = [
        {"source": loaded.name, "record": bad.where, "field": bad.field, "reason": bad.reason}
        for loaded in [*sources, *benchmarks]
        for bad in loaded.bad
    ]
    ctx.writer.table("images", list(images.values()))
    ctx.writer.table("items", items)
    ctx.writer.table("grades", graded)
    ctx.writer.table("quarantine", quarantine)
    if truth:
        ctx.writer.table("phantoms", list(truth.values()))

    everywhere = {sha256: row["split"] for sha256, row in images.items()}
    leaked = {sha256 for leak in found for sha256 in leak.images}
    summary = {
        "hash": splits.digest(everywhere),
        "by": str(ctx.parameters.data.split.by),
        "seed": ctx.parameters.seed,
        "images": dict(Counter(everywhere.values())),
        "items": dict(Counter(f"{row['split']}/{row['benchmark']}".rstrip("/") for row in items)),
        "leaks": [
            {"benchmark": leak.benchmark, "images": sorted(leak.images), "shareOfBenchmark": leak.share}
            for leak in found
        ],
    }
    ctx.writer.path("splits.json").write_text(json.dumps(summary, indent=1, sort_keys=True) + "\n")

    counts = Counter(row["split"] for row in items)
    tested = set().union(*(loaded.images for loaded in benchmarks)) if benchmarks else set()
    counters: dict[str, float] = {
        "images": len(images),
        "train_images": sum(split == TRAIN for split in everywhere.values()),
        "seed_items": counts[TRAIN],
        "validation_items": counts[VALIDATION],
        "benchmark_items": counts[TEST],
        "quarantined": len(quarantine),
        "leaked_images": len(leaked),
        "leaked_share": len(leaked) / max(1, len(tested)),
        "grade_rows": sum(row["split"] == TRAIN for row in graded),
        "heldout_grade_rows": sum(row["split"] == grades.HELDOUT for row in graded),
    }
    counters |= {f"grade_{name}": float(n) for name, n in sorted(Counter(row["grade"] for row in graded).items())}
    return {name: float(value) for name, value in counters.items()}
