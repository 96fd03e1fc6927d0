"""The table of failures, and Retry-After."""

from __future__ import annotations

import email.utils
import time

import pytest

from medgr2_jobs.generate import provider_errors
from medgr2_jobs.generate.provider_errors import FailureAction
from medgr2_jobs.store.rows.candidates import CandidateOutcome


@pytest.mark.parametrize(
    ("status", "action", "billed", "server_fault"),
    [
        (400, FailureAction.SKIP, False, False),
        (401, FailureAction.STOP, False, False),
        (403, FailureAction.STOP, False, False),
        (404, FailureAction.STOP, False, False),
        (307, FailureAction.STOP, False, False),
        (413, FailureAction.SKIP, False, False),
        (418, FailureAction.SKIP, False, False),
        (429, FailureAction.RETRY, False, True),
        (500, FailureAction.RETRY, False, True),
        (502, FailureAction.RETRY, True, True),
        (503, FailureAction.RETRY, False, True),
        (504, FailureAction.RETRY, True, True),
        (599, FailureAction.RETRY, False, True),
    ],
)
def test_statuses(status: int, action: FailureAction, billed: bool, server_fault: bool) -> None:
    failure = provider_errors.of_status(status, "the server's words", {})
    assert (failure.action, failure.billed, failure.server_fault) == (action, billed, server_fault)
    assert failure.error.startswith(f"HTTP {status}: ")
    assert (failure.outcome == CandidateOutcome.REJECTED) == (action is FailureAction.SKIP)
    assert failure.throttled == (action is FailureAction.RETRY)


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
