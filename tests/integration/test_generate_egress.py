"""No image leaves the site that may not: seen by the server itself, in the bytes of every request."""

from __future__ import annotations

import base64
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from medgr2_api.stage_contract import StageRequest
from medgr2_jobs.generate import egress_policy, probe, sampling_plan
from medgr2_jobs.runner import main
from medgr2_jobs.runner.attempt import build_context
from medgr2_jobs.runner.process_group import ProcessGroup
from medgr2_jobs.store.images import ImageStore
from medgr2_jobs.store.rows.candidates import Candidate
from tests.support import jobs_fixtures
from tests.support.chat_server import ChatServer, DescribeServer, GeminiServer, serving
from tests.support.generate_fixtures import asked, outcomes, prepare_root, prepared_images
from tests.support.plugin_fixtures import install, plugin

SERVERS = {"openAI": ChatServer, "gemini": GeminiServer, "plugin": DescribeServer}


@pytest.fixture(params=SERVERS)
def server(request: pytest.FixtureRequest) -> Iterator[ChatServer]:
    with serving(SERVERS[request.param]) as running:
        yield running


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    install(monkeypatch)
    return prepare_root(tmp_path, monkeypatch)


def mixed(root: Path) -> jobs_fixtures.Prepared:
    """Eight training images: the first three may leave; the fourth comes from two sources, and one says no."""
    prepared = jobs_fixtures.phantoms(root, {"train": 8, "test": 2})
    prepared.images = [replace(row, allow_external=number < 4) for number, row in enumerate(prepared.images)]
    prepared.images.append(replace(prepared.images[3], source="other", allow_external=False))
    return prepared


def request(root: Path, server: ChatServer, prepared: jobs_fixtures.Prepared, *, external: bool = True) -> StageRequest:
    kind = next(kind for kind, served in SERVERS.items() if served is type(server))
    about = {"external": external, **({"plugin": plugin("describe")} if kind == "plugin" else {})}
    return asked(root, server.url, kind=kind, prepared=prepared, about=about)


def sent(server: ChatServer, root: Path, prepared: jobs_fixtures.Prepared) -> set[str]:
    """Images whose bytes were in any request, whatever form they had there."""
    store, found = ImageStore(root), set()
    everything = b"\n".join(server.ledger.bodies).replace(b"-", b"+").replace(b"_", b"/")
    for row in prepared.images:
        data = store.read(row.image_sha256)
        if base64.b64encode(data)[:-4] in everything or data in everything:
            found.add(row.image_sha256)
    return found


def test_only_images_that_may_leave_are_asked_about(root: Path, server: ChatServer) -> None:
    prepared = mixed(root)
    found = jobs_fixtures.run(root, request(root, server, prepared))
    allowed = {row.image_sha256 for row in prepared.images[:3]}
    assert sent(server, root, prepared) == allowed
    rows = found.rows(Candidate)
    assert outcomes(rows) == {"ok": 12}
    assert {row.image_sha256 for row in rows} == allowed
    assert found.manifest.counters["images_withheld"] == 5


def test_a_provider_inside_sees_all(root: Path) -> None:
    with serving() as server:
        prepared = mixed(root)
        found = jobs_fixtures.run(root, request(root, server, prepared, external=False))
        train = {row.image_sha256 for row in prepared.images if row.split == "train"}
        assert {row.image_sha256 for row in found.rows(Candidate)} == sent(server, root, prepared) <= train
        assert sent(server, root, prepared) & {row.image_sha256 for row in prepared.images[3:8]}
        assert found.manifest.counters["images_withheld"] == 0


def test_gemini_is_outside_whatever_the_request_says(root: Path) -> None:
    with serving(GeminiServer) as server:
        prepared = mixed(root)
        jobs_fixtures.run(root, request(root, server, prepared, external=False))
        assert sent(server, root, prepared) == {row.image_sha256 for row in prepared.images[:3]}


def test_tampered_tasks_stop_the_stage_before_any_byte(
    root: Path, server: ChatServer, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    prepared = mixed(root)
    honest = sampling_plan.tasks

    def tampered(*args: Any, **kwargs: Any) -> list[sampling_plan.Task]:
        made = honest(*args, **kwargs)
        return [
            sampling_plan.Task(t.triplet_id, prepared.images[5].image_sha256, t.modality, t.question_type) for t in made
        ]

    monkeypatch.setattr(sampling_plan, "tasks", tampered)
    assert main.execute(request(root, server, prepared), root) == 78
    assert "may not leave the site" in capfd.readouterr().err
    assert server.ledger.bodies == []


def test_a_sample_keeps_to_it(root: Path, server: ChatServer) -> None:
    prepared = mixed(root)
    made = request(root, server, prepared)
    parameters = build_context(made, root, threading.Event(), ProcessGroup(), None).parameters
    assert len(probe.sample(root, made.cycle, parameters, prepared_images(prepared), 6)) == 6
    assert sent(server, root, prepared) == {row.image_sha256 for row in prepared.images[:3]}


def test_nothing_may_leave(root: Path, server: ChatServer, capfd: pytest.CaptureFixture[str]) -> None:
    prepared = mixed(root)
    # as an older table says it: nobody has said yes
    prepared.images = [replace(row, allow_external=None) for row in prepared.images]
    assert main.execute(request(root, server, prepared), root) == 78
    told = capfd.readouterr().err
    assert "none of the 8 training images may leave the site" in told
    assert "allowExternal: true" in told
    assert server.ledger.bodies == []


def test_the_gate_is_the_only_reader_of_bytes_that_are_sent() -> None:
    texts = {path.name: path.read_text() for path in Path(egress_policy.__file__).parent.rglob("*.py")}
    readers = [name for name, text in texts.items() if "ImageStore" in text or "PIL" in text]
    assert readers == ["egress_policy.py"]


def _proxied(root: Path, server: ChatServer, monkeypatch: pytest.MonkeyPatch, name: str, *, external: bool) -> int:
    """How many of the questions a proxy saw that the environment names."""
    with serving(type(server)) as proxy:
        for each in ("NO_PROXY", "no_proxy"):
            monkeypatch.delenv(each, raising=False)
        monkeypatch.setenv(name, proxy.url.removesuffix(proxy.path))
        jobs_fixtures.run(root, request(root, server, mixed(root), external=external))
        assert len(proxy.ledger.bodies) + len(server.ledger.bodies) == 12
        return len(proxy.ledger.bodies)


PROXIES = ["HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"]


@pytest.mark.parametrize("name", PROXIES)
@pytest.mark.parametrize("kind", ["openAI", "plugin"])
def test_a_provider_on_site_is_never_asked_through_a_proxy(
    root: Path, monkeypatch: pytest.MonkeyPatch, kind: str, name: str
) -> None:
    with serving(SERVERS[kind]) as server:
        assert _proxied(root, server, monkeypatch, name, external=False) == 0


def test_one_outside_is_asked_through_the_sites_proxy(
    root: Path, monkeypatch: pytest.MonkeyPatch, server: ChatServer
) -> None:
    assert _proxied(root, server, monkeypatch, "HTTP_PROXY", external=True) == 12


def test_a_vllm_beside_the_stage_is_asked_directly(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving() as server:
        monkeypatch.setenv("MEDGR2_VLLM_BASE_URL", server.url)
        monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:1")
        monkeypatch.delenv("NO_PROXY")
        found = jobs_fixtures.run(root, asked(root, "", kind="vllm", about={"apiKeySecretRef": None}))
        assert outcomes(found.rows(Candidate)) == {"ok": 12}


def test_a_key_is_not_sent_unencrypted_to_a_server_outside(root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    made = asked(root, "http://134744072/v1", about={"external": True})
    assert main.execute(made, root) == 78
    assert "the API key would cross networks of others unencrypted: use https" in capfd.readouterr().err
