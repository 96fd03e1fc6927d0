"""Servers of tests never meet on a port."""

from __future__ import annotations

import random
import socket
from functools import cache

import pytest
from tests.support import ports
from tests.support.ports import free_port


@pytest.fixture(autouse=True)
def another_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a test begins; what this process was given before stays known to it afterwards."""
    monkeypatch.setattr(ports, "_ours", cache(ports._ours.__wrapped__))


def test_a_process_is_given_none_twice() -> None:
    """Though nobody listens there yet: the operator of a test and a server beside it once met so."""
    drawn = [free_port() for _ in range(500)]
    assert len(set(drawn)) == 500
    assert all(20_000 <= port < 30_000 for port in drawn)


def test_no_two_processes_of_a_test_run_draw_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Even with one seed: two operators of different tests once met on a port that stages' seeds had led both to."""
    drawn = []
    for worker in range(5):
        monkeypatch.setenv("PYTEST_XDIST_WORKER", f"gw{worker}")
        ports._ours.cache_clear()
        random.seed(3)
        drawn += [free_port() for _ in range(50)]
    assert len(set(drawn)) == 250


def test_the_seed_of_a_stage_does_not_choose_them() -> None:
    random.seed(3)
    first = [free_port() for _ in range(20)]
    ports._ours.cache_clear()
    random.seed(3)
    assert [free_port() for _ in range(20)] != first


def test_one_that_is_taken_on_another_address_is_not_free(monkeypatch: pytest.MonkeyPatch) -> None:
    taken, free = free_port(), free_port()
    with socket.socket() as listener:
        listener.bind(("127.0.0.2", taken))
        monkeypatch.setattr(ports, "PORTS", [taken, free])
        monkeypatch.setattr(ports, "WORKERS", 1)
        monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)
        ports._ours.cache_clear()
        assert [free_port() for _ in range(3)] == [free] * 3
