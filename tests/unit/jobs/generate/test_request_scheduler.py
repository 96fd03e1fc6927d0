"""When a provider counts as down, and how asking ends; the provider is a function here."""

from __future__ import annotations

import asyncio
import re
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.support import jobs_fixtures

from medgr2_api.stage_contract import StageRequest
from medgr2_jobs.generate import providers, rate_control, request_retry
from medgr2_jobs.generate.provider_errors import Failure, FailureAction
from medgr2_jobs.generate.providers.base import ImageQuestion, Reply
from medgr2_jobs.runner import main
from medgr2_jobs.store.rows.candidates import Candidate, CandidateOutcome


def request(root: Path, candidates: int = 40, **fields: Any) -> StageRequest:
    parameters = {
        "seed": fields.pop("seed", 5),
        "iteration": 1,
        "provider": {"kind": "openAI", "model": "m", "baseUrl": "http://nowhere/v1", "concurrency": 4},
        "paradigms": [{"name": "Direct"}],
        "questionTypes": ["Diagnosis"],
        "candidates": candidates,
        "questionsPerImage": 2,
        "sampling": {},
        "minUsable": {"fraction": 0},  # what is refused is an answer here
        "answerFormat": "Letter",
        "shards": 1,
    }
    prepare = jobs_fixtures.publish(root, "prepare", jobs_fixtures.phantoms(root, {"train": 8}).tables)
    return jobs_fixtures.request("generate", 1, parameters, {"prepare": prepare}, **fields)


class Provider:
    """Stands in for the client; `answer(number)` decides, numbers count the questions from 0."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, answer: Callable[[int], Reply], delay: float = 0.0) -> None:
        self.answer = answer
        self.delay = delay
        self.seeds: list[int] = []
        self.repairs = False
        monkeypatch.setattr(providers, "connect", lambda access: self)
        monkeypatch.setattr(request_retry, "MAX_REQUESTS", 1)
        monkeypatch.setattr(rate_control, "BACKOFF", 0.001)

    async def ask(self, question: ImageQuestion) -> Reply:
        self.seeds.append(question.seed)
        reply = self.answer(len(self.seeds) - 1)
        await asyncio.sleep(self.delay)
        return reply

    async def close(self) -> None:
        """Nothing to close."""


def no_answer(*, server_fault: bool) -> Reply:
    return Reply(failure=Failure(FailureAction.RETRY, "no", server_fault=server_fault, throttled=server_fault))


def outcomes(root: Path, asked: StageRequest) -> Counter[str]:
    return Counter(row.outcome for row in jobs_fixtures.run(root, asked).rows(Candidate))


def test_questions_that_the_server_dislikes_are_no_outage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Provider(
        monkeypatch, lambda number: no_answer(server_fault=False) if number < 20 else Reply(CandidateOutcome.REFUSED)
    )
    assert outcomes(tmp_path, request(tmp_path)) == {"http_error": 20, "refused": 20}


def test_failures_with_answers_between_them_are_no_outage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Provider(
        monkeypatch, lambda number: Reply(CandidateOutcome.REFUSED) if number % 2 else no_answer(server_fault=True)
    )
    assert outcomes(tmp_path, request(tmp_path)) == {"http_error": 20, "refused": 20}


def test_failures_in_a_row_are_an_outage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    provider = Provider(monkeypatch, lambda number: no_answer(server_fault=True))
    assert main.execute(request(tmp_path), tmp_path) == 75
    # four ask at once, and any of those that see the end may be the one that tells
    assert re.search(r"1[6-9] questions in a row", capfd.readouterr().err)
    assert len(provider.seeds) < 24


def test_what_is_in_flight_is_not_awaited_beyond_the_grace_period(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop = threading.Event()

    def answer(number: int) -> Reply:
        stop.set()
        return Reply(CandidateOutcome.REFUSED)

    provider = Provider(monkeypatch, answer, delay=120)
    began = time.monotonic()
    assert main.execute(request(tmp_path, grace_seconds=10.5), tmp_path, stop) == 85
    assert time.monotonic() - began < 60
    assert len(provider.seeds) <= 4


def test_what_is_in_flight_may_finish_within_the_grace_period(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stop = threading.Event()

    def answer(number: int) -> Reply:
        stop.set()
        return Reply(CandidateOutcome.REFUSED)

    first = Provider(monkeypatch, answer, delay=1.5)
    assert main.execute(request(tmp_path), tmp_path, stop) == 85
    second = Provider(monkeypatch, answer)
    assert outcomes(tmp_path, request(tmp_path, attempt=2)) == {"refused": 40}
    assert len(first.seeds) + len(second.seeds) == len({*first.seeds, *second.seeds}) == 40, "each was paid for once"


def test_another_seed_asks_with_other_sampling_seeds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    provider = Provider(monkeypatch, lambda number: Reply(CandidateOutcome.REFUSED))
    for seed in (5, 6):
        jobs_fixtures.run(tmp_path, request(tmp_path, 4, seed=seed))
    assert len(set(provider.seeds)) == 8
