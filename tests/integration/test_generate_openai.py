"""Stage generate against OpenAI-compatible servers: a real `transformers serve`, and one that misbehaves on demand."""

from __future__ import annotations

import base64
import io
import json
import re
import socket
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from medgr2_api.stage_contract import VLLM_BASE_URL_ENV, Shard
from medgr2_jobs.generate import request_retry
from medgr2_jobs.runner import main
from medgr2_jobs.store.images import ImageStore
from medgr2_jobs.store.rows.candidates import Candidate
from tests.support import jobs_fixtures
from tests.support.chat_server import TRIPLET, Answer, ChatServer, retry, serving
from tests.support.generate_fixtures import KEY, TYPES, StageProcess, asked, outcomes, prepare_root, start
from tests.support.transformers_server import transformers_serve


@pytest.fixture
def server() -> Iterator[ChatServer]:
    with serving() as running:
        yield running


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return prepare_root(tmp_path, monkeypatch)


# -- what is asked, what becomes of the answers ------------------------------------------------------------------------


def test_good_answers(root: Path, server: ChatServer) -> None:
    server.answer = lambda number, body: Answer(delay=0.2)  # long enough to meet
    found = jobs_fixtures.run(root, asked(root, server.url))
    rows = found.rows(Candidate)
    assert outcomes(rows) == {"ok": 12}
    for row in rows:
        assert (row.question, row.options, row.answer_index) == (TRIPLET["question"], tuple(TRIPLET["options"]), 1)
        assert row.response == f"<think>{TRIPLET['rationale']}</think><answer>B</answer>"
        assert (row.generator, row.attempts, row.input_tokens, row.output_tokens) == (
            "some/vlm",
            1,
            100,
            50,
        )
        assert row.question_type == "Diagnosis"  # what the generator says it is, when it is one of ours
        assert row.usd is None
    assert len({(row.paradigm, row.template_sha256) for row in rows}) == 3
    assert not found.has("truth.parquet")
    counters = found.manifest.counters
    assert (counters["ok"], counters["input_tokens"], counters["output_tokens"]) == (12, 1200, 600)

    ledger = server.ledger
    assert ledger.authorizations == {f"Bearer {KEY}"}
    assert 1 < ledger.most <= 4
    assert len(ledger.asked) == 12
    images = Counter()
    for request in ledger.requests:
        assert request["path"] == "/v1/chat/completions"
        assert (request["temperature"], request["top_p"], request["max_tokens"]) == (0.5, 0.9, 300)
        assert request["response_format"]["json_schema"]["strict"] is True
        picture, text = request["messages"][0]["content"]
        data = base64.b64decode(picture["image_url"]["url"].removeprefix("data:image/png;base64,"))
        assert Image.open(io.BytesIO(data)).size == (56, 56)
        images[data] += 1
        assert any(f'"{name}"' in text["text"] for name in TYPES)
    store = ImageStore(root)
    assert images == Counter(store.read(row.image_sha256) for row in rows)


def test_nothing_is_lost(root: Path, server: ChatServer) -> None:
    """Whatever the server says, each question has a row with its outcome, and only good rows have an answer."""
    answers = [
        ("ok", Answer()),
        ("invalid_json", Answer("Let me think about it.")),
        ("empty", Answer("")),
        ("empty", Answer(None)),
        ("schema", Answer("{}")),
        ("wrong_option_count", Answer(json.dumps({**TRIPLET, "options": ["cyst", "mass"]}))),
        ("answer_not_in_options", Answer(json.dumps({**TRIPLET, "answer_text": "tumour"}))),
        ("truncated", Answer('{"question": "Wh', finish_reason="length")),
        ("refused", Answer(None, refusal="I cannot describe people.")),
        ("refused", Answer("", finish_reason="content_filter")),
        ("rejected", Answer(status=400, body='{"error": {"message": "bad image"}}')),
        ("unreadable", Answer(body="<html>hello</html>", headers={"content-type": "text/html"})),
        ("unreadable", Answer(body='{"choices": []}')),
        ("unreadable", Answer(body="{no json")),
    ]
    by_seed: dict[int, tuple[str, Answer]] = {}

    def answer(number: int, body: dict[str, Any]) -> Answer:
        return by_seed.setdefault(body["seed"], answers[len(by_seed) % len(answers)])[1]

    server.answer = answer
    found = jobs_fixtures.run(root, asked(root, server.url, candidates=14))
    rows = found.rows(Candidate)
    expected = Counter(outcome for outcome, _ in answers)
    assert outcomes(rows) == expected
    for row in rows:
        good = row.outcome == "ok"
        assert bool(row.response) == bool(row.question) == bool(row.options) == good
        assert (row.answer_index is not None) == good
        assert row.template_sha256
        assert bool(row.error) != good
        repaired = row.outcome in ("invalid_json", "schema", "wrong_option_count", "answer_not_in_options")
        assert row.attempts == 1 + repaired, row
    counters = found.manifest.counters
    assert {name: counters[name] for name in expected} == expected


def test_retries(root: Path, server: ChatServer) -> None:
    trouble = {1: retry(429), 2: retry(500), 3: retry(503), 4: retry(408)}
    server.answer = lambda number, body: trouble.get(number, Answer())
    rows = jobs_fixtures.run(root, asked(root, server.url, candidates=4)).rows(Candidate)
    assert outcomes(rows) == {"ok": 4}
    assert [row.attempts for row in rows] == [5] * 4


def test_retry_after_is_kept(root: Path, server: ChatServer) -> None:
    times: list[float] = []

    def answer(number: int, body: dict[str, Any]) -> Answer:
        times.append(time.monotonic())
        return retry(429, "1.2") if number == 1 else Answer()

    server.answer = answer
    jobs_fixtures.run(root, asked(root, server.url, candidates=1))
    assert times[1] - times[0] >= 1.2


def test_no_key_is_sent_where_none_is_configured(root: Path, server: ChatServer) -> None:
    request = asked(root, server.url, candidates=1)
    del request.parameters["provider"]["apiKeySecretRef"]
    jobs_fixtures.run(root, request)
    assert server.ledger.authorizations == {""}


def test_shards(root: Path, server: ChatServer) -> None:
    for index in range(2):
        request = asked(root, server.url, shards=2, shard=Shard(index=index, count=2))
        assert main.execute(request, root) == 0
    rows = jobs_fixtures.reader(root, request).rows(Candidate)
    assert [row.triplet_id for row in rows] == sorted({row.triplet_id for row in rows})
    assert len(rows) == len(server.ledger.asked) == 12


# -- failures ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("status", "words"), [(401, "API key"), (403, "API key"), (404, "no such model")])
def test_refused_key_or_model(
    root: Path, server: ChatServer, status: int, words: str, capfd: pytest.CaptureFixture[str]
) -> None:
    body = json.dumps({"error": {"message": f"Incorrect API key provided: {KEY}"}})
    server.answer = lambda number, request: Answer(status=status, body=body)
    assert main.execute(asked(root, server.url), root) == 78
    output = "".join(capfd.readouterr())
    assert words in output
    assert KEY not in output
    assert len(server.ledger.requests) <= 4  # at once, not after everything


def test_key_never_reaches_the_log_or_the_volume(
    root: Path, server: ChatServer, capfd: pytest.CaptureFixture[str]
) -> None:
    body = json.dumps({"error": {"message": f"strange request with key {KEY}"}})
    server.answer = lambda number, request: Answer(status=400, body=body) if request["seed"] % 2 else Answer()
    assert main.execute(asked(root, server.url), root) in (0, 75)
    output = "".join(capfd.readouterr())
    assert "strange request with key ***" in output
    assert KEY not in output
    assert not [path for path in root.rglob("*") if path.is_file() and KEY.encode() in path.read_bytes()]


def test_missing_secret(root: Path, server: ChatServer, capfd: pytest.CaptureFixture[str]) -> None:
    assert main.execute(asked(root, server.url, key="other"), root) == 78
    assert "has no key 'other'" in capfd.readouterr().err


def test_unreachable(root: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(request_retry, "MAX_REQUESTS", 2)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
        assert main.execute(asked(root, url, candidates=40), root) == 75
    output = capfd.readouterr().err
    assert url in output
    assert re.search(r"1[6-9] questions in a row", output)  # it did not ask all 40; four are in flight at once


def test_most_questions_fail_and_the_rest_is_kept(root: Path, server: ChatServer) -> None:
    broken = True
    failing: set[int] = set()

    def answer(number: int, body: dict[str, Any]) -> Answer:
        if broken and (body["seed"] in failing or len(failing) < 7):
            failing.add(body["seed"])
            return retry(500, "0.001")
        return Answer()

    server.answer = answer
    assert main.execute(asked(root, server.url), root) == 75
    assert server.ledger.asked.total() == 7 * request_retry.MAX_REQUESTS + 5
    broken = False
    server.ledger.asked.clear()
    rows = jobs_fixtures.run(root, asked(root, server.url, attempt=2)).rows(Candidate)
    assert outcomes(rows) == {"ok": 12}
    assert set(server.ledger.asked) == failing  # answered ones are not asked again


def test_some_failures_are_rows(root: Path, server: ChatServer) -> None:
    failing: set[int] = set()

    def answer(number: int, body: dict[str, Any]) -> Answer:
        if body["seed"] in failing or len(failing) < 6:
            failing.add(body["seed"])
            return retry(500, "0.001")
        return Answer()

    server.answer = answer
    rows = jobs_fixtures.run(root, asked(root, server.url)).rows(Candidate)
    assert outcomes(rows) == {"ok": 6, "http_error": 6}
    assert {row.attempts for row in rows if row.outcome == "http_error"} == {request_retry.MAX_REQUESTS}


# -- interruptions -----------------------------------------------------------------------------------------------------


def wait_for(server: ChatServer, answered: int, process: StageProcess) -> None:
    deadline = time.monotonic() + 60
    while server.ledger.answered.total() < answered:
        assert process.poll() is None, process.output(60)
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_kill_asks_nothing_twice_but_what_was_in_flight(root: Path, server: ChatServer) -> None:
    server.answer = lambda number, body: Answer(delay=0.05)
    for attempt, answered in ((1, 9), (2, 21)):
        process = start(root, asked(root, server.url, candidates=40, attempt=attempt))
        wait_for(server, answered, process)
        process.kill()
        process.wait()
    rows = jobs_fixtures.run(root, asked(root, server.url, candidates=40, attempt=3)).rows(Candidate)
    assert outcomes(rows) == {"ok": 40}
    asked_count = server.ledger.asked
    assert len(asked_count) == 40
    again = sum(count - 1 for count in asked_count.values())
    assert again <= 2 * 4  # two kills, four in flight each
    print(f"asked {asked_count.total()} times for 40 questions")


def test_torn_journal_line_is_asked_again(root: Path, server: ChatServer) -> None:
    server.answer = lambda number, body: Answer(delay=0.05)
    process = start(root, asked(root, server.url))
    wait_for(server, 6, process)
    process.kill()
    process.wait()
    (journal,) = root.rglob("journal.jsonl")
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(lines)[:-10])
    rows = jobs_fixtures.run(root, asked(root, server.url, attempt=2)).rows(Candidate)
    assert outcomes(rows) == {"ok": 12}
    assert len({row.triplet_id for row in rows}) == 12


def test_sigterm_waits_for_what_is_in_flight(root: Path, server: ChatServer) -> None:
    server.answer = lambda number, body: Answer(delay=0.1)
    process = start(root, asked(root, server.url, candidates=40))
    wait_for(server, 5, process)
    process.terminate()
    output = process.output(30)
    assert process.returncode == 85, output
    rows = jobs_fixtures.run(root, asked(root, server.url, candidates=40, attempt=2)).rows(Candidate)
    assert outcomes(rows) == {"ok": 40}
    assert set(server.ledger.asked.values()) == {1}


# -- a real server -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    pytest.importorskip("fastapi")
    with transformers_serve(tmp_path_factory.mktemp("serve")) as running:
        yield running


@pytest.mark.slow
def test_real_server(root: Path, real: tuple[str, str]) -> None:
    """A random model answers garbage: each answer is counted, none is lost, none is taken for a triplet."""
    url, model = real
    sampling = {"temperature": 1.0, "topP": 1.0, "maxTokens": 24}
    request = asked(root, url, candidates=10, model=model, sampling=sampling)
    found = jobs_fixtures.run(root, request)
    rows = found.rows(Candidate)
    assert len(rows) == 10
    assert set(outcomes(rows)) <= {"invalid_json", "truncated", "empty"}
    assert {row.attempts for row in rows} == {1, 2}, "some are sent back, those that were cut off are not"
    assert all(row.input_tokens > 4 and 0 < row.output_tokens <= 24 * row.attempts for row in rows)
    assert found.manifest.counters["ok"] == 0
    assert found.manifest.counters["candidates"] == 10
    print(outcomes(rows), found.manifest.usage)


@pytest.mark.slow
def test_a_server_beside_the_stage(root: Path, real: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """`generator.vllm`: the operator says where it answers; no key, no address in the spec."""
    url, model = real
    monkeypatch.setenv(VLLM_BASE_URL_ENV, url)
    provider = {"kind": "vllm", "model": model, "concurrency": 2}
    request = asked(root, "", candidates=4, provider=provider, sampling={"maxTokens": 24})
    rows = jobs_fixtures.run(root, request).rows(Candidate)
    assert len(rows) == 4
    assert set(outcomes(rows)) <= {"invalid_json", "truncated", "empty"}
    assert {row.generator for row in rows} == {model}
    assert all(row.output_tokens for row in rows)


@pytest.mark.slow
def test_real_server_does_not_know_the_model(root: Path, real: tuple[str, str]) -> None:
    code = main.execute(asked(root, real[0], candidates=2, model="no/such-model"), root)
    assert code == 75  # it says 400, as it does to a question that it dislikes; others say 404
