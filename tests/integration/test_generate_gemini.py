"""Stage generate through google-genai, against a loopback server that speaks Gemini's protocol."""

from __future__ import annotations

import base64
import json
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from medgr2_api.stage_contract import StageRequest
from medgr2_jobs.generate import candidate_schema, request_retry
from medgr2_jobs.runner import main
from medgr2_jobs.store.images import ImageStore
from medgr2_jobs.store.rows.candidates import Candidate
from tests.support import jobs_fixtures
from tests.support.chat_server import TRIPLET, Answer, ChatServer, GeminiServer, retry, serving
from tests.support.generate_fixtures import KEY, PRICES, QUESTION_USD, asked, ledgers, outcomes, prepare_root


@pytest.fixture
def server() -> Iterator[ChatServer]:
    with serving(GeminiServer) as running:
        yield running


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return prepare_root(tmp_path, monkeypatch)


def request(root: Path, server: ChatServer, **changes: Any) -> StageRequest:
    about = {"prices": PRICES, "external": True, **changes.pop("about", {})}
    return asked(root, server.url, kind="gemini", model="gemini-3-flash", about=about, **changes)


def test_what_is_sent_and_what_it_costs(root: Path, server: ChatServer) -> None:
    made = request(root, server)
    found = jobs_fixtures.run(root, made)
    rows = found.rows(Candidate)
    assert outcomes(rows) == {"ok": 12}
    for row in rows:
        assert (row.input_tokens, row.output_tokens, row.thinking_tokens) == (100, 30, 20)
        assert row.usd == pytest.approx(QUESTION_USD)  # thinking counts as output
        assert (row.generator, row.attempts, row.error) == ("gemini-3-flash", 1, "")
    assert found.manifest.usage["generatorUSD"] == pytest.approx(12 * QUESTION_USD)
    assert ledgers(root, made) == {f"{made.input_hash}-s0.jsonl": (pytest.approx(12 * QUESTION_USD), 0)}

    assert server.ledger.authorizations == {KEY}
    images = Counter()
    for sent in server.ledger.requests:
        assert sent["path"] == "/v1/models/gemini-3-flash:generateContent"
        config = sent["generationConfig"]
        assert (config["temperature"], config["topP"], config["maxOutputTokens"]) == (0.5, 0.9, 300)
        assert config["responseMimeType"] == "application/json"
        form = config["responseSchema"]
        assert set(form["properties"]) == set(TRIPLET) == set(form["required"])
        assert (form["type"], form["properties"]["options"]["type"]) == ("OBJECT", "ARRAY")
        picture, text = sent["contents"][0]["parts"]
        images[base64.urlsafe_b64decode(picture["inlineData"]["data"])] += 1
        assert "Exactly 4 options" in text["text"]
    assert images == Counter(ImageStore(root).read(row.image_sha256) for row in rows)


def test_a_thinking_budget_is_asked_for_beside_the_answer(root: Path, server: ChatServer) -> None:
    for budget in (0, 512):
        sampling = {"maxTokens": 300, "thinkingTokens": budget}
        jobs_fixtures.run(root, request(root, server, candidates=1, sampling=sampling))
        config = server.ledger.requests[-1]["generationConfig"]
        assert (config["maxOutputTokens"], config["thinkingConfig"]) == (300 + budget, {"thinkingBudget": budget})
    jobs_fixtures.run(root, request(root, server, candidates=1))
    assert "thinkingConfig" not in server.ledger.requests[-1]["generationConfig"]


ANSWERS = [
    ("ok", "", Answer()),
    ("invalid_json", "", Answer("Let me think about it.")),
    ("schema", "", Answer("{}")),
    ("wrong_option_count", "", Answer(json.dumps({**TRIPLET, "options": ["cyst", "mass"]}))),
    ("duplicate_options", "", Answer(json.dumps({**TRIPLET, "options": ["cyst", "cyst", "mass", "nodule"]}))),
    ("answer_not_in_options", "", Answer(json.dumps({**TRIPLET, "answer_text": "tumour"}))),
    ("answer_contradicts", "", Answer(json.dumps({**TRIPLET, "answer_letter": "A"}))),
    ("truncated", "", Answer('{"question": "Wh', finish_reason="MAX_TOKENS")),
    ("truncated", "", Answer("", finish_reason="MAX_TOKENS")),  # all of it went into thinking
    ("empty", "", Answer("")),
    ("empty", "OTHER", Answer("", finish_reason="OTHER")),
    ("empty", "", Answer(None)),
    *(
        ("refused", reason, Answer("", finish_reason=reason))
        for reason in ("SAFETY", "RECITATION", "BLOCKLIST", "PROHIBITED_CONTENT", "SPII", "IMAGE_SAFETY")
    ),
    *(("refused", f"prompt blocked: {why}", Answer(refusal=why)) for why in ("SAFETY", "PROHIBITED_CONTENT", "OTHER")),
    ("rejected", "bad image", Answer(status=400, body='{"error": {"message": "bad image", "status": "INVALID"}}')),
    ("rejected", "HTTP 413", Answer(status=413, body="{}")),
    ("unreadable", "", Answer(body="<html>hello</html>", headers={"content-type": "text/html"})),
    ("unreadable", "", Answer(body="{}")),
]


def test_every_answer_has_its_outcome(root: Path, server: ChatServer) -> None:
    by_seed: dict[int, tuple[str, str, Answer]] = {}

    def answer(number: int, body: dict[str, Any]) -> Answer:
        return by_seed.setdefault(GeminiServer.seed(body), ANSWERS[len(by_seed) % len(ANSWERS)])[2]

    server.answer = answer
    made = request(root, server, candidates=len(ANSWERS))
    found = jobs_fixtures.run(root, made)
    rows = found.rows(Candidate)
    assert outcomes(rows) == Counter(outcome for outcome, _, _ in ANSWERS)
    said = [row.error for row in rows]
    for _, word, _ in ANSWERS:
        assert any(word in error for error in said), word
    assert set(server.ledger.asked.values()) == {1}, "none is asked twice"
    for row in rows:
        free = row.outcome == "rejected"
        assert (row.usd == 0) == free, row
    paid, never_settled = ledgers(root, made)[f"{made.input_hash}-s0.jsonl"]
    assert never_settled == 0
    assert paid == pytest.approx(sum(row.usd for row in rows))
    assert paid >= QUESTION_USD * server.ledger.charged.total()


TROUBLE = {
    "429": retry(429, ""),
    "429 with Retry-After": retry(429, "0.05"),
    "500": retry(500, ""),
    "503 with Retry-After": retry(503, "0.05"),
    "429 with RetryInfo": Answer(
        status=429,
        body=json.dumps(
            {
                "error": {
                    "message": "quota",
                    "status": "RESOURCE_EXHAUSTED",
                    "details": [{"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "0.05s"}],
                }
            }
        ),
    ),
    "dropped before the answer": Answer(drop="before"),
    "dropped in the middle of the body": Answer(drop="middle"),
}


@pytest.mark.parametrize("kind", TROUBLE)
def test_trouble_is_tried_again_and_what_may_cost_is_counted(root: Path, server: ChatServer, kind: str) -> None:
    server.answer = lambda number, body: TROUBLE[kind] if number == 1 else Answer()
    made = request(root, server, candidates=4)
    rows = jobs_fixtures.run(root, made).rows(Candidate)
    assert outcomes(rows) == {"ok": 4}
    assert [row.attempts for row in rows] == [2] * 4
    charged = server.ledger.charged
    assert set(server.ledger.asked.values()) == {2}
    ((paid, never_settled),) = ledgers(root, made).values()
    assert never_settled == 0
    if "dropped" in kind:  # the server had made the answer: worst case
        assert set(charged.values()) == {2}
        assert paid > 2 * 4 * QUESTION_USD
    else:
        assert set(charged.values()) == {1}
        assert paid == pytest.approx(4 * QUESTION_USD)


def test_a_question_that_is_never_answered_is_a_row(root: Path, server: ChatServer) -> None:
    lost: set[int] = set()

    def answer(number: int, body: dict[str, Any]) -> Answer:
        if len(lost) < 3:
            lost.add(GeminiServer.seed(body))
        return retry(500, "") if GeminiServer.seed(body) in lost else Answer()

    server.answer = answer
    rows = jobs_fixtures.run(root, request(root, server)).rows(Candidate)
    assert outcomes(rows) == {"ok": 9, "http_error": 3}
    assert {row.attempts for row in rows if row.outcome == "http_error"} == {request_retry.MAX_REQUESTS}
    assert all("HTTP 500" in row.error for row in rows if row.outcome == "http_error")


def test_retry_info_is_kept_by_all_workers(root: Path, server: ChatServer) -> None:
    times: list[float] = []

    def answer(number: int, body: dict[str, Any]) -> Answer:
        times.append(time.monotonic())
        if len(times) == 1:
            error = json.loads(TROUBLE["429 with RetryInfo"].body or "")
            error["error"]["details"][0]["retryDelay"] = "1.5s"
            return Answer(status=429, body=json.dumps(error))
        return Answer(delay=0.2)

    server.answer = answer
    jobs_fixtures.run(root, request(root, server, candidates=6, concurrency=2))
    pause = [later - times[0] for later in times[1:]]
    assert sum(gap < 1.5 for gap in pause) <= 1, "only what was in flight already came before"


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (
            Answer(status=400, body='{"error": {"message": "API key not valid.", "status": "INVALID_ARGUMENT"}}'),
            "API key",
        ),
        (Answer(status=400, body='{"error": {"message": "no billing", "status": "FAILED_PRECONDITION"}}'), "billing"),
        (Answer(status=403, body="{}"), "may not use this model"),
        (Answer(status=404, body="{}"), "no such model"),
        (Answer(status=307, headers={"location": "http://127.0.0.2:1/"}, body=""), "sends us elsewhere"),
    ],
)
def test_the_account_and_the_address_stop_the_stage(
    root: Path, server: ChatServer, answer: Answer, words: str, capfd: pytest.CaptureFixture[str]
) -> None:
    server.answer = lambda number, body: answer
    assert main.execute(request(root, server, candidates=40), root) == 78
    told = "".join(capfd.readouterr())
    assert words in told
    assert KEY not in told
    assert len(server.ledger.requests) <= 4


def test_a_key_is_needed(root: Path, server: ChatServer, capfd: pytest.CaptureFixture[str]) -> None:
    """Without one the library would take that of our own environment."""
    made = request(root, server)
    del made.parameters["provider"]["apiKeySecretRef"]
    assert main.execute(made, root) == 78
    assert "apiKeySecretRef" in capfd.readouterr().err
    assert not server.ledger.requests


def test_outcomes_are_documented() -> None:
    text = (Path(__file__).parents[2] / "docs" / "generation.md").read_text()
    for name, outcome in candidate_schema.OUTCOMES.items():
        assert f"| `{name}` | {outcome.meaning} | {'yes' if outcome.asked_again else 'no'} |" in text
