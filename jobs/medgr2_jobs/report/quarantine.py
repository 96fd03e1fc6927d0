"""What prepare set aside, and why: a row per source, kind and sort of reason."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from ..store.rows.prepared import SetAside
from .cycle_frame import CycleFrame


@dataclass(frozen=True, slots=True)
class QuarantineRow:
    """Records of a source that were set aside for one reason."""

    source: str
    kind: SetAside
    reason: str
    """Field and reason, without what is one record's own."""
    records: int
    first: str
    """The first such record."""


def rows(frame: CycleFrame) -> list[QuarantineRow]:
    """The most frequent reason of each source first; empty where nothing was set aside."""
    counts: Counter[tuple[str, SetAside, str]] = Counter()
    first: dict[tuple[str, SetAside, str], str] = {}
    for record in frame.quarantine:
        key = (record.source, record.kind, record.sort)
        counts[key] += 1
        first.setdefault(key, record.record)
    order = {source: place for place, source in enumerate(dict.fromkeys(source for source, _, _ in counts))}
    return [
        QuarantineRow(*key, count, first[key])
        for key, count in sorted(counts.items(), key=lambda each: (order[each[0][0]], -each[1], each[0]))
    ]
