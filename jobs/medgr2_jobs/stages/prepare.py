"""Stage `prepare`: the user's data and models, fetched, checked, stored, divided; D_grade built. Runs once per
workspace input.

Publishes the tables images, image_origins, items, grades, quarantine and (for phantom data) phantoms, `splits.json`,
`inputs.json` (what was fetched, pinned), and the models under `models/`. Images go to the workspace's image store.
"""

from __future__ import annotations

import heapq
import json
import logging
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from medgr2_api.data import DataFormat
from medgr2_api.stages.prepare import PrepareParameters

from .. import fetch
from ..data import graded_dataset, pseudonyms, set_aside, splits, wordnet
from ..data.ingest import TICK, Ingest, Loaded
from ..data.splits import Leak
from ..duplicates import phash_index
from ..errors import DataError
from ..models import base_models
from ..runner.context import StageContext, StageOutcome
from ..store.rows import Split
from ..store.rows.prepared import GradedRow, Image, ImageOrigin, Item, PhantomRow, QuarantinedRecord
from ..store.tables import TableWriter

_log = logging.getLogger(__name__)
Context = StageContext[PrepareParameters]
#: Bits in which the perceptual hashes of a training image and of a benchmark's may differ (docs/decisions.md, 8).
NEAR = 4
#: Items of a split that D_grade takes other images and other rationales from: enough, and memory stays flat.
POOL = 20_000


def run(ctx: Context) -> StageOutcome:
    """Runs the stage.

    Raises:
        ConfigError: something the spec asks for is not there or not possible in this version.
        DataError: too many bad records, nothing left to train on, or a leak with `onLeak: Fail`.
        Checkpointed: asked to stop.
    """
    data = ctx.parameters.data
    base_models.check(ctx)

    with pseudonyms.opened(ctx, data) as names, ctx.writer.stream(QuarantinedRecord) as quarantine:
        ingest = Ingest(ctx, names, base_models.special_tokens(ctx))
        sources = [ingest.read(source, f"data.sources[{source.name}]", quarantine) for source in data.sources]
        benchmarks = [
            ingest.read(benchmark, f"data.benchmarks[{benchmark.name}]", quarantine) for benchmark in data.benchmarks
        ]
        pins = pseudonyms.shown_pins(fetch.pins(ctx), data, names)

    leaks = _leaks(ingest, sources, benchmarks)
    leaked = {sha256 for leak in leaks for sha256 in leak.images}
    assigned = _assign(ctx, sources, leaked)
    with ctx.writer.stream(Item) as items:
        counts, pools = _divide(ctx, items, sources, benchmarks, assigned, leaked)
    if not counts[Split.TRAIN]:
        raise DataError(_nothing_to_train(sources, leaked, counts))
    all_phantoms = all(source.format is DataFormat.PHANTOM for source in data.sources)  # they have words of their own
    lexicon = None if all_phantoms else wordnet.find(ctx.root / "cache" / "wordnet")
    with ctx.writer.stream(GradedRow) as graded:
        grade_counts = _grade(ctx, graded, sources, assigned, leaked, pools, lexicon)

    everywhere = _write_images(ctx, ingest, sources, benchmarks, assigned)
    _write_splits(ctx, everywhere, counts, leaks, [*sources, *benchmarks])
    if pins:
        ctx.writer.path("inputs.json").write_text(json.dumps(pins, indent=1, sort_keys=True) + "\n")
    ctx.images.sync()
    tested = set().union(*(loaded.images for loaded in benchmarks)) if benchmarks else set()
    counters = {
        "images": len(everywhere),
        "train_images": sum(split == Split.TRAIN for split in everywhere.values()),
        "seed_items": counts[Split.TRAIN],
        "validation_items": counts[Split.VALIDATION],
        "benchmark_items": counts[Split.TEST],
        **set_aside.counters(loaded.tally for loaded in (*sources, *benchmarks)),
        "leaked_images": len(leaked),
        "leaked_share": len(leaked & tested) / max(1, len(tested)),
        "near_leaked_images": len({sha256 for leak in leaks for sha256 in leak.near}),
        "wordnet": int(lexicon is not None),
        **grade_counts,
    }
    return StageOutcome(counters={name: float(n) for name, n in counters.items()} | base_models.publish(ctx))


def _leaks(ingest: Ingest, sources: list[Loaded], benchmarks: list[Loaded]) -> list[Leak]:
    """Training images that a benchmark holds, or nearly holds."""
    names = {
        sha256: f"{loaded.name}/{ingest.images[sha256].source_path}" for loaded in sources for sha256 in loaded.images
    }
    phashes = {sha256: facts.phash for sha256, facts in ingest.images.items() if facts.phash}
    training = sorted(sha256 for sha256 in names if sha256 in phashes)
    trained = phash_index.codes(training, phashes)
    leaks = []
    for loaded in benchmarks:
        tested = phash_index.codes(sorted(sha256 for sha256 in loaded.images if sha256 in phashes), phashes)
        close = phash_index.within(trained, tested, NEAR)
        near = {sha256 for sha256, held in zip(training, close, strict=True) if held}
        assert loaded.on_leak is not None
        leaks.append(splits.leaks(set(names), loaded.name, loaded.images, loaded.on_leak, names, near))
    return leaks


def _assign(ctx: Context, sources: list[Loaded], leaked: set[str]) -> dict[str, Split]:
    """The split of every image of the sources that may be trained on."""
    units: dict[str, set[str]] = {}
    for loaded in sources:
        for unit, images in loaded.units.items():
            units.setdefault(unit, set()).update(images - leaked)
    joined = splits.together({unit: sorted(images) for unit, images in units.items()})
    seeds = [loaded.images - leaked for loaded in sources if loaded.questions]
    assigned = splits.assign(seeds, ctx.parameters.data.split, ctx.parameters.seed, joined)
    for loaded in sources:
        for sha256 in loaded.images - leaked:
            assigned.setdefault(sha256, Split.TRAIN)
    return assigned


def _kept(loaded: Loaded, assigned: dict[str, Split], leaked: set[str]) -> Iterator[Item]:
    """A source's or benchmark's rows of table `items`."""
    for row in loaded.rows():
        if loaded.on_leak is not None:
            yield row.item(Split.TEST, loaded.name)
        elif row.image_sha256 not in leaked:
            split = assigned[row.image_sha256]
            yield row.item(split, loaded.name if split is Split.TEST else "")


def _divide(
    ctx: Context,
    items: TableWriter[Item],
    sources: list[Loaded],
    benchmarks: list[Loaded],
    assigned: dict[str, Split],
    leaked: set[str],
) -> tuple[Counter[str], dict[Split, list[Item]]]:
    """Writes `items`; returns how many each split has (and each benchmark, as `test/<name>`), and D_grade's pools."""
    counts: Counter[str] = Counter()
    samples = {Split.TRAIN: _Sample(POOL), Split.VALIDATION: _Sample(POOL)}
    for loaded in [*sources, *benchmarks]:
        for number, row in enumerate(_kept(loaded, assigned, leaked)):
            if number % TICK == 0:
                ctx.check_stop()
            items.append(row)
            counts[row.split] += 1
            counts[f"{row.split}/{row.benchmark}".rstrip("/")] += bool(row.benchmark)
            if row.split in samples:
                samples[row.split].add(row)
    return counts, {split: sample.rows() for split, sample in samples.items()}


class _Sample:
    """At most `size` of the items, in their order. Chosen by their images: all that is known of one is there, or
    nothing."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._heap: list[tuple[int, int, Item]] = []
        self._seen = 0

    def add(self, row: Item) -> None:
        entry = (-splits.lot(row.image_sha256), self._seen, row)
        self._seen += 1
        if len(self._heap) < self.size:
            heapq.heappush(self._heap, entry)
        else:
            heapq.heappushpop(self._heap, entry)

    def rows(self) -> list[Item]:
        return [row for _, _, row in sorted(self._heap, key=lambda entry: entry[1])]


def _grade(
    ctx: Context,
    graded: TableWriter[GradedRow],
    sources: list[Loaded],
    assigned: dict[str, Split],
    leaked: set[str],
    pools: dict[Split, list[Item]],
    lexicon: wordnet.Lexicon | None,
) -> dict[str, int]:
    """Writes D_grade of the seed: train items, and the held-out rows from the validation items; returns counters."""
    counts: Counter[str] = Counter()
    for split, pool in pools.items():
        chosen = (row for loaded in sources for row in _kept(loaded, assigned, leaked) if row.split is split)
        for number, row in enumerate(_rows(ctx, chosen, pool, lexicon)):
            if number % TICK == 0:
                ctx.check_stop()
                ctx.progress(f"grade {split}", number, 0)
            graded.append(row)
            counts["heldout_grade_rows" if row.split is Split.HELDOUT else "grade_rows"] += 1
            counts[f"grade_{row.grade}"] += 1
    sizes = {name: counts.pop(name, 0) for name in ("grade_rows", "heldout_grade_rows")}
    return sizes | dict(sorted(counts.items()))


def _rows(
    ctx: Context, chosen: Iterable[Item], pool: list[Item], lexicon: wordnet.Lexicon | None
) -> Iterator[GradedRow]:
    return graded_dataset.rows(
        chosen,
        pool=pool,
        grades=ctx.parameters.grades,
        mismatches=ctx.parameters.mismatches_per_item,
        answer_format=ctx.parameters.answer_format,
        seed=ctx.parameters.seed,
        lexicon=lexicon,
    )


def _write_images(
    ctx: Context, ingest: Ingest, sources: list[Loaded], benchmarks: list[Loaded], assigned: dict[str, Split]
) -> dict[str, Split]:
    """Writes `images` with `image_origins` (and `phantoms`): what may be trained on, and what benchmarks hold; returns
    each one's split."""
    tested = set().union(*(loaded.images for loaded in benchmarks)) if benchmarks else set()
    names = {sha256: loaded.name for loaded in reversed(benchmarks) for sha256 in loaded.images}
    everywhere: dict[str, Split] = {}
    with ctx.writer.stream(Image) as table, ctx.writer.stream(ImageOrigin) as origins:
        for sha256, facts in ingest.images.items():
            if sha256 not in assigned and sha256 not in tested:
                continue  # it only looked like a benchmark's: no split has it
            everywhere[sha256] = assigned.get(sha256, Split.TEST)
            source = facts.source if sha256 in assigned else names[sha256]
            shown = {sha256, *ingest.parts.get(sha256, ())}
            holders = [loaded for loaded in [*sources, *benchmarks] if not shown.isdisjoint(loaded.named_images)]
            origins.extend(ImageOrigin(sha256, loaded.name) for loaded in holders)
            allowed = all(loaded.allow_external for loaded in holders)  # one that says no is enough
            table.append(facts.row(sha256, everywhere[sha256], source, allow_external=allowed))
    if phantoms := [row for sha256, row in ingest.phantoms.items() if sha256 in everywhere]:
        ctx.writer.table(PhantomRow, phantoms)
    return everywhere


def _write_splits(
    ctx: Context, everywhere: dict[str, Split], counts: Counter[str], leaks: list[Leak], inputs: list[Loaded]
) -> None:
    split = ctx.parameters.data.split
    summary: dict[str, Any] = {
        "hash": splits.digest(everywhere),
        "by": str(split.by),
        "seed": ctx.parameters.seed,
        "images": dict(Counter(everywhere.values())),
        "items": {name: n for name, n in counts.items() if n and name != Split.TEST},
        "leaks": [
            {
                "benchmark": leak.benchmark,
                "images": sorted(leak.images),
                "near": sorted(leak.near),
                "shareOfBenchmark": leak.share,
            }
            for leak in leaks
        ],
    }
    if read_as := {loaded.name: dict(loaded.read_as) for loaded in inputs if loaded.read_as}:
        summary["answersReadAs"] = read_as
        for name, ways in read_as.items():
            told = ", ".join(f"{way} ({n:,})" for way, n in ways.items())
            _log.info("%s: right answers read as %s", name, told, extra={"fields": {"source": name, "readAs": ways}})
    ctx.writer.path("splits.json").write_text(json.dumps(summary, indent=1, sort_keys=True) + "\n")


def _nothing_to_train(sources: list[Loaded], leaked: set[str], counts: Counter[str]) -> str:
    if not any(loaded.questions for loaded in sources):
        return "data.sources: none has questions and answers; at least one source with role Seed is needed"
    return (
        f"nothing is left to train on: the train split has no item ({counts[Split.VALIDATION]} validation, "
        f"{counts[Split.TEST]} test; {len(leaked)} image(s) were dropped because a benchmark holds them). Add data, or "
        "lower data.split.validationFraction and testFraction"
    )
