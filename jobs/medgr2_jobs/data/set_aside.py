"""How many records of a source were set aside, and why: one table of reasons for all readers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from ..errors import DataError
from ..store.rows.prepared import QuarantinedRecord, SetAside
from .record import BadRecord

_SHOWN = 8  # reasons in a message
#: How a message speaks of those that `maxBadFraction` does not count.
_BESIDE = {
    SetAside.NO_PICTURE: "hold no picture",
    SetAside.WITHHELD: "are withheld because text in their pixels may name the patient",
}


@dataclass
class Tally:
    """Records of a source or benchmark, counted."""

    good: int = 0
    counts: Counter[tuple[SetAside, str]] = field(default_factory=Counter)
    """By kind and sort of reason."""
    first: dict[str, str] = field(default_factory=dict)
    """Of each sort of reason, the first record and its whole reason."""

    def set_aside(self, source: str, bad: BadRecord) -> QuarantinedRecord:
        """Counts a record; returns its row of table `quarantine`."""
        row = QuarantinedRecord(source, bad.where, bad.field, bad.reason, bad.kind)
        self.counts[row.kind, row.sort] += 1
        self.first.setdefault(row.sort, str(bad))
        return row

    def of(self, kind: SetAside) -> int:
        """How many were set aside in that way."""
        return sum(count for (each, _), count in self.counts.items() if each is kind)

    def check(self, where: str, most: float) -> None:
        """Raises DataError when there is nothing to use, or too many of the records that should be are not.

        Args:
            where: where the source stands in the spec.
            most: `data.maxBadFraction`.
        """
        bad, aside = self.of(SetAside.UNUSABLE), self.counts.total()
        if self.good + aside == 0:
            raise DataError(f"{where}: holds no records")
        if not self.good:
            raise DataError(f"{where}: none of its {aside} records can be used: {self._reasons()}")
        if bad > most * (self.good + bad):
            raise DataError(
                f"{where}: {bad} of {self.good + bad} records cannot be used, more than data.maxBadFraction "
                f"({most:g}) allows: {self._reasons()}. Correct them, or raise data.maxBadFraction to set them aside"
            )

    def _reasons(self) -> str:
        """Each reason with its count and the first record that has it, the most frequent first."""
        unusable = [(sort, count) for (kind, sort), count in self.counts.most_common() if kind is SetAside.UNUSABLE]
        told = [
            f"{self.first[sort]}" if count == 1 else f"{count} x {sort} (first {self.first[sort]})"
            for sort, count in unusable[:_SHOWN]
        ]
        if more := unusable[_SHOWN:]:
            told.append(f"{sum(count for _, count in more)} more for {len(more)} other reasons")
        told += [f"{count} {what}" for kind, what in _BESIDE.items() if (count := self.of(kind))]
        hint = " (`medgr2 whois file-…` says which file that is)" if any("file-" in text for text in told) else ""
        return "; ".join(told) + hint


def counters(tallies: Iterable[Tally]) -> dict[str, int]:
    """Headline figures over all sources and benchmarks."""
    counts: Counter[SetAside] = Counter()
    for tally in tallies:
        counts.update({kind: tally.of(kind) for kind in SetAside})
    return {
        "quarantined": counts[SetAside.UNUSABLE],
        "no_picture": counts[SetAside.NO_PICTURE],
        "withheld": counts[SetAside.WITHHELD],
    }
