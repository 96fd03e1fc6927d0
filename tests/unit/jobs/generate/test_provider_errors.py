"""The table of failures, and how long a provider asks to be left alone."""

from __future__ import annotations

import email.utils
import time

import pytest

from medgr2_jobs.generate import provider_errors
from medgr2_jobs.generate.provider_errors import Action
from medgr2_jobs.store.rows import CandidateOutcome


@pytest.mark.parametrize(
    ("status", "action", "billed", "trouble"),
    [
        (400, Action.SKIP, False, False),
        (401, Action.STOP, False, False),
        (403, Action.STOP, False, False),
        (404, Action.STOP, False, False),
        (307, Action.STOP, False, False),
        (413, Action.SKIP, False, False),
        (418, Action.SKIP, False, False),
        (429, Action.RETRY, False, True),
        (500, Action.RETRY, False, True),
        (502, Action.RETRY, True, True),
        (503, Action.RETRY, False, True),
        (504, Action.RETRY, True, True),
        (599, Action.RETRY, False, True),
    ],
)
def test_statuses(status: int, action: Action, billed: bool, trouble: bool) -> None:
    found = provider_errors.of_status(status, "the server's words", {})
    assert (found.action, found.billed, found.trouble) == (action, billed, trouble)
    assert found.error.startswith(f"HTTP {status}: ")
    assert (found.outcome == CandidateOutcome.REJECTED) == (action is Action.SKIP)
    assert found.pushback == (action is Action.RETRY)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"Retry-After": "7"}, 7.0),
        ({"retry-after": "1.5"}, 1.5),
        ({"retry-after": "-3"}, 0.0),
        ({"retry-after": "soon"}, None),
        ({"retry-after": ""}, None),
        ({"retry-after-ms": "250", "retry-after": "1"}, 0.25),
        ({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0.0),
    ],
)
def test_retry_after(headers: dict[str, str], seconds: float | None) -> None:
    assert provider_errors.retry_after(headers) == seconds


def test_retry_after_as_a_date() -> None:
    date = email.utils.formatdate(time.time() + 3600, usegmt=True)
    assert provider_errors.retry_after({"retry-after": date}) == pytest.approx(3600, abs=60)
