"""What reads which format. A new format is a new module and a line here; other packages bring theirs as plugins."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator

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
    """What reads a source or benchmark.

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
    return lambda place: record_checks.checked(read(place), place)


def _promised(read: Reader) -> Reader:
    """A reader of another package; of its records those are bad that no table could hold."""

    def records(place: Place) -> Iterator[Record | BadRecord]:
        identities = Identities()
        for number, record in enumerate(read(place)):
            if isinstance(record, BadRecord):
                yield record
                continue
            where = f"record[{number}]"
            try:
                identities.take(record.question_id, where, "question_id")
                if record.answer_index is not None and not 0 <= record.answer_index < len(record.options):
                    raise BadField(
                        "answer_index", f"{record.answer_index} is no index of {len(record.options)} options"
                    )
                yield record
            except BadField as bad:
                yield BadRecord(f"{where} (question_id {record.question_id!r})", bad.field, bad.reason)

    return records
