"""Reservations and settlements: what does not fit is not sent, and nothing that was written is forgotten."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest

from medgr2_api.generator import Prices
from medgr2_jobs.errors import BudgetSpent, ConfigError, CorruptArtifact, TemporaryError
from medgr2_jobs.generate import append_only_log, pricing, spend_ledger
from medgr2_jobs.generate.pricing import TokenUsage
from medgr2_jobs.generate.spend_ledger import SpendLedger


def run(scenario: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(scenario)


def test_settled_and_hanging_reservations_count_for_the_next_process(tmp_path: Path) -> None:
    path = tmp_path / "h-s0.jsonl"

    async def first() -> None:
        ledger = SpendLedger(path, "first")
        one, _hanging, three = [await ledger.reserve(1.0) for _ in range(3)]
        ledger.settle(ledger.charge(one, 0.25))
        unknown = ledger.charge(three, None)
        assert unknown.usd == 1.0
        ledger.settle(unknown)
        assert ledger.spent == 1.25
        await ledger.close()
        assert ledger.spent == 2.25

    run(first())
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"n": 1, "reserved": 1.0},
        {"n": 2, "reserved": 1.0},
        {"n": 3, "reserved": 1.0},
        {"n": 1, "paid": 0.25},
        {"n": 3, "paid": 1.0},
    ]

    async def second() -> None:
        ledger = SpendLedger(path, "second", 3.0)
        assert ledger.spent == 2.25
        number = await ledger.reserve(0.75)
        assert number > 3
        ledger.settle(ledger.charge(number, 0.5))
        with pytest.raises(BudgetSpent, match=r"of 3 USD .* 2\.75 are spent"):
            await ledger.reserve(0.26)
        await ledger.close()

    run(second())
    assert spend_ledger.allowance(5.0, tmp_path, "other", 2) == (5.0 - 2.75) / 2
    assert spend_ledger.allowance(5.0, tmp_path, "h", 2) == 2.5
    assert spend_ledger.allowance(1.0, tmp_path, "other", 2) == 0.0


def test_what_a_kill_kept_from_being_settled_is_settled_when_it_is_known(tmp_path: Path) -> None:
    path = tmp_path / "h-s0.jsonl"
    lines = [{"n": 1, "reserved": 1.0}, {"n": 1, "paid": 0.25}, {"n": 3, "reserved": 1.0}, {"n": 4, "reserved": 1.0}]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))

    async def scenario() -> None:
        ledger = SpendLedger(path, "")
        ledger.recover({1: 0.7, 3: 0.5, 9: 0.1})
        assert ledger.spent == 0.25 + 0.5 + 1.0, "what is settled stays, what nobody knows is at its worst case"
        ledger.recover({3: 0.5})
        assert ledger.spent == 1.75
        await ledger.close()

    run(scenario())
    assert append_only_log.read(path)[-1] == {"n": 3, "paid": 0.5}


def test_what_does_not_fit_waits_for_what_is_in_flight(tmp_path: Path) -> None:
    async def scenario() -> list[str]:
        ledger, events = SpendLedger(tmp_path / "h-s0.jsonl", "", 1.0), []
        one = await ledger.reserve(0.6)

        async def second() -> None:
            events.append("asks")
            number = await ledger.reserve(0.6)
            events.append("sends")
            ledger.settle(ledger.charge(number, 0.1))

        waiting = asyncio.create_task(second())
        await asyncio.sleep(0.05)
        assert events == ["asks"]
        ledger.settle(ledger.charge(one, 0.1))
        await waiting
        await ledger.close()
        return events

    assert run(scenario()) == ["asks", "sends"]


def test_a_stop_leaves_nothing_reserved_that_was_not_sent(tmp_path: Path) -> None:
    async def scenario() -> float:
        ledger = SpendLedger(tmp_path / "h-s0.jsonl", "", 1.0)
        one = await ledger.reserve(0.6)
        waiting = asyncio.create_task(ledger.reserve(0.6))
        just_written = asyncio.create_task(ledger.reserve(0.3))
        await asyncio.sleep(0)
        ledger.stop()
        results = await asyncio.gather(waiting, just_written, return_exceptions=True)
        assert [type(error).__name__ for error in results] == ["StopRequested", "StopRequested"]
        ledger.settle(ledger.charge(one, 0.1))
        await ledger.close()
        return ledger.spent

    assert run(scenario()) == pytest.approx(0.1)


def test_more_than_the_worst_case_ends_it(tmp_path: Path) -> None:
    async def scenario() -> None:
        ledger = SpendLedger(tmp_path / "h-s0.jsonl", "", 9.0)
        ledger.settle(ledger.charge(await ledger.reserve(0.5), 0.7))
        with pytest.raises(ConfigError, match="maxImageTokens"):
            await ledger.reserve(0.5)
        await ledger.close()

    run(scenario())


def test_a_reservation_is_on_the_disk_before_it_counts_and_many_share_one_sync(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    syncs: list[int] = []
    path = tmp_path / "h-s0.jsonl"
    honest = os.fsync
    monkeypatch.setattr(os, "fsync", lambda handle: (syncs.append(len(path.read_bytes())), honest(handle))[1])

    async def scenario() -> None:
        ledger = SpendLedger(path, "")
        syncs.clear()
        await asyncio.gather(*(ledger.reserve(1.0) for _ in range(64)))
        assert syncs, "none returned before a sync"
        assert max(syncs) == len(path.read_bytes()), "that had all of them"
        assert len(syncs) <= 2
        await ledger.close()

    run(scenario())


def test_one_process_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "h-s0.jsonl"

    async def scenario() -> None:
        ledger = SpendLedger(path, "cycle a")
        with pytest.raises(TemporaryError, match="cycle a is at work"):
            SpendLedger(path, "cycle b")
        await ledger.close()
        await SpendLedger(path, "cycle b").close()

    run(scenario())


def test_a_torn_line_is_dropped_and_a_damaged_one_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "h-s0.jsonl"
    path.write_bytes(b'{"n": 1, "reserved": 1.0}\n{"n": 1, "pa')
    assert append_only_log.read(path) == [{"n": 1, "reserved": 1.0}]

    async def scenario() -> None:
        ledger = SpendLedger(path, "")
        assert ledger.spent == 1.0
        ledger.settle(ledger.charge(await ledger.reserve(0.5), 0.5))
        await ledger.close()

    run(scenario())
    assert [entry["n"] for entry in append_only_log.read(path)] == [1, 2, 2]
    path.write_bytes(b"\0\0\0\n" + path.read_bytes())
    with pytest.raises(CorruptArtifact, match="line 1 is damaged"):
        append_only_log.read(path)


def test_prices() -> None:
    prices = Prices.model_validate(
        {"inputUSDPerMillionTokens": 0.3, "outputUSDPerMillionTokens": 2.5, "maxImageTokens": 100}
    )
    assert pricing.cost(prices, TokenUsage(1_000_000, 400_000, 600_000)) == pytest.approx(2.8)
    assert pricing.cost(prices, TokenUsage(1, 0)) == pytest.approx(3e-7)
    assert pricing.cost(prices, TokenUsage(0, 0)) == 0
    assert pricing.max_input_tokens(1000, prices) >= 1100
