"""What the tests of fetching put on their hub, and how they ask for it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from medgr2_jobs import fetch
from tests.support.fetch_fixtures import context
from tests.support.hub_server import Files, HubServer

WHAT = "data.sources[seed].uri"
DATA = "hf://datasets/org/data"
#: Bytes that huggingface_hub writes at a time: a download that breaks has lost what is less.
CHUNK = 10 << 20
WEIGHTS = os.urandom(CHUNK + 200_000)
FILES: Files = {
    "questions.json": b'[{"question_id": 1}]',
    "images/a.png": os.urandom(40_000),
    "images/b.png": b"b" * 200,
    "images/deep/c.png": b"c" * 300,
    "README.md": b"# data",
}
#: What is taken of `model_files`.
LOADED = {"config.json", "model.safetensors", "preprocessor_config.json", "tokenizer.json", "tokenizer_config.json"}


def get(hub: HubServer, root: Path, uri: str = DATA, **reach: Any) -> Path:
    """`fetch.local` in a workspace, as a dataset."""
    return fetch.local_path(context(root, {"hubEndpoint": hub.url, **reach}), uri, WHAT)


def content(folder: Path) -> Files:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def safetensors() -> bytes:
    header = json.dumps({"w": {"dtype": "U8", "shape": [len(WEIGHTS)], "data_offsets": [0, len(WEIGHTS)]}}).encode()
    return len(header).to_bytes(8, "little") + header + WEIGHTS


def model_files() -> Files:
    """A model's repository as they are: with weights that could run code, and code."""
    return {
        "config.json": b'{"model_type": "qwen2_5_vl"}',
        "preprocessor_config.json": b"{}",
        "tokenizer_config.json": b"{}",
        "tokenizer.json": b"{}",
        "model.safetensors": safetensors(),
        "pytorch_model.bin": b"\x80\x04pickle",
        "modeling.py": b"raise SystemExit",
        ".gitattributes": b"* lfs",
    }
