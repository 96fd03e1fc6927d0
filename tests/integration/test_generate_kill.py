"""kill -9 at any moment: no question is paid for twice but those in flight, none is lost, the budget holds."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from medgr2_api.stage_contract import RESULT_PATH_ENV, StageResult
from medgr2_jobs.generate.append_only_log import AppendOnlyLog
from medgr2_jobs.store.rows.candidates import Candidate
from tests.support import jobs_fixtures, kill_run
from tests.support.chat_server import Answer, ChatServer, retry, serving
from tests.support.generate_fixtures import PRICES, QUESTION_USD, asked, ledgers, outcomes, prepare_root
from tests.support.light_forkserver import light_forkserver

ROWS, KILLS, SHARDS, IN_FLIGHT = 5000, 50, 4, 8


@pytest.fixture
def server() -> Iterator[ChatServer]:
    with serving() as running:
        yield running


@dataclass
class Kill:
    """What a `kill -9` leaves at one point: the workspace, and what the provider has charged by then."""

    root: Path
    point: str
    charged: Counter[int]


def kills(root: Path, server: ChatServer, monkeypatch: pytest.MonkeyPatch) -> list[Kill]:
    """From now on a copy of the workspace before and after each write and each fsync of the two logs, and in the middle
    of each line."""
    copies: list[Kill] = []
    append, fsync = AppendOnlyLog.append, AppendOnlyLog._fsync

    def copy(point: str, log: AppendOnlyLog, torn: int = 0) -> None:
        folder = root.parent / f"kill-{len(copies):03d}"
        shutil.copytree(root, folder / "workspace", symlinks=True)
        if torn:
            path = folder / "workspace" / log.path.relative_to(root)
            path.write_bytes(path.read_bytes()[:-torn])
        copies.append(Kill(folder / "workspace", f"{point} {log.path.name}", server.ledger.charged.copy()))

    def writing(self: AppendOnlyLog, document: dict[str, Any]) -> None:
        copy(f"before {document} in", self)
        append(self, document)
        copy(f"within {document} in", self, torn=len(json.dumps(document)) // 2)
        copy(f"after {document} in", self)

    async def syncing(self: AppendOnlyLog) -> None:
        copy("before an fsync of", self)
        await fsync(self)
        copy("after an fsync of", self)

    monkeypatch.setattr(AppendOnlyLog, "append", writing)
    monkeypatch.setattr(AppendOnlyLog, "_fsync", syncing)
    return copies


def test_a_kill_at_any_point_pays_nothing_twice_but_what_was_in_flight(
    tmp_path: Path, server: ChatServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of three questions one is answered, one is answered and corrected, one is refused at first: four paid answers."""
    root = prepare_root(tmp_path, monkeypatch)
    monkeypatch.setenv(RESULT_PATH_ENV, str(tmp_path / "result.json"))
    kinds: dict[int, int] = {}

    def answer(number: int, body: dict[str, Any]) -> Answer:
        kind = kinds.setdefault(body["seed"], len(kinds))
        if kind == 1 and len(body["messages"]) == 1:
            return Answer("Let me think.")
        return retry(503) if kind == 2 and number == 1 else Answer()

    server.answer = answer
    request = asked(root, server.url, candidates=3, concurrency=1, about={"prices": PRICES}, generator_budget_usd=1.0)
    with monkeypatch.context() as watched:
        killed = kills(root, server, watched)
        undisturbed = jobs_fixtures.run(root, request).rows(Candidate)
    assert server.ledger.charged.total() == 4
    assert len(killed) > 40

    answers_lost = 0
    for kill in killed:
        found = list(kill.root.rglob("journal.jsonl"))
        kept = found[0].read_bytes().count(b"\n") if found else 4
        charged_before = server.ledger.charged.total()
        ((settled, _),) = ledgers(kill.root, request).values()
        lost = kill.charged.total() - kept
        assert lost in (0, 1), f"{kill.point}: an answer is lost only while it is in flight"
        assert round(settled / QUESTION_USD) <= kept, f"{kill.point}: settled, and the answer is not there"
        rows = jobs_fixtures.run(kill.root, request.model_copy(update={"attempt": 2})).rows(Candidate)
        assert server.ledger.charged.total() - charged_before == 4 - kept, f"{kill.point}: what is kept is asked again"
        ((paid, hanging),) = ledgers(kill.root, request).values()
        assert paid == pytest.approx(4 * QUESTION_USD), kill.point
        assert hanging >= lost * QUESTION_USD, f"{kill.point}: charged, and not in the ledger"
        assert hanging < kill_run.ROOM
        assert outcomes(rows) == {"ok": 3}
        assert [row.usd for row in rows] == pytest.approx([row.usd for row in undisturbed]), kill.point
        told = StageResult.model_validate_json((tmp_path / "result.json").read_text())
        assert told.usage["generatorUSD"] == pytest.approx(paid + hanging)
        answers_lost += lost
    assert answers_lost > 0, "some of the points lie between the answer and its line"


@pytest.mark.slow
def test_fifty_kills_in_five_thousand_rows(tmp_path: Path, server: ChatServer, monkeypatch: pytest.MonkeyPatch) -> None:
    root = prepare_root(tmp_path, monkeypatch)
    with light_forkserver(root) as stages:
        ran = kill_run.run(root, server, stages, rows=ROWS, kills=KILLS, shards=SHARDS)
    assert not ran.failures
    assert ran.kills == KILLS
    rows = jobs_fixtures.reader(root, ran.requests[0]).rows(Candidate)
    assert outcomes(rows) == {"ok": ROWS}
    assert len({row.triplet_id for row in rows}) == ROWS

    charged = server.ledger.charged
    assert len(charged) == ROWS
    again = charged.total() - ROWS
    assert 0 < again <= KILLS * IN_FLIGHT
    assert len(ran.finished) > ROWS / 2, "the kills found finished rows"
    assert {seed: charged[seed] for seed in ran.finished} == ran.finished, "only what was in flight is asked again"

    paid, hanging = (sum(both) for both in zip(*ledgers(root, ran.requests[0]).values(), strict=True))
    print(f"{charged.total()} charged for {ROWS} rows in {ran.seconds:.0f} s; ledger {paid:.4f} + {hanging:.4f} USD")
    assert paid + hanging >= charged.total() * QUESTION_USD - 1e-9, "our ledger knows of all that was charged"
    assert ran.spent_out >= SHARDS, "the first budget did not suffice"
    assert ran.charged_at_first_budget <= ran.first_budget
    assert paid + hanging <= ran.last_budget
