"""What is fuzzed: all that reads what others wrote. A target makes a case from a seed, runs it, and says how it ended.

A case ends in one word: what was read, or how it was refused by one of the errors that the caller expects. Any other
exception is a fault of ours.
"""

from __future__ import annotations

import asyncio
import csv
import io
import json
import os
import random
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from medgr2_api.yaml_loader import CycleError, parse_cycle
from tests.support.mutations import damaged_bytes, damaged_document, damaged_json, damaged_text, json_text

Case = Callable[[random.Random], str]
"""Makes and runs one case: how it ended, in a word. Raises what nobody expects."""

EXAMPLES = Path(__file__).parents[2] / "examples"


@dataclass(frozen=True)
class Target:
    """One thing that reads."""

    name: str
    share: float
    """Of all cases."""
    prepare: Callable[[Path], Case]
    """Given an empty folder."""


# -- cycles ------------------------------------------------------------------------------------------------------------


def _spec(_: Path) -> Case:
    from medgr2_api.presets import resolve
    from medgr2_api.unsupported import unsupported

    texts = [path.read_text() for path in sorted(EXAMPLES.glob("*.yaml"))]
    documents = [parse_cycle(text, "x").dump() for text in texts]
    for document in documents:
        document.pop("status", None)

    def case(rng: random.Random) -> str:
        if rng.random() < 0.5:
            text = damaged_text(rng, rng.choice(texts))
        else:
            text = json_text(damaged_document(rng, rng.choice(documents)))
        try:
            cycle = parse_cycle(text, "cycle.yaml")
        except CycleError as error:
            str(error)
            return "refused"
        if unsupported(cycle.spec, local=rng.random() < 0.5):
            return "unsupported"
        resolve(cycle.spec)
        return "valid"

    return case


# -- records -----------------------------------------------------------------------------------------------------------


def picture(side: int = 24, seed: int = 0) -> Image.Image:
    """A small picture of noise."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (side, side + 8, 3), np.uint8))


def _encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _reader(folder: Path, uri: str, **fields: Any) -> Callable[[], str]:
    """Reads a source to its end: how many records were good and bad, or that it was refused."""
    from medgr2_jobs.data import format_registry
    from medgr2_jobs.data.record import BadRecord
    from medgr2_jobs.errors import StageError
    from tests.unit.jobs.data.test_omnimedvqa import place

    def read() -> str:
        where = place(folder, uri, **fields)
        try:
            records = list(format_registry.reader(where.source, "data.sources[s]")(where))
        except StageError as error:
            return type(error).__name__
        bad = [record for record in records if isinstance(record, BadRecord)]
        for record in bad:
            str(record).encode()
        return "bad" if len(bad) == len(records) else "some bad" if bad else "good"

    return read


def _questions(number: int) -> dict[str, Any]:
    return {
        "id": f"q{number}",
        "image": f"{number % 2}.png",
        "question": "What does the image show?",
        "options": ["Cyst", "Mass", "No mass", "Cyst of 3 cm"],
        "answer": "Mass",
        "modality": "CT",
        "patient": f"p{number}",
        "rationale": "It is solid.",
        "question_type": "Diagnosis",
    }


def _pictures_beside(folder: Path) -> None:
    for number in range(2):
        picture(seed=number).save(folder / f"{number}.png")


def _vqajsonl(folder: Path) -> Case:
    _pictures_beside(folder)
    lines = [json_text(_questions(number)) for number in range(3)]
    read = _reader(folder, "q.jsonl", format="VQAJsonl")

    def case(rng: random.Random) -> str:
        damaged = [
            damaged_json(rng, _questions(number)) if rng.random() < 0.6 else line.encode()
            for number, line in enumerate(lines)
        ]
        (folder / "q.jsonl").write_bytes(b"\n".join(damaged))
        return read()

    return case


def _omnimedvqa(folder: Path) -> Case:
    _pictures_beside(folder)
    records = [
        {
            "dataset": "demo",
            "question_id": f"q{number}",
            "question_type": "Disease Diagnosis",
            "question": "What is shown?",
            "gt_answer": "Cyst",
            "image_path": f"{number % 2}.png",
            **{f"option_{letter}": text for letter, text in zip("ABCD", ("Mass", "Cyst", "3", "B"), strict=True)},
            "modality_type": "CT",
        }
        for number in range(3)
    ]
    read = _reader(folder, "q.json", format="OmniMedVQA")

    def case(rng: random.Random) -> str:
        (folder / "q.json").write_bytes(damaged_json(rng, records))
        return read()

    return case


def _mmmu(folder: Path) -> Case:
    subject = "Clinical_Medicine"
    path = folder / "mmmu" / subject / "validation-00000-of-00001.parquet"
    path.parent.mkdir(parents=True)
    row = {
        "id": f"validation_{subject}_0",
        "question": "What does <image 1> show?",
        "options": "['Cyst', \"Crohn's disease\", 'Mass']",
        "explanation": "",
        **{f"image_{index}": None for index in range(2, 8)},
        "image_1": {"bytes": _encoded(picture(), "PNG"), "path": "x.png"},
        "img_type": "['Pathological Images']",
        "answer": "B",
        "topic_difficulty": "Easy",
        "question_type": "multiple-choice",
        "subfield": "Clinical Pathology",
    }
    image = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    schema = pa.schema({name: image if name.startswith("image_") else pa.string() for name in row})
    read = _reader(folder, "mmmu", format="MMMU", mmmu={"subjects": [subject]})

    def case(rng: random.Random) -> str:
        if rng.random() < 0.5:
            rows = [{**row, "id": f"validation_{subject}_{number}"} for number in range(2)]
            name = rng.choice(("question", "options", "answer", "question_type", "img_type", "id"))
            rows[0][name] = damaged_text(rng, str(row[name])).encode("utf-8", "ignore").decode()
            rows[1]["image_1"] = {"bytes": damaged_bytes(rng, row["image_1"]["bytes"]), "path": "x.png"}
            pq.write_table(pa.Table.from_pylist(rows, schema=schema), path)
        else:
            whole = io.BytesIO()
            pq.write_table(pa.Table.from_pylist([row], schema=schema), whole)
            path.write_bytes(damaged_bytes(rng, whole.getvalue()))
        return read()

    return case


def _imagefolder(folder: Path) -> Case:
    scans = folder / "scans"
    scans.mkdir()
    _pictures_beside(scans)
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    writer.writerows(
        [("file_name", "modality", "patient", "dataset"), ("0.png", "CT", "p0", "d"), ("1.png", "CT", "p1", "d")]
    )
    read = _reader(folder, "scans", format="ImageFolder", modality="CT")

    def case(rng: random.Random) -> str:
        damaged = damaged_text(rng, buffer.getvalue()).encode("utf-8", "surrogatepass")
        (scans / "metadata.csv").write_bytes(damaged)
        return read()

    return case


# -- pictures ----------------------------------------------------------------------------------------------------------


def encoded_pictures() -> dict[str, bytes]:
    """One of each kind of picture file that is read, by suffix and what is special about it."""
    image = picture()
    grey16 = Image.fromarray(np.arange(24 * 32, dtype=np.uint16).reshape(24, 32) * 80)
    return {
        "plain.png": _encoded(image, "PNG"),
        "palette.png": _encoded(image.quantize(16), "PNG", transparency=0),
        "alpha.png": _encoded(image.convert("RGBA"), "PNG"),
        "grey16.png": _encoded(grey16, "PNG"),
        "one.png": _encoded(image.convert("1"), "PNG"),
        "plain.jpg": _encoded(image, "JPEG"),
        "progressive.jpg": _encoded(image, "JPEG", progressive=True, exif=Image.Exif().tobytes()),
        "cmyk.jpg": _encoded(image.convert("CMYK"), "JPEG"),
        "plain.tif": _encoded(image, "TIFF"),
        "lzw.tif": _encoded(image, "TIFF", compression="tiff_lzw"),
        "float.tif": _encoded(Image.fromarray(np.linspace(0, 1, 24 * 32, dtype=np.float32).reshape(24, 32)), "TIFF"),
        "plain.bmp": _encoded(image, "BMP"),
        "plain.gif": _encoded(image, "GIF"),
        "frames.gif": _encoded(image, "GIF", save_all=True, append_images=[picture(seed=2), picture(seed=3)]),
        "plain.webp": _encoded(image, "WEBP", lossless=True),
    }


def _pictures(folder: Path) -> Case:
    scans = folder / "scans"
    scans.mkdir()
    encoded = encoded_pictures()
    read = _reader(folder, "scans", format="ImageFolder", modality="CT")

    def case(rng: random.Random) -> str:
        name = rng.choice(list(encoded))
        for old in scans.iterdir():
            old.unlink()
        (scans / f"x.{name.rpartition('.')[2]}").write_bytes(damaged_bytes(rng, encoded[name]))
        return read()

    return case


def dicom_files() -> list[bytes]:
    """Files of up to 64 KiB that come with pydicom, of every transfer syntax among them, and one of our own."""
    import pydicom

    shipped = Path(pydicom.__file__).parent / "data" / "test_files"
    return [path.read_bytes() for path in sorted(shipped.glob("*.dcm")) if path.stat().st_size <= 2**16]


def _dicom(folder: Path) -> Case:
    (folder / "scans").mkdir()
    files = dicom_files()
    read = _reader(folder, "scans", format="DICOM", modality="CT", dicom={"burnedInText": "TrustFlag"})

    def case(rng: random.Random) -> str:
        (folder / "scans" / "x.dcm").write_bytes(damaged_bytes(rng, rng.choice(files)))
        return read()

    return case


# -- providers ---------------------------------------------------------------------------------------------------------


class _Echo:
    """A server on loopback that answers each request with what the case put there; a connection a request."""

    def __init__(self) -> None:
        self.response = b""
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}/v1"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            connection, _ = self._socket.accept()
            with connection:
                try:
                    self._answer(connection)
                except OSError:  # the client had enough
                    continue

    def _answer(self, connection: socket.socket) -> None:
        head = b""
        while b"\r\n\r\n" not in head:
            if not (piece := connection.recv(65536)):
                return
            head += piece
        head, _, body = head.partition(b"\r\n\r\n")
        length = next(int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        while len(body) < length and (piece := connection.recv(65536)):
            body += piece
        connection.sendall(self.response)


def _http(rng: random.Random, body: bytes) -> bytes:
    status = (
        200
        if rng.random() < 0.7
        else rng.choice((201, 204, 206, 304, 400, 401, 403, 404, 413, 429, 500, 502, 503, 599, 999))
    )
    kind = (
        "application/json"
        if rng.random() < 0.8
        else rng.choice(("text/html", "text/event-stream", "", "x", "application/json; charset=utf-7"))
    )
    head = [f"HTTP/1.1 {status} X", f"Content-Type: {kind}", f"Content-Length: {len(body)}", "Connection: close"]
    if rng.random() < 0.2:
        after = rng.choice(("0", "0.01", "-1", "x", "NaN", "Wed, 21 Oct 2015 07:28:00 GMT", "", "1e-9"))
        head.append(f"{rng.choice(('Retry-After', 'Content-Encoding', 'Transfer-Encoding', 'Location'))}: {after}")
    raw = "\r\n".join(head).encode() + b"\r\n\r\n" + body
    return damaged_bytes(rng, raw) if rng.random() < 0.1 else raw


def _client(kind: str, made: dict[str, Any]) -> Callable[[Path], Case]:
    def prepare(_: Path) -> Case:
        from medgr2_api.generator import Sampling
        from medgr2_api.stages.generate import Provider
        from medgr2_jobs.generate.providers.base import ImageQuestion, ProviderAccess
        from medgr2_jobs.generate.providers.gemini_client import GeminiClient
        from medgr2_jobs.generate.providers.openai_client import OpenAIClient
        from tests.support.generate_fixtures import drawn_image

        echo = _Echo()
        loop = asyncio.new_event_loop()
        os.environ["NO_PROXY"] = "127.0.0.1"
        provider = Provider.model_validate(
            {"kind": kind, "model": "m", "baseUrl": echo.url, "apiKeySecretRef": {"name": "s", "key": "k"}}
        )
        access = ProviderAccess(provider, "key", Sampling())

        client = {"openAI": OpenAIClient, "gemini": GeminiClient}[kind](access)  # one for all: it must survive them

        question = ImageQuestion("What?", drawn_image(), seed=1)

        async def ask() -> str:
            reply = await client.ask(question)
            json.dumps(reply.text).encode()
            reply.error.encode()
            return str(reply.failure.outcome if reply.failure else reply.outcome)

        def case(rng: random.Random) -> str:
            echo.response = _http(rng, damaged_json(rng, made))
            return loop.run_until_complete(ask())

        return case

    return prepare


# -- what the operator and the command line read -----------------------------------------------------------------------


def _termination(_: Path) -> Case:
    from medgr2_api.stage_contract import StageResult
    from medgr2_operator.runtime import observe
    from medgr2_operator.runtime.why_waiting import Surroundings

    labels = {"medgr2.io/iteration": "1", "medgr2.io/stage": "sft", "medgr2.io/token": "", "medgr2.io/attempt": "2"}
    at = "2026-01-01T00:10:00Z"
    whole = StageResult(exit_code=0, output_digest="d" * 64, metrics={"accuracy": 0.5}, usage={"gpuHours": 1.0})
    document = json.loads(whole.to_termination_message())

    def case(rng: random.Random) -> str:
        message = damaged_json(rng, document).decode("utf-8", "replace")
        code = rng.choice((0, 1, 65, 78, 85, 137))
        end = {"exitCode": code, "message": message, "finishedAt": at, "startedAt": at}
        job = {
            "metadata": {
                "name": "j",
                "uid": "j",
                "labels": labels,
                "ownerReferences": [{"uid": "c", "controller": True}],
            },
            "spec": {},
            "status": {
                "conditions": [
                    {
                        "type": "Failed" if code else "Complete",
                        "status": "True",
                        "lastTransitionTime": at,
                        "message": message,
                    }
                ]
            },
        }
        pod = {
            "metadata": {"name": "p", "labels": labels, "ownerReferences": [{"uid": "j", "controller": True}]},
            "status": {
                "phase": "Failed" if code else "Succeeded",
                "containerStatuses": [{"name": "main", "state": {"terminated": end}}],
            },
        }
        around = Surroundings(datetime(2026, 1, 1, 0, 12, tzinfo=UTC))
        [seen] = observe.jobs([observe.needed(job)], [observe.needed(pod)], "c", around)
        return "read" if seen.result else "unread"

    return case


def _kubeconfig(folder: Path) -> Case:
    from medgr2_operator.kube.kubeconfig import KubeconfigError, connect

    text = """apiVersion: v1
kind: Config
clusters:
- name: c
  cluster:
    server: https://127.0.0.1:6443
    insecure-skip-tls-verify: true
contexts:
- name: x
  context:
    cluster: c
    user: u
    namespace: ml
users:
- name: u
  user:
    token: secret
current-context: x
"""
    loop = asyncio.new_event_loop()

    async def read() -> str:
        async with connect(str(folder / "config")) as (_, namespace):
            return "read" if namespace == "ml" else "another namespace"

    def case(rng: random.Random) -> str:
        (folder / "config").write_bytes(damaged_text(rng, text).encode("utf-8", "surrogatepass"))
        try:
            return loop.run_until_complete(read())
        except KubeconfigError as error:
            str(error).encode()
            return "refused"

    return case


def _state(folder: Path) -> Case:
    from medgr2_api.cycle import Cycle
    from medgr2_operator.local.state import StateError, StateFile

    cycle = parse_cycle((EXAMPLES / "quickstart.yaml").read_text(), "x")
    state = StateFile(folder, cycle.metadata.name)
    state.save(cycle)
    document: Any = json.loads(state.path.read_text())
    document["status"] = {
        "phase": "Running",
        "observedGeneration": 1,
        "conditions": [
            {"type": "Progressing", "status": "True", "reason": "x", "lastTransitionTime": "2026-01-01T00:00:00Z"}
        ],
        "stages": [],
    }

    def case(rng: random.Random) -> str:
        state.path.write_bytes(damaged_json(rng, document))
        try:
            return "read" if isinstance(state.load(), Cycle) else "none"
        except StateError as error:
            str(error).encode()
            return "refused"

    return case


def _manifest(folder: Path) -> Case:
    from medgr2_api import paths
    from medgr2_jobs.errors import CorruptArtifact
    from medgr2_jobs.store import manifest

    (folder / "t.parquet").write_bytes(b"x")
    part = manifest.Part(
        name="t.parquet",
        path="t.parquet",
        bytes=1,
        sha256="2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881",
    )
    made = manifest.Manifest(
        stage="curate", input_hash="a" * 64, code_version=1, cycle="c", iteration=1, attempt=1, parts=[part],
        inputs={"prepare": "b" * 64}, parameters={"seed": 1},
    )  # fmt: skip
    made.output_digest = made.digest()

    def case(rng: random.Random) -> str:
        (folder / paths.MANIFEST).write_bytes(damaged_json(rng, made.dump()))
        try:
            loaded = manifest.load(folder)
            if loaded is None:
                return "none"
            manifest.verify(folder, loaded)
            return "read"
        except CorruptArtifact as error:
            str(error).encode()
            return "refused"

    return case


def _openai() -> dict[str, Any]:
    from tests.support.chat_server import Answer, ChatServer

    return ChatServer.completion({"model": "m"}, Answer())


def _gemini() -> dict[str, Any]:
    from tests.support.chat_server import Answer, GeminiServer

    return GeminiServer.completion({}, Answer())


TARGETS: dict[str, Target] = {
    target.name: target
    for target in (
        Target("spec", 0.12, _spec),
        Target("VQAJsonl", 0.1, _vqajsonl),
        Target("OmniMedVQA", 0.1, _omnimedvqa),
        Target("MMMU", 0.02, _mmmu),
        Target("ImageFolder", 0.05, _imagefolder),
        Target("pictures", 0.16, _pictures),
        Target("DICOM", 0.16, _dicom),
        Target("OpenAI", 0.05, _client("openAI", _openai())),
        Target("Gemini", 0.05, _client("gemini", _gemini())),
        Target("termination messages", 0.06, _termination),
        Target("kubeconfig", 0.02, _kubeconfig),
        Target("state.json", 0.04, _state),
        Target("manifests", 0.04, _manifest),
    )
}
