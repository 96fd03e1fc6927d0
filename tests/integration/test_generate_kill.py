"""kill -9 at any moment: no question is paid for twice but those in flight, none is lost, the budget holds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from medgr2_jobs.store.rows import Candidate
from tests.support import jobs_fixtures, kill_run
from tests.support.chat_server import ChatServer, serving
from tests.support.generate_fixtures import QUESTION_USD, ledgers, outcomes, prepare_root
from tests.support.light_forkserver import light_forkserver

ROWS, KILLS, SHARDS, IN_FLIGHT = 5000, 50, 4, 8


@pytest.fixture
def server() -> Iterator[ChatServer]:
    with serving() as running:
        yield running


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
