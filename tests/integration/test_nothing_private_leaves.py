"""A server outside sees no picture that may not leave: in every way that one could come to it, by every entry point.

Ways (`WAYS`): how a picture that may not leave could be taken for one that may. Entry points (`ENTRIES`): all that can
ask a provider: stage generate, `medgr2 doctor` with and without `--real-images`, `medgr2 run --dry-run`, the room's own
`probe.sample`; the same through a plugin's client; and the commands that are about prompts and plans and ask nobody
(`prompt`, `plan`, `validate`). The server writes down all bytes; what it was sent is decoded and compared by pixels.
"""

from __future__ import annotations

import base64
import io
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from medgr2_api import paths
from medgr2_api.cycle import Cycle
from medgr2_api.presets import resolve
from medgr2_api.stage_contract import ArtifactRef
from medgr2_api.stages import GENERATE, PREPARE, stage_parameters
from medgr2_jobs.generate import probe
from medgr2_jobs.generate.prepared_images import PreparedImages
from medgr2_jobs.preflight.__main__ import main as doctor
from medgr2_jobs.runner import main as stage
from medgr2_jobs.store.artifact import ArtifactReader
from tests.support.chat_server import ChatServer, DescribeServer, serving
from tests.support.cycle_documents import changed
from tests.support.fixtures import BASE, artifact_ref, stage_request
from tests.support.generate_fixtures import prepare_root
from tests.support.plugin_fixtures import install, plugin
from tests.unit.jobs.data.test_dicom import made

Document = dict[str, Any]
SIDE = 24
WRITTEN = 400


def _picture(number: int) -> Image.Image:
    """Noise of its own: equal to no other, and not nearly so; from `WRITTEN` on with writing in it."""
    if number >= WRITTEN:
        ground = np.random.default_rng(number).integers(0, 60, (256, 256, 3), np.uint8)
        written = Image.fromarray(ground)
        ImageDraw.Draw(written).text((10, 10), "JANE DOE 4711", fill="white", font=ImageFont.load_default(size=24))
        return written
    return Image.fromarray(np.random.default_rng(number).integers(0, 255, (SIDE, SIDE, 3), np.uint8))


@dataclass
class Site:
    """A workspace, the spec by which prepare reads it (`then`) and the one of now."""

    root: Path
    then: list[Document] = field(default_factory=list)
    now: list[Document] | None = None
    """None: as then."""
    benchmarks: list[Document] = field(default_factory=list)
    added: list[Document] = field(default_factory=list)
    """Benchmarks of now that prepare does not know."""
    private: set[int] = field(default_factory=set)
    nothing_leaves: bool = False
    """What may leave is not known in this way, so nothing may."""

    def save(self, numbers: range, folder: str, suffix: str = "png", *, private: bool = False) -> list[str]:
        """Writes pictures; returns their paths below the workspace."""
        (self.root / folder).mkdir(parents=True, exist_ok=True)
        names = [f"{folder}/p{number}.{suffix}" for number in numbers]
        for number, name in zip(numbers, names, strict=True):
            _picture(number).save(self.root / name)
        if private:
            self.private |= set(numbers)
        return names

    def records(self, file: str, images: list[str], **changes: Any) -> str:
        """Writes a file of questions about them; paths are relative to the workspace."""
        (self.root / file).parent.mkdir(parents=True, exist_ok=True)
        rows = [
            {"id": f"{file}-{number}", "image": image, "question": "What is shown?", "options": ["a nodule", "a cyst"],
             "answer": "a cyst", "modality": "CT", **changes}
            for number, image in enumerate(images)
        ]  # fmt: skip
        (self.root / file).write_text("".join(json.dumps(row) + "\n" for row in rows))
        return file

    def source(self, name: str, images: list[str], *, allowed: bool, **changes: Any) -> Document:
        """A source whose records name these pictures."""
        uri = self.records(f"records/{name}.jsonl", images)
        return {"name": name, "format": "VQAJsonl", "uri": uri, "images": ".", "allowExternal": allowed, **changes}


PUBLIC = range(12)


def beside(site: Site) -> None:
    """Files that no record names, in the folders of a source that may leave: above, below and beside its own."""
    pictures = site.save(PUBLIC, "data/public")
    site.save(range(100, 104), "data/public", private=True)
    site.save(range(104, 108), "data/public/deep", private=True)
    private = site.save(range(108, 112), "data/private", private=True)
    site.save(range(112, 114), "data", private=True)
    site.then = [site.source("public", pictures, allowed=True), site.source("private", private, allowed=False)]
    (site.root / "data/train.jsonl").write_text((site.root / "records/public.jsonl").read_text())
    site.then[0]["uri"] = "data/train.jsonl"


def folder_with_a_folder(site: Site) -> None:
    """The folder of a source that may leave holds that of one that may not."""
    pictures = site.save(PUBLIC, "data")
    site.save(range(100, 106), "data/private", private=True)
    folder = {"name": "private", "format": "ImageFolder", "uri": "data/private", "modality": "CT"}
    site.then = [site.source("public", pictures, allowed=True), folder]


def twice(site: Site) -> None:
    """The same files in two sources, of which the second says no."""
    pictures = site.save(PUBLIC, "data")
    site.private = set(range(3, 12))
    site.then = [site.source("a", pictures, allowed=True), site.source("b", pictures[3:], allowed=False)]


def twice_the_other_way(site: Site) -> None:
    """The first says no."""
    twice(site)
    site.then.reverse()


def other_encoding(site: Site) -> None:
    """The same pixels as files of other formats and names."""
    pictures = site.save(PUBLIC, "data/png")
    copies = [
        *site.save(range(4, 8), "data/bmp", "bmp", private=True),
        *site.save(range(8, 12), "t", "tiff", private=True),
    ]
    site.then = [site.source("a", pictures, allowed=True), site.source("b", copies, allowed=False)]


def inside_parquet(site: Site) -> None:
    """The same pixels inside the records of another format."""
    pictures = site.save(PUBLIC, "data")
    rows = []
    for number in range(5, 12):
        data = io.BytesIO()
        _picture(number).save(data, "PNG")
        rows.append(
            {"id": f"m{number}", "question": "What?", "options": "['a', 'b']", "answer": "A", "img_type": "['CT']",
             "question_type": "multiple-choice" if number % 2 else "open", "subfield": "x", "explanation": "",
             "image_1": {"bytes": data.getvalue(), "path": "x.png"}}
        )  # fmt: skip
    (site.root / "mmmu/Pharmacy").mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows), site.root / "mmmu/Pharmacy/validation-00000-of-00001.parquet")
    site.private = set(range(5, 12))
    exam = {"name": "b", "format": "MMMU", "uri": "mmmu", "mmmu": {"subjects": ["Pharmacy"]}, "allowExternal": False}
    site.then = [site.source("a", pictures, allowed=True), exam]


def _exam(site: Site, folder: str, *numbers: int) -> None:
    """Writes an MMMU question about several pictures."""
    row: Document = {"id": folder, "question": "What?", "options": "['a', 'b']", "answer": "A", "img_type": "['CT']",
                     "question_type": "multiple-choice", "subfield": "x", "explanation": ""}  # fmt: skip
    for place, number in enumerate(numbers, 1):
        data = io.BytesIO()
        _picture(number).save(data, "PNG")
        row[f"image_{place}"] = {"bytes": data.getvalue(), "path": "x.png"}
    (site.root / folder / "Pharmacy").mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist([row]), site.root / folder / "Pharmacy/validation-00000-of-00001.parquet")


def joined_pictures_of_others(site: Site) -> None:
    """A question of a source that may leave shows one of its own pictures beside one that may not leave."""
    pictures = site.save(PUBLIC, "data")
    _exam(site, "exam", 0, 100)
    private = site.save(range(100, 101), "private", private=True)
    exam = {"name": "exam", "format": "MMMU", "uri": "exam", "mmmu": {"subjects": ["Pharmacy"]}, "allowExternal": True}
    site.then = [site.source("a", pictures, allowed=True), exam, site.source("b", private, allowed=False)]


def joined_where_it_may_not_leave(site: Site) -> None:
    """A question of a source that may not leave shows several pictures, which lie singly in one that may."""
    pictures = site.save(PUBLIC, "data")
    _exam(site, "exam", 3, 4)
    site.private = {3, 4}
    exam = {"name": "exam", "format": "MMMU", "uri": "exam", "mmmu": {"subjects": ["Pharmacy"]}, "allowExternal": False}
    site.then = [site.source("a", pictures, allowed=True), exam]


def _study(site: Site, name: str, numbers: range, **tags: Any) -> str:
    """Writes a DICOM file of several frames."""
    frames = np.stack([np.asarray(_picture(number)) for number in numbers])
    file = site.root / name
    file.parent.mkdir(parents=True, exist_ok=True)
    dataset = made(frames, NumberOfFrames=len(frames), **{"SOPInstanceUID": "1.2.3.4", **tags})
    dataset.save_as(file, enforce_file_format=True)
    site.private |= set(numbers)
    return name


def frames_that_were_not_taken(site: Site) -> None:
    """Of the same file a source that may leave takes more frames than the one that says no."""
    pictures = site.save(PUBLIC, "data")
    _study(site, "few/a.dcm", range(100, 106))
    _study(site, "all/b.dcm", range(100, 106))
    few = {"name": "few", "format": "DICOM", "uri": "few", "dicom": {"maxFrames": 1}, "allowExternal": False}
    every = {"name": "every", "format": "DICOM", "uri": "all", "dicom": {"maxFrames": 9}, "allowExternal": True}
    site.then = [site.source("a", pictures, allowed=True), every, few]


def withheld_for_its_text(site: Site) -> None:
    """The source that says no withholds a file because of text in its pixels; another one trusts it."""
    pictures = site.save(PUBLIC, "data")
    _study(site, "scans/a.dcm", range(WRITTEN, WRITTEN + 2))
    _study(site, "scans/b.dcm", range(100, 101), SOPInstanceUID="1.2.3.5")
    careful = {"name": "careful", "format": "DICOM", "uri": "scans", "allowExternal": False}
    trusting = {**careful, "name": "trusting", "allowExternal": True, "dicom": {"burnedInText": "TrustFlag"}}
    site.then = [site.source("a", pictures, allowed=True), trusting, careful]


def benchmark_added_since(site: Site) -> None:
    """A benchmark that has some of the pictures was added after prepare."""
    shared_with_a_benchmark(site)
    site.added, site.benchmarks = site.benchmarks, []
    site.nothing_leaves = True


def unusable_records(site: Site) -> None:
    """The source that says no has records with these pictures, and none that could be used."""
    pictures = site.save(PUBLIC, "data")
    site.private = set(range(2, 12))
    site.then = [site.source("a", pictures, allowed=True), site.source("b", [], allowed=False)]
    site.save(range(300, 301), "more")
    bad = [
        {"answer": "neither"}, {"options": None}, {"question": ""}, {"id": "records/b.jsonl-0"}, {"modality": ""},
        {"options": ["one"]}, {"answer": None}, {"question": ["?"]}, {"patient": ["x"]}, {"rationale": {}},
    ]  # fmt: skip
    said = {"question": "What?", "options": ["x", "y"], "answer": "x", "modality": "CT"}
    rows = [{"id": "records/b.jsonl-0", "image": "more/p300.png", **said}]
    rows += [{"id": f"b{at}", "image": pictures[at + 2], **said, **changes} for at, changes in enumerate(bad)]
    (site.root / "records/b.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def shared_with_a_benchmark(site: Site) -> None:
    """Pictures of a benchmark; its records come from another file."""
    pictures = site.save(PUBLIC, "data")
    site.private = set(range(6, 12))
    site.then = [site.source("a", pictures, allowed=True)]
    benchmark = site.source("exam", pictures[6:], allowed=False)
    site.benchmarks = [{name: value for name, value in benchmark.items() if name != "allowExternal"}]


def flipped_since(site: Site) -> None:
    """Prepare has published that all may leave; now the spec says no for one source."""
    pictures = site.save(PUBLIC, "data")
    site.private = set(range(4, 12))
    site.then = [site.source("a", pictures, allowed=True), site.source("b", pictures[4:], allowed=True)]
    site.now = [site.then[0], {**site.then[1], "allowExternal": False}]


def gone_since(site: Site) -> None:
    """A source has been taken out of the spec: nobody says yes any more."""
    pictures = site.save(PUBLIC, "data")
    others = site.save(range(100, 108), "others", private=True)
    site.then = [site.source("a", pictures, allowed=True), site.source("b", others, allowed=True)]
    site.now = site.then[:1]


def added_since(site: Site) -> None:
    """A source that says no was added after prepare, and has some of the pictures."""
    pictures = site.save(PUBLIC, "data")
    site.private = set(range(2, 12))
    site.then = [site.source("a", pictures, allowed=True)]
    site.now = [*site.then, site.source("late", pictures[2:], allowed=False)]
    site.nothing_leaves = True


def moved_since(site: Site) -> None:
    """A source that says no names another place than prepare has read."""
    pictures = site.save(PUBLIC, "data")
    others = site.save(range(100, 102), "others", private=True)
    site.private |= set(range(2, 12))
    site.then = [site.source("a", pictures, allowed=True), site.source("b", others, allowed=False)]
    site.now = [site.then[0], {**site.then[1], "uri": site.records("records/new.jsonl", pictures[2:])}]
    site.nothing_leaves = True


def links_out(site: Site) -> None:
    """Links beside the pictures that lead to others, inside the workspace and out of it."""
    pictures = site.save(PUBLIC, "data")
    site.save(range(100, 102), "hidden", private=True)
    elsewhere = site.root.parent / "elsewhere"
    elsewhere.mkdir()
    _picture(102).save(elsewhere / "x.png")
    site.private.add(102)
    (site.root / "data/a-link.png").symlink_to(elsewhere / "x.png")
    (site.root / "data/a-folder").symlink_to(site.root / "hidden")
    site.then = [site.source("a", [*pictures], allowed=True)]


WAYS: tuple[Callable[[Site], None], ...] = (
    beside, folder_with_a_folder, twice, twice_the_other_way, other_encoding, inside_parquet, unusable_records,
    joined_pictures_of_others, joined_where_it_may_not_leave, frames_that_were_not_taken, withheld_for_its_text,
    benchmark_added_since, shared_with_a_benchmark, flipped_since, gone_since, added_since, moved_since, links_out,
)  # fmt: skip


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    install(monkeypatch)
    return Site(prepare_root(tmp_path, monkeypatch))


def cycle(site: Site, url: str, *, then: bool = False, kind: str = "openAI") -> Document:
    sources = site.then if then or site.now is None else site.now
    about: Document = {"model": "some/vlm", "baseURL": url, "external": True}
    if kind == "plugin":
        about |= plugin("describe")
    return changed(
        {
            "metadata.name": "trial",
            "spec.iterations": 1,
            "spec.data": {
                "sources": sources,
                "benchmarks": [*site.benchmarks, *([] if then else site.added)],
                "split": {"validationFraction": 0.1},
                "maxBadFraction": 1.0,
            },
            "spec.generator": {kind: about, "candidates": 30, "questionsPerImage": 1, "concurrency": 4},
            "spec.policy.baseModel": BASE,
            "spec.rewardModel.baseModel": BASE,
        }
    )


def prepare(site: Site, url: str, kind: str = "openAI") -> ArtifactRef:
    """Stage prepare by the spec of then, with the cycle's link to what it published."""
    spec = resolve(Cycle.model_validate(cycle(site, url, then=True, kind=kind)).spec)
    request = stage_request("prepare", 0, stage_parameters(spec, "trial", PREPARE.name, 0))
    assert stage.execute(request, site.root) == 0
    link = site.root / paths.iteration_link("trial", 0, PREPARE.name)
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(site.root / paths.artifact("prepare", request.input_hash))
    return artifact_ref(site.root, request)


def generate(site: Site, url: str, prepared: ArtifactRef, kind: str = "openAI") -> int:
    spec = resolve(Cycle.model_validate(cycle(site, url, kind=kind)).spec)
    parameters = stage_parameters(spec, "trial", GENERATE.name, 1)
    return stage.execute(stage_request("generate", 1, parameters, {"prepare": prepared}), site.root)


def doctored(site: Site, url: str, *options: str, kind: str = "openAI") -> int:
    file = site.root.parent / "cycle.yaml"
    file.write_text(yaml.safe_dump(cycle(site, url, kind=kind)))
    return doctor([str(file), "--workspace", str(site.root), "--questions", "8", *options])


def seen(server: ChatServer) -> list[NDArray[np.uint8]]:
    """The pixels (H, W, 3) of every picture in any request: whatever decodes as one."""
    found = []
    for body in server.ledger.bodies:
        for text in re.findall(rb"[A-Za-z0-9+/_-]{64,}={0,2}", body):
            data = base64.b64decode(text.replace(b"-", b"+").replace(b"_", b"/") + b"===")
            try:
                found.append(np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))
            except OSError:
                continue
    return found


def holds(picture: NDArray[np.uint8], part: NDArray[np.uint8]) -> bool:
    """Whether one picture is another, or shows it somewhere."""
    (height, width), first = part.shape[:2], part[0].tobytes()
    for top in range(picture.shape[0] - height + 1):
        at = picture[top].tobytes().find(first)
        if at >= 0 and at % 3 == 0 and np.array_equal(picture[top : top + height, at // 3 : at // 3 + width], part):
            return True
    return False


def check(site: Site, server: ChatServer, *, asked: bool) -> None:
    """Nothing private was seen; each request had a picture, and there were some where there had to be."""
    found = seen(server)
    assert site.private, "a way without anything private tells nothing"
    private = {number: np.asarray(_picture(number)) for number in sorted(site.private)}
    leaked = [number for number, part in private.items() if any(holds(picture, part) for picture in found)]
    assert leaked == []
    assert len(found) == len(server.ledger.bodies)
    assert bool(found) is asked


@pytest.fixture(params=[ChatServer, DescribeServer], ids=["openAI", "plugin"])
def server(request: pytest.FixtureRequest) -> Iterator[ChatServer]:
    with serving(request.param) as running:
        yield running


def kind_of(server: ChatServer) -> str:
    return "plugin" if isinstance(server, DescribeServer) else "openAI"


@pytest.mark.parametrize("way", WAYS)
def test_before_prepare(site: Site, server: ChatServer, way: Callable[[Site], None]) -> None:
    way(site)
    kind = kind_of(server)
    drawn = doctored(site, server.url, kind=kind)
    assert drawn in (0, 1)
    check(site, server, asked=True)
    public = {_picture(number).tobytes() for number in PUBLIC}
    assert not public & {picture.tobytes() for picture in seen(server)}, "without --real-images it is a drawn picture"
    server.ledger.bodies.clear()
    doctored(site, server.url, "--real-images", kind=kind)
    check(site, server, asked=True)
    assert {picture.tobytes() for picture in seen(server)} <= public


@pytest.mark.parametrize("way", WAYS)
def test_after_prepare(site: Site, server: ChatServer, way: Callable[[Site], None]) -> None:
    way(site)
    kind = kind_of(server)
    prepared = prepare(site, server.url, kind)
    doctored(site, server.url, kind=kind)
    check(site, server, asked=True)
    server.ledger.bodies.clear()
    doctored(site, server.url, "--real-images", kind=kind)
    check(site, server, asked=True)
    server.ledger.bodies.clear()
    code = generate(site, server.url, prepared, kind)
    assert code == (78 if site.nothing_leaves else 0)
    check(site, server, asked=not site.nothing_leaves)
    server.ledger.bodies.clear()
    spec = resolve(Cycle.model_validate(cycle(site, server.url, kind=kind)).spec)
    parameters = stage_parameters(spec, "trial", GENERATE.name, 1)
    images = PreparedImages.published(ArtifactReader(site.root, prepared))
    request = stage_request("generate", 1, parameters, {"prepare": prepared})
    if site.nothing_leaves:
        return
    probe.sample(site.root, request.cycle, parameters, images, 6)  # type: ignore[arg-type]
    check(site, server, asked=True)


@pytest.mark.parametrize("way", [beside, twice])
def test_the_commands(site: Site, way: Callable[[Site], None]) -> None:
    way(site)
    file = site.root.parent / "cycle.yaml"
    image = next(path for path in site.root.rglob("*.png") if int(path.stem[1:]) in site.private)
    with serving() as server:
        file.write_text(yaml.safe_dump(cycle(site, server.url)))
        command = [sys.executable, "-m", "medgr2_operator.cli.app"]
        where = ["--workspace", str(site.root)]
        for arguments in (
            ["validate", str(file)],
            ["plan", str(file), *where],
            ["prompt", "--image", str(image)],
        ):
            done = subprocess.run([*command, *arguments], capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr
        assert not server.ledger.bodies, "these ask nobody"
        for arguments in (
            ["run", "--dry-run", str(file), *where],
            ["doctor", "--questions", "4", str(file), *where],
            ["doctor", "--questions", "4", "--real-images", str(file), *where],
        ):
            server.ledger.bodies.clear()
            done = subprocess.run([*command, *arguments], capture_output=True, text=True, check=False)
            assert "questions became triplets" in done.stdout, done.stdout + done.stderr
            check(site, server, asked=True)
