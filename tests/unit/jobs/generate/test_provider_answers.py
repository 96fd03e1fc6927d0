"""Whatever a provider answers is a reply: no traceback, no stage that ends, no row that cannot be written."""

from __future__ import annotations

import asyncio
import gzip
import json
import math
import random
import tracemalloc
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.support.chat_server import TRIPLET, Answer, ChatServer, GeminiServer
from tests.support.curate_fixtures import candidate
from tests.support.generate_fixtures import drawn_image
from tests.support.hostile_answers import DIALECTS, answering, raw_answer

from medgr2_api.generator import RateLimit, Sampling
from medgr2_api.stages.generate import Provider
from medgr2_jobs.errors import ConfigError, TemporaryError
from medgr2_jobs.generate import providers, rate_control
from medgr2_jobs.generate.pricing import TokenUsage
from medgr2_jobs.generate.providers import http
from medgr2_jobs.generate.providers.base import ImageQuestion, ProviderAccess, Reply
from medgr2_jobs.generate.rate_control import RateController
from medgr2_jobs.generate.request_retry import QuestionResult, RetryingClient
from medgr2_jobs.store import tables
from medgr2_jobs.store.rows.candidates import Candidate, CandidateOutcome

QUESTION = ImageQuestion("what is it?", drawn_image(), 7)
TEXT = json.dumps(TRIPLET)


@pytest.fixture(autouse=True)
def _here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(rate_control, "BACKOFF", 0.0)
    monkeypatch.setattr(http, "TIMEOUT", http.httpx2.Timeout(2, connect=2))


def access(kind: str, url: str) -> ProviderAccess:
    provider = Provider.model_validate({"kind": kind, "model": "m", "baseUrl": url, "concurrency": 1})
    return ProviderAccess(provider, "sk-key", Sampling())


def replies(kind: str, answers: Sequence[bytes]) -> list[Reply]:
    """What the real client makes of these answers, one after another."""

    async def ask() -> list[Reply]:
        rest = iter(answers)
        async with answering(lambda: next(rest)) as url:
            client = providers.connect(access(kind, url))
            try:
                return [await client.ask(QUESTION) for _ in answers]
            finally:
                await client.close()

    return asyncio.run(ask())


def sent(body: bytes | str | dict[str, Any] | list[Any], *headers: str, status: int = 200) -> bytes:
    data = body if isinstance(body, bytes) else (body if isinstance(body, str) else json.dumps(body)).encode()
    return "\r\n".join([f"HTTP/1.1 {status} x", "connection: close", *headers, "", ""]).encode() + data


def completion(**message: Any) -> dict[str, Any]:
    made = ChatServer.completion({"model": "m"}, Answer(TEXT))
    made["choices"][0]["message"] |= message
    return made


def openai_usage(usage: Any) -> dict[str, Any]:
    return {**completion(), "usage": usage}


def gemini_usage(usage: Any) -> dict[str, Any]:
    return {**GeminiServer.completion({}, Answer(TEXT)), "usageMetadata": usage}


@pytest.mark.parametrize("kind", DIALECTS)
@pytest.mark.parametrize("seed", range(2))
def test_no_answer_whatever_it_is_ends_anything(kind: str, seed: int, tmp_path: Path) -> None:
    """Through the real clients, the retries and the parser, into the table."""
    rng, results = random.Random(f"{kind}/{seed}"), list[QuestionResult]()

    async def ask() -> Counter[str]:
        stopped: Counter[str] = Counter()
        async with answering(lambda: raw_answer(rng, DIALECTS[kind])) as url:
            client = providers.connect(access(kind, url))
            for _ in range(250):
                asked = RetryingClient(client, RateController(1, RateLimit(), 1, 1000), None, None, 100)
                try:
                    results.append(await asked.answer(QUESTION))
                except (ConfigError, TemporaryError) as error:  # the key, the address; a pause of days
                    stopped[type(error).__name__] += 1
            await client.close()
        return stopped

    stopped = asyncio.run(ask())
    assert stopped.total() < 60, stopped
    rows = [
        replace(
            candidate(f"t{at}", "i", "q"),
            outcome=result.outcome,
            error=result.error,
            input_tokens=result.input_tokens,
            output_tokens=result.output_tokens,
            thinking_tokens=result.thinking_tokens,
        )
        for at, result in enumerate(results)
    ]
    tables.write(tmp_path / "candidates.parquet", Candidate, rows)
    assert tables.read(tmp_path / "candidates.parquet", Candidate) == rows
    seen = {str(result.outcome) for result in results}
    assert {"ok", "unreadable", "rejected"} <= seen, "the cases reach these ends"


@pytest.mark.parametrize(
    "content",
    [
        [{"type": "text", "text": TEXT}],
        [{"type": "text", "text": TEXT[:9]}, {"type": "text", "text": TEXT[9:]}],
        [{"type": "output_text", "text": TEXT, "annotations": []}],
        [TEXT],
        [{"type": "thinking", "thinking": [{"type": "text", "text": "{}"}]}, {"type": "text", "text": TEXT}],
        [{"type": "reasoning", "text": "{"}, {"type": "text", "text": TEXT}],
    ],
)
def test_the_text_may_come_in_parts(content: Any) -> None:
    (reply,) = replies("openAI", [sent(completion(content=content))])
    assert (reply.outcome, reply.text, reply.usage) == ("ok", TEXT, TokenUsage(100, 50))


UNREADABLE = {
    "choices an object": {"choices": {"0": completion()["choices"][0]}},
    "a choice that is null": {"choices": [None]},
    "no message": {"choices": [{"finish_reason": "stop"}]},
    "content a number": completion(content=5),
    "content an object": completion(content={"text": TEXT}),
    "a part that is null": completion(content=[None]),
    "an error with status 200": {"error": {"message": "overloaded", "code": 503}},
    "a list": [completion()],
    "a stream": f"data: {json.dumps(completion())}\n\ndata: [DONE]\n\n",
    "a page": "<!doctype html><title>Login</title>",
    "nothing": "",
    "deep": "[" * 200_000,
    "bytes that are no text": b'{"choices": [{"message": {"content": "\xff"}}]}',
    "half a surrogate": '{"choices": [{"message": {"content": "\\ud83d"}}]}',
    "a number of 5000 digits": '{"choices": ' + "9" * 5000 + "}",
}


@pytest.mark.parametrize("name", UNREADABLE)
@pytest.mark.parametrize("kind", DIALECTS)
def test_what_is_not_the_protocol_is_unreadable(kind: str, name: str) -> None:
    (reply,) = replies(kind, [sent(UNREADABLE[name])])
    assert reply.failure is not None
    assert reply.failure.outcome is CandidateOutcome.UNREADABLE
    assert reply.failure.billed
    assert "sk-key" not in reply.failure.error


@pytest.mark.parametrize(
    "counted",
    [None, 5, [], {"in": 1}, *({"a": value, "b": 50} for value in (-1, 10**30, "100", 1.5, True, None, [], 0)), "text"],
)
def test_tokens_that_are_no_count_are_not_counted(counted: Any) -> None:
    """What nobody has counted is charged at its worst case; it is no reason to lose the answer."""

    def named(first: str, second: str) -> Any:
        return (
            {{"a": first, "b": second}.get(name, name): value for name, value in counted.items()}
            if isinstance(counted, dict)
            else counted
        )

    (ours,) = replies("openAI", [sent(openai_usage(named("prompt_tokens", "completion_tokens")))])
    (theirs,) = replies("gemini", [sent(gemini_usage(named("promptTokenCount", "candidatesTokenCount")))])
    for reply in (ours, theirs):
        assert (reply.outcome, reply.text, reply.usage) == ("ok", TEXT, None)


def test_not_a_number_as_a_count() -> None:
    body = json.dumps(openai_usage({"prompt_tokens": math.nan, "completion_tokens": math.inf}))
    assert replies("openAI", [sent(body)])[0].usage is None


def test_thinking_that_stands_in_the_total_only_is_charged() -> None:
    usage = {"prompt_tokens": 100, "completion_tokens": 50, "total_tokens": 450}
    assert replies("openAI", [sent(openai_usage(usage))])[0].usage == TokenUsage(100, 50, 300)
    usage |= {"total_tokens": 150, "completion_tokens_details": {"reasoning_tokens": 30}}
    assert replies("openAI", [sent(openai_usage(usage))])[0].usage == TokenUsage(100, 20, 30)


@pytest.mark.parametrize(
    ("reason", "outcome"), [("max_tokens", "truncated"), ("MAX_TOKENS", "truncated"), ("SAFETY", "refused"), (7, "ok")]
)
def test_reasons_in_the_words_of_others(reason: Any, outcome: str) -> None:
    made = completion()
    made["choices"][0]["finish_reason"] = reason
    assert replies("openAI", [sent(made)])[0].outcome == outcome


@pytest.mark.parametrize("kind", DIALECTS)
def test_an_answer_without_end_is_read_to_a_bound(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "MAX_BODY", 2**20)
    bomb = gzip.compress(bytes(2**28), 9)
    long = [
        sent(bomb, "content-encoding: gzip"),
        sent(zlib.compress(bytes(2**26)), "content-encoding: deflate"),
        sent(gzip.compress(bomb), "content-encoding: gzip, gzip"),
        sent(b" " * 2**22),
        sent(bomb, "content-encoding: gzip", status=500),
    ]
    del bomb
    tracemalloc.start()
    try:
        answered = replies(kind, long)
        assert tracemalloc.get_traced_memory()[1] < 64 * 2**20
    finally:
        tracemalloc.stop()
    assert [reply.failure and reply.failure.outcome for reply in answered] == ["unreadable"] * 5


@pytest.mark.parametrize("encode", [gzip.compress, zlib.compress])
def test_a_gateway_that_compresses_without_being_asked_is_read(encode: Any) -> None:
    body = encode(json.dumps(completion()).encode())
    name = "gzip" if encode is gzip.compress else "deflate"
    whole, half = replies(
        "openAI", [sent(body, f"content-encoding: {name}"), sent(body[:-20], f"content-encoding: {name}")]
    )
    assert whole.text == TEXT
    assert half.failure is not None
    assert half.failure.outcome is CandidateOutcome.UNREADABLE


def test_an_answer_that_drips_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "TIMEOUT", http.httpx2.Timeout(0.3, connect=2))

    async def ask() -> Reply:
        async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 x\r\ncontent-length: 1000\r\n\r\n")
            for _ in range(100):
                writer.write(b" ")
                await asyncio.sleep(0.1)

        server = await asyncio.start_server(drip, "127.0.0.1", 0)
        client = providers.connect(access("openAI", f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"))
        try:
            return await asyncio.wait_for(client.ask(QUESTION), 5)
        finally:
            await client.close()
            server.close()

    reply = asyncio.run(ask())
    assert reply.failure is not None
    assert (reply.failure.outcome, reply.failure.billed) == ("http_error", True)
