"""Requests to stage generate, and a workspace for them, with a key of its own."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from medgr2_api import paths
from medgr2_api.stage_contract import REQUEST_ENV, SECRETS_ENV, WORKSPACE_ENV, StageRequest
from medgr2_jobs.generate import append_only_log, rate_control
from medgr2_jobs.generate.egress_policy import ClearedImage, EgressPolicy
from medgr2_jobs.generate.prepared_images import ImageUse, PreparedImages
from medgr2_jobs.runner import main
from medgr2_jobs.store.rows.candidates import Candidate
from tests.support import jobs_fixtures
from tests.support.chat_server import TOKENS_IN, TOKENS_OUT
from tests.support.fork_runner import ForkedProgram

KEY = "sk-secret-of-the-tests"
#: Where prepared images come from, by the spec of now.
SOURCE = {"name": "seed", "format": "VQAJsonl", "uri": "seed.jsonl", "role": "Seed", "allowExternal": True}
TYPES = ["Diagnosis", "Anatomy", "Modality"]
#: USD for a million tokens, in and out: a question of the loopback servers costs 0.0002 USD.
PRICES = {"inputUSDPerMillionTokens": 1.0, "outputUSDPerMillionTokens": 2.0, "maxImageTokens": 500}
QUESTION_USD = (TOKENS_IN * 1.0 + TOKENS_OUT * 2.0) / 1e6


def prepare_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A workspace; secrets beside it; retries that do not wait."""
    folder = tmp_path / "workspace"
    folder.mkdir()
    secret = tmp_path / "secrets" / "provider" / "key"
    secret.parent.mkdir(parents=True)
    secret.write_text(KEY + "\n")
    monkeypatch.setenv(SECRETS_ENV, str(tmp_path / "secrets"))
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-somebody-else")
    monkeypatch.setenv("GOOGLE_API_KEY", "key-of-somebody-else")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(rate_control, "BACKOFF", 0.01)
    return folder


def asked(
    root: Path, url: str, *, candidates: int = 12, prepared: jobs_fixtures.Prepared | None = None, **changes: Any
) -> StageRequest:
    """A request for `candidates` questions, two per image."""
    provider = {
        "kind": changes.pop("kind", "openAI"),
        "model": changes.pop("model", "some/vlm"),
        "baseUrl": url,
        "concurrency": changes.pop("concurrency", 4),
        "apiKeySecretRef": {"name": "provider", "key": changes.pop("key", "key")},
        **changes.pop("about", {}),
    }
    fields = {
        name: changes.pop(name)
        for name in ("shard", "attempt", "generator_budget_usd", "cycle", "grace_seconds")
        if name in changes
    }
    parameters = {
        "seed": 5,
        "iteration": 1,
        "provider": provider,
        "paradigms": [{"name": "Direct"}, {"name": "StepByStep"}, {"name": "MetaCognitive"}],
        "questionTypes": TYPES,
        "candidates": candidates,
        "questionsPerImage": 2,
        "sampling": {"temperature": 0.5, "topP": 0.9, "maxTokens": 300},
        "answerFormat": "Letter",
        "shards": 1,
        "sources": [SOURCE],
        **changes,
    }
    prepared = prepared or jobs_fixtures.phantoms(root, {"train": 8, "test": 2})
    prepare = jobs_fixtures.publish(root, "prepare", prepared.tables)
    return jobs_fixtures.request("generate", 1, parameters, {"prepare": prepare}, **fields)


class StageProcess(ForkedProgram):
    """The stage in a process of its own."""

    def output(self, timeout: float) -> str:
        """What it said, once it has ended."""
        return self.communicate(timeout)[0].decode()


def start(root: Path, request: StageRequest, **more: str) -> StageProcess:
    """Starts the stage; what it says lies beside the workspace."""
    environment = {**os.environ, REQUEST_ENV: json.dumps(request.dump()), WORKSPACE_ENV: str(root), **more}
    return StageProcess(main.main, environment=environment, out=root.with_name(f"stage-a{request.attempt}.log"))


def drawn_image() -> ClearedImage:
    """A picture for a question, drawn by the gate."""
    gate = EgressPolicy([], PreparedImages(), Path(), external=True)
    return gate.read(gate.draw())


def prepared_images(prepared: jobs_fixtures.Prepared) -> PreparedImages:
    """As stage generate reads them."""
    uses = [
        ImageUse(row.image_sha256, row.modality, row.source, row.split, row.allow_external) for row in prepared.images
    ]
    return PreparedImages.of(uses, prepared.origins)


def outcomes(rows: list[Candidate]) -> Counter[str]:
    return Counter(row.outcome for row in rows)


def ledgers(root: Path, request: StageRequest) -> dict[str, tuple[float, float]]:
    """What each ledger of the request's cycle says: paid, and never settled; by the file's name."""
    totals = {}
    for path in sorted((root / paths.spend(request.cycle.name, request.cycle.uid)).glob("*.jsonl")):
        reserved: dict[int, float] = {}
        paid: dict[int, float] = {}
        for line in append_only_log.read(path):
            (paid if "paid" in line else reserved)[line["n"]] = line.get("paid", line.get("reserved"))
        totals[path.name] = (sum(paid.values()), sum(usd for n, usd in reserved.items() if n not in paid))
    return totals
