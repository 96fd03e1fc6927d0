"""What a cycle pays at its provider, on the disk: reserved at its worst case before a request is sent, settled after.

One file per artifact and shard, `cycles/<cycle>/spend/<cycle uid>/<input hash>-s<shard>.jsonl`. A reservation that was
never settled (`kill -9`) stays charged. Each file is written by one process at a time; the others' are only read.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from ..errors import BudgetSpent, ConfigError
from . import append_only_log
from .rate_control import Stopped

_SUFFIX = ".jsonl"


class Ledger:
    """The account of one shard of one artifact. `spent` may never pass `allowance`."""

    def __init__(self, path: Path, holder: str, allowance: float | None = None) -> None:
        """
        Args:
            path: the file.
            holder: who writes it.
            allowance: US dollars that this file may come to, all attempts together; None: no limit.

        Raises:
            TemporaryError: another process has it open.
        """
        self._lines = append_only_log.Lines(path, holder)
        self.allowance = allowance
        self._settled, self._number = _total(self._lines.found), len(self._lines.found)
        self._lines.found = []
        self._open: dict[int, float] = {}
        self._changed = asyncio.Event()
        self._beyond = ""
        self._stopping = False

    def stop(self) -> None:
        """From now on nothing is reserved; whoever waits is told."""
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
            The reservation's number, for `settle`.

        Raises:
            BudgetSpent: it does not fit, and nothing is in flight.
            ConfigError: an earlier request cost more than its worst case, so that nothing is certain any more.
            Stopped: asked to stop meanwhile.
        """
        self._check_stop()
        while self._beyond or not self._fits(usd):
            if not self._open:
                if self._beyond:
                    raise ConfigError(self._beyond)
                raise BudgetSpent(
                    f"budget.generatorUSD: of {self.allowance:.6g} USD for this part of the work {self.spent:.6g} "
                    f"are spent, and the next question may cost up to {usd:.3g}"
                )
            self._changed.clear()
            await self._changed.wait()
            self._check_stop()
        self._number += 1
        number = self._number
        self._lines.append({"n": number, "reserved": usd})
        self._open[number] = usd
        try:
            await self._lines.synced()
            self._check_stop()
        except BaseException:
            self.settle(number, 0.0)  # nothing was sent
            raise
        return number

    def _fits(self, usd: float) -> bool:
        return self.allowance is None or self._settled + sum(self._open.values()) + usd <= self.allowance

    def _check_stop(self) -> None:
        if self._stopping:
            raise Stopped

    def settle(self, number: int, usd: float | None) -> float:
        """Books what a request has cost; None: nobody knows, so its worst case stays charged. Returns what is booked.

        Raises:
            DiskFull: it could not be written; its worst case stays charged.
        """
        reserved = self._open.pop(number)
        paid = reserved if usd is None else usd
        self._settled += paid
        self._changed.set()
        if paid > reserved and self.allowance is not None:
            self._beyond = (
                f"a question has cost {paid:.6g} USD, more than the {reserved:.6g} that it could at most: "
                "raise generator.prices.maxImageTokens, or correct the prices"
            )
        self._lines.append({"n": number, "paid": paid})
        return paid

    def release(self) -> None:
        """Nothing comes of what is in flight any more: it stays charged at its worst case."""
        self._settled += sum(self._open.values())
        self._open.clear()

    async def close(self) -> None:
        """Lets go of the file."""
        self.release()
        await self._lines.close()


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
