"""What the sidecar's test needs on a volume: a tiny model, and what `transformers serve` imports."""

from __future__ import annotations

import importlib.metadata
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.support.transformers_server import BUILD

#: Folder of the model within the workspace.
MODEL = "models/tiny"
#: As a container sees it.
PYTHONPATH = "/workspace/serving"
#: Stands for the program `vllm`.
VLLM = f"{PYTHONPATH}/vllm.py"
_SERVE = """\
import os
import sys

arguments = sys.argv[1:]
at = arguments.index("--allowed-media-domains")  # of vLLM alone
os.execvp("transformers", ["transformers", *arguments[:at], *arguments[at + 2 :], "--device", "cpu"])
"""
#: What `transformers serve` needs, and the image of the stages does not have.
_SERVING = ("fastapi", "openai", "uvicorn")


def put(volume: Path) -> None:
    """Writes both, and what starts one as the other is started."""
    subprocess.run([sys.executable, "-c", BUILD, str(volume / MODEL)], check=True, timeout=300)
    for file in (volume / MODEL).iterdir():
        file.chmod(0o644)  # safetensors writes 0600, and the pod is another user
    for name in _with_dependencies(_SERVING):
        _copy_distribution(name, volume / Path(PYTHONPATH).name)
    (volume / Path(PYTHONPATH).name / Path(VLLM).name).write_text(_SERVE)


def _with_dependencies(names: Iterable[str]) -> set[str]:
    """These distributions, as they are installed here, and all that they need."""
    closure: set[str] = set()
    left = [canonicalize_name(name) for name in names]
    while left:
        name = left.pop()
        if name not in closure:
            closure.add(name)
            requirements = map(Requirement, importlib.metadata.requires(name) or ())
            left += [
                canonicalize_name(r.name) for r in requirements if not r.marker or r.marker.evaluate({"extra": ""})
            ]
    return closure


def _copy_distribution(name: str, target: Path) -> None:
    """The files of a distribution, without its commands and bytecode."""
    for file in importlib.metadata.files(name) or ():
        if ".." not in file.parts and "__pycache__" not in file.parts:
            (target / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(str(file.locate()), target / file)
