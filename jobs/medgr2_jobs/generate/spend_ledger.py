"""What a cycle pays at its provider, on the disk: reserved at its worst case before a request is sent, settled after.

One file per artifact and shard, `cycles/<cycle>/spend/<cycle uid>/<input hash>-s<shard>.jsonl`. A reservation that was
never settled (`kill -9`) stays charged. Each file is written by one process at a time; the others' are only read.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import BudgetSpent, ConfigError
from . import append_only_log
from .rate_control import StopRequested

_SUFFIX = ".jsonl"


@dataclass(frozen=True)
class Charge:
    """What a request comes to."""

    number: int
    """Of its reservation."""
    usd: float


class SpendLedger:
    """The ledger of one shard of one artifact. `spent` may never pass `allowance`."""

    def __init__(self, path: Path, holder: str, allowance: float | None = None) -> None:
        """
        Args:
            path: the file.
            holder: who writes it.
            allowance: US dollars that this file may come to, all attempts together; None: no limit.

        Raises:
            TemporaryError: another process has it open.
        """
        self._log = append_only_log.AppendOnlyLog(path, holder)
        self.allowance = allowance
        self._settled, self._last_number = _total(self._log.entries), len(self._log.entries)
        self._hanging = _hanging(self._log.entries)
        self._log.entries = []
        self._reservations: dict[int, float] = {}
        self._changed = asyncio.Event()
        self._overrun = ""
        self._stopping = False

    def recover(self, charges: Mapping[int, float]) -> None:
        """Settles what the journal knows to be paid, and a kill kept from being written here.

        Args:
            charges: US dollars by the reservation's number.
        """
        for number in sorted(self._hanging.keys() & charges.keys()):
            self._log.append({"n": number, "paid": charges[number]})
            self._settled += charges[number] - self._hanging.pop(number)

    def stop(self) -> None:
        """From now on nothing is reserved; those that wait raise StopRequested."""
        self._stopping = True
        self._changed.set()

    @property
    def spent(self) -> float:
        """US dollars paid so far by all attempts, without what is being asked just now."""
        return self._settled

    async def reserve(self, usd: float) -> int:
        """Sets aside what a request may cost at most; it may be sent when this returns, and not before.

        Where it does not fit, waits until requests in flight have turned out cheaper.

        Returns:
            The reservation's number, for `charge`.

        Raises:
            BudgetSpent: it does not fit, and nothing is in flight.
            ConfigError: an earlier request cost more than its worst case, so that nothing is certain any more.
            StopRequested: asked to stop meanwhile.
        """
        self._check_stop()
        while self._overrun or not self._fits(usd):
            if not self._reservations:
                if self._overrun:
                    raise ConfigError(self._overrun)
                raise BudgetSpent(
                    f"budget.generatorUSD: of {self.allowance:.6g} USD for this part of the work {self.spent:.6g} "
                    f"are spent, and the next question may cost up to {usd:.3g}"
                )
            self._changed.clear()
            await self._changed.wait()
            self._check_stop()
        self._last_number += 1
        number = self._last_number
        self._log.append({"n": number, "reserved": usd})
        self._reservations[number] = usd
        try:
            await self._log.synced()
            self._check_stop()
        except BaseException:
            self.settle(Charge(number, 0.0))  # nothing was sent
            raise
        return number

    def _fits(self, usd: float) -> bool:
        return self.allowance is None or self._settled + sum(self._reservations.values()) + usd <= self.allowance

    def _check_stop(self) -> None:
        if self._stopping:
            raise StopRequested

    def charge(self, number: int, usd: float | None) -> Charge:
        """What a request has cost; None: nobody knows, so it is its worst case."""
        return Charge(number, self._reservations[number] if usd is None else usd)

    def settle(self, charge: Charge) -> None:
        """Books what a request has cost.

        Raises:
            DiskFull: it could not be written; its worst case stays charged.
        """
        reserved = self._reservations.pop(charge.number)
        self._settled += charge.usd
        self._changed.set()
        if charge.usd > reserved and self.allowance is not None:
            self._overrun = (
                f"a question has cost {charge.usd:.6g} USD, more than the {reserved:.6g} that it could at most: "
                "raise generator.prices.maxImageTokens, or correct the prices"
            )
        self._log.append({"n": charge.number, "paid": charge.usd})

    def release(self) -> None:
        """Nothing comes of what is in flight any more: it stays charged at its worst case."""
        self._settled += sum(self._reservations.values())
        self._reservations.clear()

    async def close(self) -> None:
        """Lets go of the file."""
        self.release()
        await self._log.close()


def path_of(folder: Path, name: str, shard: int = 0) -> Path:
    """The file of an artifact's shard; `name` is its input hash."""
    return folder / f"{name}-s{shard}{_SUFFIX}"


def allowance(budget: float, folder: Path, name: str, shards: int) -> float:
    """What one shard may spend: what other artifacts of the cycle have left of the budget, divided by the shards.

    Args:
        budget: US dollars for the whole cycle.
        folder: where the cycle's ledgers lie.
        name: the artifact's input hash.
        shards: parts of the artifact's work.
    """
    others = [path for path in sorted(folder.glob(f"*{_SUFFIX}")) if path.name.rpartition("-s")[0] != name]
    return max(0.0, budget - sum(_total(append_only_log.read(path)) for path in others)) / shards


def _total(entries: list[dict[str, Any]]) -> float:
    """What a file says was paid: settled requests, and the others at their worst case."""
    paid: dict[int, float] = {}
    for entry in entries:
        paid[entry["n"]] = entry.get("paid", entry.get("reserved", 0.0))
    return sum(paid.values())


def _hanging(entries: list[dict[str, Any]]) -> dict[int, float]:
    """The reservations that were never settled, by number."""
    settled = {entry["n"] for entry in entries if "paid" in entry}
    return {entry["n"]: entry["reserved"] for entry in entries if "reserved" in entry and entry["n"] not in settled}
