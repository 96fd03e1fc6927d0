"""What reads which format. A new format is a new module and a line here; other packages bring theirs as plugins."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from dataclasses import replace

from medgr2_api.data import Benchmark, DataFormat, DataSource
from medgr2_api.plugin import PluginGroup

from .. import plugins
from . import record_checks
from .record import BadField, BadRecord, Identities, Place, Record

Reader = Callable[[Place], Iterator[Record | BadRecord]]
"""Yields the records of a source or benchmark, bad ones among them."""

#: Each module has a `Reader` called `read`; imported when needed. Phantoms are drawn to files first.
READERS = {
    DataFormat.OMNIMEDVQA: "omnimedvqa",
    DataFormat.PHANTOM: "omnimedvqa",
    DataFormat.MMMU: "mmmu",
    DataFormat.VQA_JSONL: "vqajsonl",
    DataFormat.DICOM: "dicom",
    DataFormat.IMAGE_FOLDER: "imagefolder",
}


def reader(source: DataSource | Benchmark, where: str) -> Reader:
    """What reads a source or benchmark. Names in its records are as they may be published and shown (`Place.names`).

    Args:
        source: the source or benchmark.
        where: where it stands in the spec, for messages.

    Raises:
        ConfigError: it is of another package, and is not there.
    """
    read: Reader
    if source.plugin is not None:
        read = _promised(plugins.load(PluginGroup.READERS, source.plugin, f"{where}.plugin"))
    else:
        read = importlib.import_module(f".{READERS[source.format]}", __package__).read
    return lambda place: record_checks.checked(_named(read(place), place), place)


def _named(records: Iterator[Record | BadRecord], place: Place) -> Iterator[Record | BadRecord]:
    """The records, with names that may be published and shown."""
    for number, record in enumerate(records):
        if isinstance(record, Record):
            record = replace(
                record,
                question_id=place.names.record(number, record.question_id),
                image_path=place.names.file(record.image_path),
                dataset=place.names.group(record.dataset),
            )
        yield record


def _promised(read: Reader) -> Reader:
    """A reader of another package; of its records those are bad that no table could hold.

    It may give patients as they are called, and say as it likes where a record stands.
    """

    def records(place: Place) -> Iterator[Record | BadRecord]:
        identities = Identities()
        for number, record in enumerate(read(place)):
            where = f"record[{number}]"
            if not place.names.clear:
                own = record.where if isinstance(record, BadRecord) else record.where or record.question_id
                record = replace(record, where=f"{where} {place.names.file(own)}")
            if isinstance(record, BadRecord):
                yield record
                continue
            try:
                identities.take(record.question_id, where, "question_id")
                if record.answer_index is not None and not 0 <= record.answer_index < len(record.options):
                    raise BadField(
                        "answer_index", f"{record.answer_index} is no index of {len(record.options)} options"
                    )
                yield replace(record, patient=place.names.identity(record.patient))
            except BadField as bad:
                own = f" (question_id {record.question_id!r})" if place.names.clear else ""
                yield BadRecord(where + own, bad.field, bad.reason)

    return records
