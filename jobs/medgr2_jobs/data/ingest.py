"""Reading the sources and benchmarks, record by record: images to the store, questions to a file, bad ones aside.

Memory grows with the number of images, never with the number of questions.
"""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

from medgr2_api.data import (
    AnswerKey,
    Benchmark,
    DataFormat,
    OnLeak,
    OptionSpelling,
    Phantom,
    ResolvedSource,
    SourceRole,
    SplitBy,
)
from medgr2_api.hashing import sha256_of
from medgr2_api.stages.prepare import PrepareParameters

from .. import fetch
from ..duplicates.phash_index import phash
from ..errors import DataError, TemporaryError
from ..prompts import option_counts
from ..runner.context import StageContext
from ..store import atomic, tables
from ..store.rows import Split, TableRow
from ..store.rows.prepared import Image, Item, PhantomRow, QuarantinedRecord
from . import format_registry, synthetic_images
from .pseudonyms import Names
from .record import BadRecord, Place, Record
from .set_aside import Tally

Context = StageContext[PrepareParameters]
TICK = 64  # records between two looks at the clock and at the stop signal
_BATCH = 1024  # questions in memory when they are read back


@dataclass(frozen=True, slots=True)
class ReadItem(TableRow):
    """A question as it was read: which split its image falls into is known when every input is read. Kept in the
    stage's work folder."""

    TABLE = "read_items"
    VERSION = 1

    item_id: str
    source: str
    image_sha256: str
    modality: str
    question_type: str
    question: str
    options: tuple[str, ...]
    answer_index: int
    rationale: str

    def item(self, split: Split, benchmark: str) -> Item:
        """The row of table `items`."""
        return Item(
            item_id=self.item_id,
            source=self.source,
            split=split,
            benchmark=benchmark,
            image_sha256=self.image_sha256,
            modality=self.modality,
            question_type=self.question_type,
            question=self.question,
            options=self.options,
            answer_index=self.answer_index,
            rationale=self.rationale,
        )


@dataclass
class ImageRecord:
    """What is known of a stored image."""

    width: int
    height: int
    modality: str
    source: str
    source_path: str
    dataset: str
    patient: str
    phash: str
    """Empty for phantoms: they are drawn alike, and the hash tells them badly apart."""

    def row(self, sha256: str, split: Split, source: str, *, allow_external: bool) -> Image:
        """The row of table `images`."""
        return Image(
            image_sha256=sha256,
            width=self.width,
            height=self.height,
            modality=self.modality,
            source=source,
            source_path=self.source_path,
            split=split,
            allow_external=allow_external,
            dataset=self.dataset,
            patient=self.patient,
            phash=self.phash,
        )


@dataclass
class Loaded:
    """One source or benchmark, read."""

    name: str
    where: str
    """Where it stands in the spec, for messages."""
    questions: bool = True
    """Whether its questions are used, or only its images."""
    on_leak: OnLeak | None = None
    """Of a benchmark; None: it is a source."""
    allow_external: bool = False
    """Whether its images may be sent to an external provider; never those of a benchmark."""
    images: set[str] = field(default_factory=set)
    named_images: set[str] = field(default_factory=set)
    """These, those that only records name which cannot be used, and the parts of both: all of them are its own, for
    what may leave."""
    units: dict[str, set[str]] = field(default_factory=dict)
    """Images of each patient or dataset, where those must stay together."""
    attributes: dict[str, synthetic_images.Attributes] = field(default_factory=dict)
    """For phantoms: what each image (by its image_path) shows."""
    items: Path | None = None
    """Its questions: a table of `ReadItem`."""
    read_as: Counter[AnswerKey] = field(default_factory=Counter)
    """How its right answers were read, and how often; empty for phantoms, whose answers are our own."""
    tally: Tally = field(default_factory=Tally)
    """How many of its records can be used, and why others cannot."""

    def rows(self) -> Iterator[ReadItem]:
        """Its questions, in their order."""
        if self.items is not None:
            for batch in tables.batches(self.items, ReadItem, _BATCH):
                yield from batch


class Ingest:
    """Reads inputs one after another into one picture of all."""

    def __init__(self, ctx: Context, names: Names, special_tokens: frozenset[str] = frozenset()) -> None:
        self.ctx = ctx
        self.names = names
        self.special_tokens = special_tokens
        """Of the cycle's models."""
        self.images: dict[str, ImageRecord] = {}
        self.parts: dict[str, set[str]] = {}
        """For images of several parts: these."""
        self.phantoms: dict[str, PhantomRow] = {}
        """For phantoms: what each image shows."""

    def read(
        self, source: ResolvedSource | Benchmark, where: str, quarantine: tables.TableWriter[QuarantinedRecord]
    ) -> Loaded:
        """Reads one source or benchmark.

        Raises:
            DataError: nothing can be read, or too much is bad; each reason is named, with how often and where first.
        """
        loaded = Loaded(source.name, where, on_leak=source.on_leak if isinstance(source, Benchmark) else None)
        if isinstance(source, ResolvedSource):
            loaded.questions = source.role is not SourceRole.IMAGES
            loaded.allow_external = source.allow_external
        read = format_registry.reader(source, where)
        place, expected = self._place(source, loaded)
        uniform = source.option_spelling is OptionSpelling.UNIFORM and loaded.questions
        file = self.ctx.work / "items" / f"{'source' if loaded.on_leak is None else 'benchmark'}-{source.name}.parquet"
        with ExitStack() as stack:
            if loaded.questions:
                loaded.items = file
                items = stack.enter_context(tables.writer(file, ReadItem))
            for number, record in enumerate(_readable(read(place), where)):
                if number % TICK == 0:
                    self.ctx.check_stop()
                    self.ctx.progress(f"read {source.name}", number, expected)
                if uniform and isinstance(record, Record):
                    record = _spelled_alike(record)
                if isinstance(record, BadRecord):
                    quarantine.append(loaded.tally.set_aside(loaded.name, record))
                    continue
                loaded.tally.good += 1
                self._take(loaded, record, hashed=source.format is not DataFormat.PHANTOM)
                if loaded.questions and record.answer_index is not None:
                    items.append(_item(loaded, record, record.answer_index))
        if source.format is not DataFormat.PHANTOM:
            loaded.read_as = place.read_as
        loaded.named_images = place.named_images | loaded.images
        loaded.tally.check(loaded.where, self.ctx.parameters.data.max_bad_fraction)
        return loaded

    def _place(self, source: ResolvedSource | Benchmark, loaded: Loaded) -> tuple[Place, int]:
        """Where it lies by now, and how many records are expected (0: not known)."""
        ctx, where = self.ctx, loaded.where
        place = Place(
            source=source,
            root=ctx.root,
            path=ctx.root,
            what=f"{where}.uri",
            store=ctx.images,
            max_pixels=ctx.parameters.data.max_pixels,
            names=self.names.of(source),
            special_tokens=self.special_tokens,
        )
        if (phantom := source.phantom) is not None:
            loaded.questions = loaded.questions and phantom.questions_per_image > 0
            place.path = self._draw(source.name, phantom, loaded)
            return place, phantom.images * max(1, phantom.questions_per_image)
        place.path = fetch.local_path(ctx, source.uri, f"{where}.uri")
        if source.images:
            place.images = fetch.local_path(ctx, source.images, f"{where}.images")
            if not place.images.is_dir():
                raise DataError(f"{where}.images: {place.images} is not a folder")
        return place, 0

    def _draw(self, name: str, phantom: Phantom, loaded: Loaded) -> Path:
        """Draws a phantom source below the stage's work folder."""
        ctx = self.ctx
        folder = ctx.work / "phantoms" / name
        atomic.remove_tree(folder)

        def tick(done: int) -> None:
            if done % TICK == 0:
                ctx.check_stop()
                ctx.progress(f"draw {name}", done, phantom.images)

        loaded.attributes = synthetic_images.write(
            folder,
            dataset=name,
            seed=int(sha256_of({"phantoms": name, "seed": ctx.parameters.seed})[:12], 16),
            images=phantom.images,
            questions_per_image=phantom.questions_per_image,
            tick=tick,
        )
        return folder

    def _take(self, loaded: Loaded, record: Record, *, hashed: bool) -> None:
        """Notes a record's image."""
        sha256 = record.image.sha256
        if sha256 not in self.images:
            self.images[sha256] = ImageRecord(
                width=record.image.width,
                height=record.image.height,
                modality=record.modality,
                source=loaded.name,
                source_path=record.image_path,
                dataset=record.dataset,
                patient=record.patient,
                phash=(record.image.phash or phash(self.ctx.images.load(sha256))) if hashed else "",
            )
        if record.image.parts:
            self.parts.setdefault(sha256, set()).update(record.image.parts)
        loaded.images.add(sha256)
        if loaded.on_leak is None and (unit := self._unit(loaded, record)):
            loaded.units.setdefault(unit, set()).add(sha256)
        if attributes := loaded.attributes.get(record.image_path):
            self.phantoms.setdefault(
                sha256,
                PhantomRow(sha256, attributes.modality, attributes.finding, attributes.location, attributes.count),
            )

    def _unit(self, loaded: Loaded, record: Record) -> str:
        """What the record's image must stay together with; empty: it stands alone.

        Raises:
            DataError: patients must stay together, and nothing says whose image it is.
        """
        by = self.ctx.parameters.data.split.by
        if by is SplitBy.SOURCE:
            return f"{loaded.name}/{record.dataset}"
        if by is SplitBy.IMAGE:
            return ""
        if not record.patient and loaded.questions:
            raise DataError(
                f"{loaded.where}: {record.question_id!r} names no patient, and data.split.by is Patient: give every "
                "record one (patient_id, patient, or DICOM's PatientID), or split by Image or Source"
            )
        return record.patient


def _readable(records: Iterator[Record | BadRecord], where: str) -> Iterator[Record | BadRecord]:
    """The records.

    Raises:
        TemporaryError: the disk fails. It does not quote the path, which may name a patient.
    """
    try:
        yield from records
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):  # of what is written
            raise
        problem = error.strerror or type(error).__name__
        raise TemporaryError(f"{where}: a file of it cannot be read: {problem}") from None


def _spelled_alike(record: Record) -> Record | BadRecord:
    try:
        return replace(record, options=option_counts.uniform(record.options))
    except ValueError as error:
        return BadRecord(record.question_id, "options", f"{error}, which optionSpelling: Uniform takes away")


def _item(loaded: Loaded, record: Record, answer_index: int) -> ReadItem:
    return ReadItem(
        item_id=f"{loaded.name}/{record.question_id}",
        source=loaded.name,
        image_sha256=record.image.sha256,
        modality=record.modality,
        question_type=record.question_type,
        question=record.question,
        options=record.options,
        answer_index=answer_index,
        rationale=record.rationale,
    )
