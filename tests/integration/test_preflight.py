"""`medgr2 doctor` against a server that speaks the provider's protocol: key, model, image, answer, cost, budget."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from medgr2_api import paths
from medgr2_jobs.data import synthetic_images
from medgr2_jobs.preflight import provider_checks
from medgr2_jobs.preflight.__main__ import main
from medgr2_jobs.preflight.check_result import CheckStatus, PreflightContext
from tests.support.chat_server import Answer, ChatServer, serving
from tests.support.generate_fixtures import KEY, PRICES, QUESTION_USD, prepare_root
from tests.unit.jobs.preflight.test_data_checks import TINY, case


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return prepare_root(tmp_path, monkeypatch)


@contextmanager
def answering(answer: Answer) -> Iterator[ChatServer]:
    """A server that says the same to everybody."""
    with serving() as server:
        server.answer = lambda number, body: answer
        yield server


def trial(root: Path, server: ChatServer, questions: int = 2, **values: Any) -> PreflightContext:
    openai = {"model": "some/vlm", "baseURL": server.url, "apiKeySecretRef": {"name": "provider", "key": "key"}}
    generator = {"openAI": openai | values.pop("openai", {}), "prices": PRICES, "candidates": 1000, "concurrency": 2}
    found = case(root, generator=generator, iterations=2, **values)
    return PreflightContext(found.cycle, found.spec, root, questions)


def test_a_sound_provider_is_asked_and_the_whole_cost_is_told(root: Path) -> None:
    with serving() as server:
        asked, cost = provider_checks.trial(trial(root, server))
    assert asked.status is CheckStatus.OK
    assert asked.message.startswith(
        "some/vlm: 2 of 2 questions became triplets (asked about a drawn picture; --real-images"
    )
    assert cost.status is CheckStatus.OK
    assert f"{2000 * QUESTION_USD:.4g}" in cost.message
    assert len(server.ledger.requests) == 2
    spend = root / paths.spend("omnimed", paths.local_uid("omnimed"))
    assert list(spend.glob("*.jsonl")), "what a trial paid counts as spent by the cycle"


def test_a_wrong_key_is_told_before_the_run(root: Path) -> None:
    with answering(Answer(status=401, body='{"error": {"message": "no"}}')) as server:
        (found,) = provider_checks.trial(trial(root, server))
    assert found.status is CheckStatus.FAILED
    assert "refuses the API key" in found.message
    assert KEY not in found.message


def test_a_model_that_does_not_exist_is_told_before_the_run(root: Path) -> None:
    with answering(Answer(status=404, body='{"error": {"message": "no such model"}}')) as server:
        (found,) = provider_checks.trial(trial(root, server))
    assert found.status is CheckStatus.FAILED
    assert "no such model" in found.message


def test_a_secret_that_is_not_there_is_named(root: Path) -> None:
    with serving() as server:
        reference = {"apiKeySecretRef": {"name": "provider", "key": "other"}}
        (found,) = provider_checks.trial(trial(root, server, openai=reference))
    assert found.status is CheckStatus.FAILED
    assert "secret 'provider' has no key 'other'" in found.message
    assert not server.ledger.requests


def test_answers_of_which_none_is_a_triplet_fail_and_some_that_are_not_are_a_warning(root: Path) -> None:
    refusal = Answer(content="I cannot see images.")
    with answering(refusal) as server:
        asked, _ = provider_checks.trial(trial(root, server))
    assert asked.status is CheckStatus.FAILED
    assert "0 of 2 questions became triplets; the others: invalid_json" in asked.message
    with serving() as server:
        good: list[int] = []

        def answer(number: int, body: dict[str, Any]) -> Answer:
            good[:] = good or [body["seed"]]
            return Answer() if body["seed"] in good else refusal

        server.answer = answer
        asked, _ = provider_checks.trial(trial(root, server))
    assert asked.status is CheckStatus.WARNING
    assert "1 of 2 questions became triplets; the others: invalid_json" in asked.message


def test_a_budget_that_will_not_do_is_a_warning(root: Path) -> None:
    with serving() as server:
        _, cost = provider_checks.trial(trial(root, server, budget={"generatorUSD": 0.3}))
    assert cost.status is CheckStatus.WARNING
    assert "more than the budget of 0.3 USD" in cost.message


def test_no_question_is_asked_when_none_may_be(root: Path) -> None:
    with serving() as server:
        (found,) = provider_checks.trial(trial(root, server, questions=0))
    assert found.status is CheckStatus.SKIPPED
    assert not server.ledger.requests


def test_a_picture_that_may_not_leave_is_not_tried(root: Path) -> None:
    (root / "data/images").mkdir(parents=True)
    (root / "data/train").mkdir()
    Image.linear_gradient("L").save(root / "data/images/a.png")
    record = {"question_id": "1", "question_type": "x", "question": "x?", "gt_answer": "x", "image_path": "a.png",
              "option_A": "x", "option_B": "y", "modality_type": "CT"}  # fmt: skip
    (root / "data/train/q.json").write_text(json.dumps([record]))
    stays = {"data__sources": [_source(allowExternal=False)], "data__benchmarks": []}
    with serving() as server:
        outside = replace(trial(root, server, openai={"external": True}, **stays), real_images=True)
        (refused,) = provider_checks.trial(outside)
        assert refused.status is CheckStatus.FAILED
        assert "no source has an image on the volume that may be sent" in refused.message
        assert not server.ledger.requests
        inside = replace(trial(root, server, questions=1, **stays), real_images=True)
        asked, _ = provider_checks.trial(inside)
        assert asked.message == "some/vlm: 1 of 1 questions became triplets (asked about images of the sources)"
        drawn, _ = provider_checks.trial(trial(root, server, openai={"external": True}, questions=1, **stays))
        assert drawn.status is CheckStatus.OK
    assert len(server.ledger.requests) == 2


@pytest.mark.parametrize("missing", ["source", "benchmark"])
def test_real_pictures_wait_for_all_that_says_no(root: Path, missing: str) -> None:
    (root / "data/images").mkdir(parents=True)
    away = {"name": "away", "format": "MMMU", "uri": "hf://MMMU/MMMU"}
    sources = [_source(), *([{**away, "allowExternal": False}] if missing == "source" else [])]
    tests = [away] if missing == "benchmark" else []
    with serving() as server:
        about = trial(root, server, openai={"external": True}, data__sources=sources, data__benchmarks=tests)
        (refused,) = provider_checks.trial(replace(about, real_images=True))
    assert refused.status is CheckStatus.FAILED
    assert f"data.{missing}s[away]: its images may not leave, and it is not on the volume" in refused.message
    assert not server.ledger.requests


def test_a_workspace_that_is_not_made_yet_is_none_that_fails(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    phantoms = {"name": "seed", "format": "Phantom", "phantom": {"images": 4}}
    with serving() as server:
        found = trial(
            root, server, data__sources=[phantoms], data__benchmarks=[],
            policy__baseModel=TINY, rewardModel__baseModel=TINY,
        )  # fmt: skip
        file, workspace = tmp_path / "cycle.yaml", tmp_path / "not/yet"
        document = found.cycle.model_dump(mode="json", by_alias=True, exclude_none=True, exclude={"status"})
        file.write_text(yaml.safe_dump(document))
        arguments = [str(file), "--workspace", str(workspace), "--secrets-dir", str(tmp_path / "secrets")]
        done = subprocess.run(
            [sys.executable, "-m", "medgr2_operator.cli.app", "doctor", *arguments, "--questions", "0"],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        assert "GiB are free" in done.stdout
        assert not workspace.exists()
        assert main([*arguments, "--questions", "1"]) == 0, capsys.readouterr().out
    assert "1 of 1 questions became triplets" in capsys.readouterr().out


def _source(**changes: Any) -> dict[str, Any]:
    return {"name": "train", "format": "OmniMedVQA", "uri": "data/train", "images": "data/images", **changes}


def test_which_images_leave(root: Path) -> None:
    found = list(
        provider_checks.egress(case(root, data__sources=[_source(), {**_source(allowExternal=False), "name": "x"}]))
    )
    assert [finding.status for finding in found] == [CheckStatus.OK, CheckStatus.WARNING]
    with serving() as server:
        (inside,) = provider_checks.egress(trial(root, server))
    assert "no image leaves it" in inside.message


def test_the_command_says_it_all_and_fails_where_the_run_would(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder in ("data/train", "data/test"):
        synthetic_images.write(root / folder, dataset="x", seed=len(folder), images=3, questions_per_image=1)
    apart = {
        "data__sources": [{"name": "train", "format": "OmniMedVQA", "uri": "data/train"}],
        "data__benchmarks": [{"name": "test", "format": "OmniMedVQA", "uri": "data/test"}],
    }
    with serving() as server:
        found = trial(root, server, **apart, policy__baseModel=TINY, rewardModel__baseModel=TINY)
        file = tmp_path / "cycle.yaml"
        file.write_text(
            yaml.safe_dump(found.cycle.model_dump(mode="json", by_alias=True, exclude_none=True, exclude={"status"}))
        )
        arguments = [
            str(file),
            "--workspace",
            str(root),
            "--secrets-dir",
            str(tmp_path / "secrets"),
            "--questions",
            "1",
        ]
        assert main(arguments) == 0, capsys.readouterr().out
        told = capsys.readouterr().out
        assert "ok       data.sources[train].uri:" in told
        assert "ok       data.sources[train]: 3 records can be used" in told
        assert "1 of 1 questions became triplets" in told
        command = [sys.executable, "-m", "medgr2_operator.cli.app", "doctor", *arguments, "--json"]
        shutil.rmtree(root / "data/train")
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    failing = [finding["where"] for finding in json.loads(done.stdout) if finding["verdict"] == "failed"]
    assert failing == ["data.sources[train].uri"]  # told once, by its cause
