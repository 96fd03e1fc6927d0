"""The gate: who says yes to an image, and that nothing but the gate hands one to a provider."""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
from tests.support import jobs_fixtures
from tests.support.fixtures import prepare_parameters

from medgr2_api.data import ResolvedSource
from medgr2_jobs.errors import ConfigError
from medgr2_jobs.generate.egress_policy import ClearedImage, EgressPolicy, allowed_images
from medgr2_jobs.generate.prepared_images import ImageUse, PreparedImages
from medgr2_jobs.generate.providers.base import ImageQuestion, Repair
from medgr2_jobs.store.artifact import ArtifactReader
from medgr2_jobs.store.rows import Split
from medgr2_jobs.store.rows.prepared import Image, ImageOrigin

ROOT = Path(__file__).parents[4]


def source(name: str, allowed: bool = True, **changes: Any) -> ResolvedSource:
    document = {"name": name, "format": "VQAJsonl", "uri": f"{name}.jsonl", "role": "Seed", "allowExternal": allowed}
    return ResolvedSource.model_validate(document | changes)


def images(*origins: str, published: bool = True, read: tuple[ResolvedSource, ...] = ()) -> PreparedImages:
    """One image of these sources; `published`: what prepare's table says of it."""
    row = ImageUse("x", "CT", origins[0], Split.TRAIN, published)
    return PreparedImages.of([row], [ImageOrigin("x", name) for name in origins], lambda: read)


@pytest.mark.parametrize(
    ("origins", "published", "now", "allowed"),
    [
        ("a", True, [source("a")], True),
        ("a", False, [source("a")], False),
        ("a", True, [source("a", False)], False),
        ("a", True, [], False),
        ("a", True, [source("b")], False),
        ("ab", True, [source("a"), source("b")], True),
        ("ab", True, [source("a"), source("b", False)], False),
        ("ba", True, [source("a"), source("b", False)], False),
        ("ab", True, [source("a")], False),  # b has gone, or is a benchmark
    ],
)
def test_the_stricter_of_then_and_now_counts_over_all_sources(
    tmp_path: Path, origins: str, published: bool, now: list[ResolvedSource], allowed: bool
) -> None:
    read = (source("a"), source("b"))
    prepared = images(*origins, published=published, read=read)
    assert EgressPolicy(now, prepared, tmp_path, external=True).allows("x") is allowed
    assert EgressPolicy(now, prepared, tmp_path, external=False).allows("x")


@pytest.mark.parametrize(
    "changes",
    [
        {"uri": "elsewhere"}, {"images": "other"}, {"format": "OmniMedVQA"},
        {"format": "DICOM", "role": "Images", "dicom": {"maxFrames": 3}},
        {"format": "MMMU", "mmmu": {"subjects": ["Pharmacy"]}},
        {"format": "Plugin", "plugin": {"name": "p", "version": "2"}},
    ],
)  # fmt: skip
def test_nothing_leaves_while_a_source_that_says_no_was_not_read(tmp_path: Path, changes: dict[str, Any]) -> None:
    prepared = images("a", read=(source("a"), source("b", False)))
    gate = EgressPolicy([source("a"), source("b", False, **changes)], prepared, tmp_path, external=True)
    with pytest.raises(ConfigError, match=r"data.sources\[b\].* run prepare again"):
        allowed_images(gate, {"x": "CT"})
    with pytest.raises(ConfigError, match="may not leave the site"):
        gate.read("x")
    # one that says yes tells nothing about the others, and a word about modality or role moves no picture
    assert EgressPolicy([source("a"), source("b", **changes)], prepared, tmp_path, external=True).allows("x")
    named = source("b", False, modality="MRI", role="Images")
    assert EgressPolicy([source("a"), named], prepared, tmp_path, external=True).allows("x")


@pytest.mark.parametrize(("now", "allowed"), [({"seed", "pool"}, {"x", "y"}), ({"seed"}, set()), (set(), set())])
def test_a_table_of_an_earlier_version_names_one_source_so_any_that_said_yes_may_have_the_image(
    tmp_path: Path, now: set[str], allowed: set[str]
) -> None:
    rows = [
        Image(name, 9, 9, "CT", "seed", "", Split.TRAIN, external, "", "", "")
        for name, external in (("x", True), ("y", True), ("z", False))
    ]
    phantoms = {"format": "Phantom", "phantom": {"images": 4}}
    sources = [
        {"name": "seed", **phantoms}, {"name": "pool", **phantoms},
        {"name": "kept", **phantoms, "allowExternal": False},
    ]  # fmt: skip
    parameters = prepare_parameters(data={"sources": sources, "benchmarks": []})
    ref = jobs_fixtures.publish(tmp_path, "prepare", {Image: rows}, parameters=parameters)
    prepared = PreparedImages.published(ArtifactReader(tmp_path, ref))
    said = [ResolvedSource.model_validate(each) for each in parameters["data"]["sources"]]
    today = [each.model_copy(update={"allow_external": each.name in now}) for each in said]
    gate = EgressPolicy(today, prepared, tmp_path, external=True)
    assert {row.image_sha256 for row in rows if gate.allows(row.image_sha256)} == allowed


def test_a_drawn_picture_shows_nobody_and_may_be_sent(tmp_path: Path) -> None:
    gate = EgressPolicy([], PreparedImages(), tmp_path, external=True)
    first, second = gate.draw(), gate.draw()
    assert first != second
    cleared = gate.read(first)
    assert cleared.sha256 == first
    assert PIL.Image.open(io.BytesIO(cleared.png)).size == (224, 224)
    assert not any(tmp_path.iterdir()), "it is in no store"


def test_only_the_gate_clears_an_image() -> None:
    for gate in (None, object(), EgressPolicy):
        with pytest.raises(TypeError, match="EgressPolicy"):
            ClearedImage("x", b"png", gate)


@pytest.mark.parametrize("image", [b"png", None, ("x", b"png"), memoryview(b"png")])
def test_a_question_takes_nothing_else(tmp_path: Path, image: Any) -> None:
    with pytest.raises(TypeError, match="cleared"):
        ImageQuestion("What?", image, 1)
    gate = EgressPolicy([], PreparedImages(), tmp_path, external=True)
    question = ImageQuestion("What?", gate.read(gate.draw()), 1, Repair("{", "no JSON"))
    assert question.image_png.startswith(b"\x89PNG")


ONE_READER = "only the egress policy opens pictures for a provider"
ONE_ROOM = "only sessions of the room generate connect to providers"
CLIENTS = "in that room only the providers' clients use the network, and only a session"


@pytest.mark.parametrize(
    ("file", "line", "broken"),
    [
        ("generate/probe.py", "", []),
        ("generate/probe.py", "from ..store.images import ImageStore", [ONE_READER]),
        ("generate/providers/openai_client.py", "from ...store.images import ImageStore", [ONE_READER]),
        ("generate/preview.py", "import PIL.Image", [ONE_READER]),
        ("generate/journal.py", "from ..data import format_registry", [ONE_READER]),
        ("generate/journal.py", "import httpx2", [CLIENTS]),
        ("preflight/capacity_checks.py", "from ..generate.providers import connect", [ONE_ROOM]),
        ("preflight/provider_checks.py", "import openai", [ONE_ROOM]),
        ("stages/score.py", "import httpx2", [ONE_ROOM]),
        ("review/export_review.py", "from http import client", [ONE_ROOM]),
    ],
)
def test_another_way_to_a_provider_does_not_pass_the_linter(
    tmp_path: Path, file: str, line: str, broken: list[str]
) -> None:
    for package in ("crds/medgr2_api", "operator/medgr2_operator", "jobs/medgr2_jobs"):
        shutil.copytree(ROOT / package, tmp_path / Path(package).name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    changed, future = tmp_path / "medgr2_jobs" / file, "from __future__ import annotations\n"
    changed.write_text(changed.read_text().replace(future, f"{future}\n{line}\n"))
    done = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache"],
        cwd=tmp_path, env={"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == bool(broken), done.stdout + done.stderr
    told = done.stdout.split("Contracts:")[0].splitlines()
    found = [at for at, text in enumerate(told) if "BROKEN" in text]
    assert [next(name for name in broken if name in " ".join(told[at - 1 : at + 1])) for at in found] == broken, told
