"""The budget is never passed, nothing is paid twice, and what was paid is told however a stage ends."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from medgr2_api.stage_contract import RESULT_PATH_ENV, CycleRef, Shard, StageRequest, StageResult
from medgr2_jobs.generate import journal, probe, spend_ledger
from medgr2_jobs.runner import main
from medgr2_jobs.runner.attempt import build_context
from medgr2_jobs.runner.metrics_server import FIGURES
from medgr2_jobs.runner.process_group import ProcessGroup
from medgr2_jobs.store.rows.candidates import Candidate
from tests.support import jobs_fixtures
from tests.support.chat_server import Answer, ChatServer, serving
from tests.support.fixtures import last_said
from tests.support.generate_fixtures import (
    PRICES,
    QUESTION_USD,
    asked,
    ledgers,
    outcomes,
    prepare_root,
    prepared_images,
    start,
)

#: What one question may cost at most is below this; what it costs is QUESTION_USD.
ROOM = 0.006


@pytest.fixture
def server() -> Iterator[ChatServer]:
    with serving() as running:
        yield running


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(RESULT_PATH_ENV, str(tmp_path / "result.json"))
    return prepare_root(tmp_path, monkeypatch)


def request(root: Path, server: ChatServer, budget: float | None = None, **changes: Any) -> StageRequest:
    about = {"prices": PRICES, **changes.pop("about", {})}
    return asked(root, server.url, about=about, generator_budget_usd=budget, **changes)


def result(root: Path) -> StageResult:
    return StageResult.model_validate_json((root.parent / "result.json").read_text())


def test_without_a_budget_all_is_counted(root: Path, server: ChatServer) -> None:
    made = request(root, server)
    assert main.execute(made, root) == 0
    assert result(root).usage["generatorUSD"] == pytest.approx(12 * QUESTION_USD)
    assert ledgers(root, made) == {f"{made.input_hash}-s0.jsonl": (pytest.approx(12 * QUESTION_USD), 0)}
    said = last_said(root, made).metrics
    assert set(said) <= set(FIGURES), "a figure without a metric"
    assert (said["failed"], said["generatorUSD"]) == (0, pytest.approx(12 * QUESTION_USD))


def test_a_result_that_was_never_read_is_told_again_to_who_paid_and_to_nobody_else(
    root: Path, server: ChatServer
) -> None:
    made = request(root, server)
    assert main.execute(made, root) == 0
    assert main.execute(made.model_copy(update={"attempt": 2}), root) == 0
    assert result(root).reused
    assert result(root).usage == {"generatorUSD": pytest.approx(12 * QUESTION_USD)}
    other = made.cycle.model_copy(update={"name": "another", "uid": "another"})
    assert main.execute(made.model_copy(update={"cycle": other}), root) == 0
    assert result(root).usage == {}


@pytest.mark.parametrize("concurrency", [1, 16])
def test_the_budget_is_used_up_and_never_passed(
    root: Path, server: ChatServer, concurrency: int, capfd: pytest.CaptureFixture[str]
) -> None:
    server.answer = lambda number, body: Answer(delay=0.01)
    budget = 30 * QUESTION_USD + ROOM
    made = request(root, server, budget, candidates=200, concurrency=concurrency)
    assert main.execute(made, root) == 75
    ended = result(root)
    assert ended.reason == "BudgetSpent"
    charged = server.ledger.charged.total()
    assert ended.usage["generatorUSD"] == pytest.approx(charged * QUESTION_USD)
    assert 30 <= charged <= budget / QUESTION_USD
    for words in (f"{charged} of 200 questions are answered and kept", "raise budget.generatorUSD"):
        assert words in ended.message

    more = made.model_copy(update={"generator_budget_usd": 1.0, "attempt": 2})
    rows = jobs_fixtures.run(root, more).rows(Candidate)
    assert outcomes(rows) == {"ok": 200}
    assert set(server.ledger.asked.values()) == {1}, "what was paid for is not asked again"
    assert result(root).usage["generatorUSD"] == pytest.approx(200 * QUESTION_USD)


def test_questions_that_cost_their_worst_case_do_not_pass_the_budget(root: Path, server: ChatServer) -> None:
    usage = {"prompt_tokens": 3000, "completion_tokens": 300}
    server.answer = lambda number, body: Answer(delay=0.01, usage=usage)
    made = request(root, server, 0.02, candidates=200, concurrency=8)
    assert main.execute(made, root) == 75
    assert 0.02 - ROOM <= server.ledger.charged.total() * 0.0036 <= 0.02


def test_a_budget_below_one_question_asks_nothing(root: Path, server: ChatServer) -> None:
    assert main.execute(request(root, server, QUESTION_USD), root) == 75
    assert result(root).reason == "BudgetSpent"
    assert "0 of 12 questions" in result(root).message
    assert not server.ledger.requests


def test_other_artifacts_of_the_cycle_count_and_other_cycles_do_not(root: Path, server: ChatServer) -> None:
    for seed, cycle in ((1, jobs_fixtures.CYCLE), (2, CycleRef(name="test", uid="uid-2"))):
        jobs_fixtures.run(root, request(root, server, seed=seed, cycle=cycle))
    left = 3 * QUESTION_USD + ROOM
    assert main.execute(request(root, server, 12 * QUESTION_USD + left, candidates=80), root) == 75
    charged = server.ledger.charged.total() - 24
    assert 3 <= charged <= left / QUESTION_USD


def test_shards_share_what_is_left(root: Path, server: ChatServer) -> None:
    share = 10 * QUESTION_USD + ROOM
    for index in (0, 1):
        shard = Shard(index=index, count=2)
        assert main.execute(request(root, server, 2 * share, candidates=100, shards=2, shard=shard), root) == 75
        assert 10 <= server.ledger.charged.total() / (index + 1) <= share / QUESTION_USD


def test_a_request_that_was_in_flight_at_a_kill_stays_charged_at_its_worst_case(root: Path, server: ChatServer) -> None:
    seen, killed = threading.Event(), threading.Event()

    def answer(number: int, body: dict[str, Any]) -> Answer:
        if server.ledger.asked.total() > 8 and not killed.is_set():
            seen.set()
            return Answer(delay=30)
        return Answer()

    server.answer = answer
    made = request(root, server, 1.0, candidates=12, concurrency=2)
    process = start(root, made)
    assert seen.wait(60)
    process.kill()
    process.wait()
    killed.set()
    ((paid, hanging),) = ledgers(root, made).values()
    settled = round(paid / QUESTION_USD)
    assert settled in (7, 8), "two are in flight at a time"
    assert QUESTION_USD < hanging <= 2 * ROOM
    (log,) = root.rglob(journal.NAME)
    written = log.read_text().count("\n")
    assert written in (settled, settled + 1), "the kill may come between the journal and the ledger"
    rows = jobs_fixtures.run(root, made.model_copy(update={"attempt": 2})).rows(Candidate)
    assert outcomes(rows) == {"ok": 12}
    unknown = result(root).usage["generatorUSD"] - 12 * QUESTION_USD
    if written == settled:
        assert unknown == pytest.approx(hanging)
    else:  # of one of the two the journal knows what it came to
        assert 0.4 * hanging < unknown < 0.6 * hanging
    assert server.ledger.asked.total() <= 12 + 2


def test_what_was_paid_is_told_when_the_stage_fails(root: Path, server: ChatServer) -> None:
    server.answer = lambda number, body: Answer() if server.ledger.asked.total() <= 5 else Answer(status=401, body="{}")
    assert main.execute(request(root, server, concurrency=1), root) == 78
    assert result(root).usage == {"generatorUSD": pytest.approx(5 * QUESTION_USD)}


def test_an_answer_that_does_not_fit_is_sent_back_once_and_both_are_paid(root: Path, server: ChatServer) -> None:
    bad = Answer("Let me think.")
    server.answer = lambda number, body: bad if number == 1 or body["seed"] % 2 else Answer()
    made = request(root, server, 1.0)
    rows = jobs_fixtures.run(root, made).rows(Candidate)
    assert set(server.ledger.asked.values()) == {2}
    assert set(outcomes(rows)) == {"ok", "invalid_json"}
    assert {row.attempts for row in rows} == {2}
    assert all(row.usd == pytest.approx(2 * QUESTION_USD) for row in rows)
    assert all(row.input_tokens == 200 for row in rows)
    first, second, third = next(r for r in server.ledger.requests if len(r["messages"]) == 3)["messages"]
    assert (first["role"], second, third["role"]) == ("user", {"role": "assistant", "content": bad.content}, "user")
    assert "not one JSON object" in third["content"]


def test_the_budget_may_end_before_a_repair_but_the_row_is_kept(root: Path, server: ChatServer) -> None:
    server.answer = lambda number, body: Answer("Let me think.", usage={"prompt_tokens": 5000, "completion_tokens": 9})
    made = request(root, server, 0.0062, candidates=1, about={"prices": {**PRICES, "maxImageTokens": 2000}})
    rows = jobs_fixtures.run(root, made).rows(Candidate)
    assert outcomes(rows) == {"invalid_json": 1}
    assert rows[0].attempts == 1


def test_a_provider_that_counts_more_than_the_worst_case_stops_the_stage(root: Path, server: ChatServer) -> None:
    server.answer = lambda number, body: Answer(usage={"prompt_tokens": 90_000, "completion_tokens": 9})
    assert main.execute(request(root, server, 10.0, candidates=40), root) == 78
    assert "maxImageTokens" in result(root).message
    assert server.ledger.charged.total() <= 4
    assert result(root).usage["generatorUSD"] == pytest.approx(server.ledger.charged.total() * 0.090018)


def test_an_answer_without_usage_costs_its_worst_case(root: Path, server: ChatServer) -> None:
    server.answer = lambda number, body: Answer(usage={})
    rows = jobs_fixtures.run(root, request(root, server, 1.0, candidates=2)).rows(Candidate)
    assert all(QUESTION_USD < row.usd < ROOM and row.input_tokens is None for row in rows)


USELESS = {
    "truncated": (Answer("{", finish_reason="length"), "sampling.thinkingTokens"),
    "refused": (Answer("", finish_reason="content_filter"), "filters"),
    "schema": (Answer("{}"), "another model"),
}


@pytest.mark.parametrize("outcome", USELESS)
def test_what_cannot_be_used_is_not_paid_for_to_the_end(root: Path, server: ChatServer, outcome: str) -> None:
    useless, remedy = USELESS[outcome]
    server.answer = lambda number, body: useless
    made = request(root, server, 10.0, candidates=400, concurrency=8)
    assert main.execute(made, root) == 78
    told, charged = result(root), server.ledger.charged.total()
    questions = len(server.ledger.charged)
    assert 100 <= questions <= 100 + 8
    assert told.reason == "TooFewUsable"
    for words in ("0 of 1", f"ended as {outcome}", remedy, "lower generator.minUsable.fraction", "is kept"):
        assert words in told.message, told.message
    assert told.usage["generatorUSD"] == pytest.approx(charged * QUESTION_USD)

    assert main.execute(made.model_copy(update={"attempt": 2}), root) == 78
    assert server.ledger.charged.total() == charged, "what is kept says it, too"

    server.answer = lambda number, body: Answer()
    parameters = {**made.parameters, "minUsable": {"fraction": 0}}
    lower = made.model_copy(update={"attempt": 3, "parameters": parameters})
    rows = jobs_fixtures.run(root, lower).rows(Candidate)
    assert outcomes(rows) == {outcome: questions, "ok": 400 - questions}, "it goes on from there, under the same hash"


@pytest.mark.parametrize(("candidates", "code"), [(19, 0), (20, 78), (60, 78)])
def test_nothing_usable_of_few_questions_is_no_success(
    root: Path, server: ChatServer, candidates: int, code: int
) -> None:
    """Fewer than `afterAnswers`, as in each of many shards; of 19 answers the floor does not ask for one."""
    server.answer = lambda number, body: Answer("", "length")
    assert main.execute(request(root, server, candidates=candidates), root) == code
    if code:
        assert result(root).reason == "TooFewUsable"
        assert f"0 of {candidates} answers are triplets" in result(root).message
    before = server.ledger.asked.total()
    server.answer = lambda number, body: Answer() if server.ledger.asked.total() == before + 1 else Answer("", "length")
    assert main.execute(request(root, server, candidates=candidates, seed=6), root) == 0, "one is enough"


def test_a_few_good_answers_among_many_are_paid_for(root: Path, server: ChatServer) -> None:
    server.answer = lambda number, body: Answer() if server.ledger.asked.total() % 10 == 0 else Answer("", "length")
    rows = jobs_fixtures.run(root, request(root, server, candidates=150, concurrency=1)).rows(Candidate)
    assert outcomes(rows)["ok"] == 15
    floor = {"fraction": 0.2, "afterAnswers": 30}
    assert main.execute(request(root, server, candidates=150, concurrency=1, seed=6, minUsable=floor), root) == 78
    assert "generator.minUsable.fraction is 0.2" in result(root).message
    assert server.ledger.asked.total() == 150 + 30


def test_thinking_counts_in_the_worst_case(root: Path, server: ChatServer) -> None:
    server.answer = lambda number, body: Answer(usage={})
    sampling = {"maxTokens": 300, "thinkingTokens": 5000}
    without = jobs_fixtures.run(root, request(root, server, candidates=1)).rows(Candidate)
    thinking = jobs_fixtures.run(root, request(root, server, candidates=1, sampling=sampling)).rows(Candidate)
    extra = 5000 * PRICES["outputUSDPerMillionTokens"] / 1e6
    assert thinking[0].usd == pytest.approx(without[0].usd + extra)
    assert server.ledger.requests[-1]["max_tokens"] == 5300


def test_what_was_asked_about_thinking_is_not_left_out(root: Path, server: ChatServer) -> None:
    words = '{"error": {"message": "Unsupported parameter: reasoning_effort"}}'
    server.answer = lambda number, body: Answer(status=400, body=words) if "reasoning_effort" in body else Answer()
    about = {"reasoningEffort": "low"}
    assert main.execute(request(root, server, candidates=40, about=about), root) == 78
    assert "it does not take reasoning_effort" in result(root).message
    assert len(server.ledger.requests) <= 4


def test_a_budget_needs_prices(root: Path, server: ChatServer) -> None:
    assert main.execute(asked(root, server.url, generator_budget_usd=1.0), root) == 78
    assert "generator.prices" in result(root).message
    assert not server.ledger.requests


def test_two_cycles_do_not_pay_for_the_same_questions(root: Path, server: ChatServer) -> None:
    seen, go = threading.Event(), threading.Event()

    def answer(number: int, body: dict[str, Any]) -> Answer:
        if server.ledger.asked.total() > 8:  # the first holds the journal until it is killed
            seen.set()
            go.wait(60)
        return Answer()

    server.answer = answer
    first = start(root, request(root, server), **{RESULT_PATH_ENV: str(root.parent / "first.json")})
    assert seen.wait(60)
    second = request(root, server, cycle=CycleRef(name="other", uid="uid-9"))
    assert main.execute(second, root) == 75
    assert "cycle test" in result(root).message
    assert "not asked, and paid, twice" in result(root).message
    first.kill()  # and the other cycle goes on from what it left
    first.wait()
    go.set()
    rows = jobs_fixtures.run(root, second.model_copy(update={"attempt": 2})).rows(Candidate)
    assert outcomes(rows) == {"ok": 12}
    assert server.ledger.asked.total() <= 12 + 4
    assert not list(root.rglob("journal.jsonl*"))
    assert jobs_fixtures.run(root, request(root, server, attempt=2)).rows(Candidate) == rows
    assert server.ledger.asked.total() <= 12 + 4


def test_what_was_published_while_the_journal_was_awaited_is_not_asked_again(
    root: Path, server: ChatServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    second = request(root, server, cycle=CycleRef(name="other", uid="uid-9"))
    honest = journal.Journal

    def late(folder: Path, holder: str) -> journal.Journal:
        first = start(root, request(root, server), **{RESULT_PATH_ENV: str(root.parent / "first.json")})
        assert first.wait(60) == 0
        monkeypatch.setattr(journal, "Journal", honest)
        return honest(folder, holder)

    monkeypatch.setattr(journal, "Journal", late)
    assert main.execute(second, root) == 75
    assert "published by another cycle" in result(root).message
    assert main.execute(second.model_copy(update={"attempt": 2}), root) == 0
    assert result(root).reused
    assert server.ledger.asked.total() == 12


def test_a_sample_is_paid_for_like_any_other(root: Path, server: ChatServer) -> None:
    made = request(root, server)
    prepared = jobs_fixtures.phantoms(root, {"train": 8, "test": 2})
    parameters = build_context(made, root, threading.Event(), ProcessGroup(), None).parameters
    rows = probe.sample(root, made.cycle, parameters, prepared_images(prepared), 5, 1.0)
    assert outcomes(rows) == {"ok": 5}
    assert len({row.image_sha256 for row in rows}) == 5
    train = {row.image_sha256 for row in prepared.images if row.split == "train"}
    assert {row.image_sha256 for row in rows} <= train
    assert ledgers(root, made) == {"sample-s0.jsonl": (pytest.approx(5 * QUESTION_USD), 0)}
    folder = root / "cycles" / "test" / "spend" / "uid-1"
    assert spend_ledger.allowance(1.0, folder, made.input_hash, 2) == pytest.approx((1 - 5 * QUESTION_USD) / 2)
    with pytest.raises(Exception, match=r"budget\.generatorUSD"):
        probe.sample(root, made.cycle, parameters, prepared_images(prepared), 5, 5 * QUESTION_USD)
    assert server.ledger.asked.total() == 5
