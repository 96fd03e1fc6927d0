"""Stage generate against a real `transformers serve` behind a proxy that injects faults: outcomes, and the accounts.

The tiny model's words are random; where a fault needs certain words the proxy puts them into the real answer, and the
tokens stay those that the server counted.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from medgr2_api.stage_contract import VLLM_BASE_URL_ENV
from medgr2_jobs.generate import request_retry, request_scheduler, sampling_plan
from medgr2_jobs.generate.providers import http
from medgr2_jobs.store.rows.candidates import Candidate
from tests.support import jobs_fixtures
from tests.support.chat_server import TRIPLET
from tests.support.fault_proxy import Fault, FaultProxy, proxying
from tests.support.generate_fixtures import PRICES, asked, ledgers, outcomes, prepare_root
from tests.support.transformers_server import transformers_serve

GOOD = Fault(content=json.dumps(TRIPLET), finish_reason="stop")
PROSE = Fault(content="So …", finish_reason="stop")


def said(**changes: Any) -> Fault:
    return Fault(content=json.dumps({**TRIPLET, **changes}), finish_reason="stop")


#: name → what happens first, what happens then, the row's outcome, requests in all.
FAULTS: dict[str, tuple[Fault, Fault, str, int]] = {
    "good": (GOOD, GOOD, "ok", 1),
    "429": (Fault(status=429), GOOD, "ok", 2),
    "429 with Retry-After": (Fault(status=429, headers={"retry-after": "0.05"}), GOOD, "ok", 2),
    "500": (Fault(status=500), GOOD, "ok", 2),
    "503": (Fault(status=503), GOOD, "ok", 2),
    "503 for ever": (Fault(status=503), Fault(status=503), "http_error", request_retry.MAX_REQUESTS),
    "slow, then in time": (Fault(delay=6), GOOD, "ok", 2),
    "dropped before the body": (Fault(drop="before"), GOOD, "ok", 2),
    "dropped in the middle of the body": (Fault(drop="middle"), GOOD, "ok", 2),
    "not JSON": (PROSE, PROSE, "invalid_json", 2),
    "not JSON, then corrected": (PROSE, GOOD, "ok", 2),
    "wrong option count": (said(options=["cyst"]), said(options=["cyst"]), "wrong_option_count", 2),
    "answer not among the options": (said(answer_text="x"), said(answer_text="x"), "answer_not_in_options", 2),
    "safety block": (Fault(content="", finish_reason="content_filter"), GOOD, "refused", 1),
    "truncated": (Fault(content='{"que', finish_reason="length"), GOOD, "truncated", 1),
    "nothing": (Fault(content="", finish_reason="stop"), GOOD, "empty", 1),
    "400": (Fault(status=400), GOOD, "rejected", 1),
    "a page instead of the protocol": (Fault(body="<html>"), GOOD, "unreadable", 1),
}


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    pytest.importorskip("fastapi")
    with transformers_serve(tmp_path_factory.mktemp("serve")) as running:
        yield running


@pytest.fixture
def proxy(real: tuple[str, str]) -> Iterator[FaultProxy]:
    with proxying(real[0]) as running:
        yield running


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return prepare_root(tmp_path, monkeypatch)


@pytest.mark.slow
def test_each_fault_ends_as_documented_and_the_accounts_agree(
    root: Path, real: tuple[str, str], proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "TIMEOUT", http.httpx2.Timeout(5, connect=5))
    by_seed: dict[int, str] = {}

    def fault(number: int, body: dict[str, Any]) -> Fault:
        name = by_seed.setdefault(body["seed"], list(FAULTS)[len(by_seed) % len(FAULTS)])
        return FAULTS[name][min(number - 1, 1)]

    proxy.fault = fault
    count = 2 * len(FAULTS)
    made = asked(
        root,
        proxy.url,
        candidates=count,
        model=real[1],
        concurrency=3,
        about={"prices": PRICES},
        generator_budget_usd=10.0,
        sampling={"temperature": 1.0, "topP": 1.0, "maxTokens": 8},
    )
    rows = jobs_fixtures.run(root, made).rows(Candidate)
    assert len(rows) == count == len(by_seed)
    expected = [FAULTS[name][2] for name in by_seed.values()]
    assert outcomes(rows) == {name: expected.count(name) for name in set(expected)}
    for seed, name in by_seed.items():
        assert proxy.asked[seed] == FAULTS[name][3], f"{name}: requests"

    def cost(tokens: tuple[int, int]) -> float:
        return (tokens[0] * PRICES["inputUSDPerMillionTokens"] + tokens[1] * PRICES["outputUSDPerMillionTokens"]) / 1e6

    theirs = sum(cost(answer) for answers in proxy.tokens.values() for answer in answers)
    ((paid, never_settled),) = ledgers(root, made).values()
    assert never_settled == 0
    assert paid == pytest.approx(sum(row.usd for row in rows))
    assert paid >= theirs - 1e-9, "nothing was charged that we do not know of"
    # what arrived is booked exactly; what was lost on the way, or nobody could read, at its worst case
    lost = {
        "slow, then in time",
        "dropped before the body",
        "dropped in the middle of the body",
        "a page instead of the protocol",
    }
    for row in rows:
        seed = request_scheduler._seed(5, sampling_plan.Task(row.triplet_id, "", "", ""))
        exact = sum(cost(answer) for answer in proxy.tokens.get(seed, []))
        if by_seed[seed] in lost:
            assert row.usd > exact
        else:
            assert row.usd == pytest.approx(exact), by_seed[seed]


@pytest.mark.slow
def test_vllm_is_sent_the_image_by_its_content(
    root: Path, real: tuple[str, str], proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Equal images are equal bytes, under their sha256 as name: that is what the encoder cache goes by."""
    parts: dict[str, set[str]] = {}

    def fault(number: int, body: dict[str, Any]) -> Fault:
        part = body["messages"][0]["content"][0]
        parts.setdefault(part["uuid"], set()).add(part["image_url"]["url"])
        return GOOD

    proxy.fault = fault
    monkeypatch.setenv(VLLM_BASE_URL_ENV, proxy.url)
    about = {"baseUrl": "", "apiKeySecretRef": None}
    made = asked(root, "", kind="vllm", model=real[1], candidates=8, about=about, sampling={"maxTokens": 8})
    rows = jobs_fixtures.run(root, made).rows(Candidate)
    assert outcomes(rows) == {"ok": 8}
    assert set(parts) == {row.image_sha256 for row in rows}
    assert len(parts) == 4
    assert all(len(urls) == 1 for urls in parts.values())


@pytest.mark.slow
@pytest.mark.parametrize("parameter", ["response_format", "max_tokens"])
def test_a_parameter_that_the_server_refuses_is_left_out_from_then_on(
    root: Path, real: tuple[str, str], proxy: FaultProxy, parameter: str
) -> None:
    refused: list[int] = []

    def fault(number: int, body: dict[str, Any]) -> Fault:
        if parameter in body:
            refused.append(body["seed"])
            return Fault(status=400)
        return GOOD

    proxy.fault = fault
    proxy.refusal = f'{{"error": {{"message": "{parameter} is not supported"}}}}'.encode()
    made = asked(root, proxy.url, model=real[1], candidates=12, concurrency=2, sampling={"maxTokens": 8})
    rows = jobs_fixtures.run(root, made).rows(Candidate)
    assert outcomes(rows) == {"ok": 12}
    assert 1 <= len(refused) <= 2, "at most once for each request that was in flight"
    assert proxy.asked.total() == 12 + len(refused)
