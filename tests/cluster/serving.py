"""What the sidecar's test needs on a volume: a tiny model that vLLM can serve, and the vLLM of this computer."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from medgr2_jobs.engine import environment
from medgr2_jobs.models.tiny import tokenizer
from tests.support import servable

#: Folder of the model within the workspace.
MODEL = "models/servable"
_FOLDER = "serving"
#: As a container sees it. The image has the Python that the environment was made with, at the same place.
_BIN = f"/workspace/{_FOLDER}/bin"
#: Of the sidecar: it finds `vllm`, and takes one core and little memory.
ENV = {
    "PATH": f"{_BIN}:/usr/local/bin:/usr/bin:/bin",
    "LD_LIBRARY_PATH": _BIN,
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
    "TORCHDYNAMO_DISABLE": "1",
    "VLLM_NO_USAGE_STATS": "1",
}
ARGUMENTS = [
    "--enforce-eager",
    "--dtype=float32",
    "--max-num-seqs=32",
    "--max-model-len=2048",
    "--max-num-batched-tokens=2048",
]
#: Its scripts name the place where it was made.
_COMMAND = f'#!/bin/sh\nexec /workspace/{_FOLDER}/vllm/bin/python /workspace/{_FOLDER}/vllm/bin/vllm "$@"\n'


def put(volume: Path) -> None:
    """Writes the model, links the environment, and writes the command."""
    made = environment.here(environment.Build.CPU)
    assert made.complete, "vLLM's environment is not there: run `medgr2 vllm install --build cpu`"
    processor = tokenizer.processor()
    model = servable.model()
    for part in (model, processor):
        part.save_pretrained(volume / MODEL)
    for file in (volume / MODEL).iterdir():
        file.chmod(0o644)  # safetensors writes 0600, and the pod is another user
    shutil.copytree(made.folder, volume / _FOLDER / "vllm", symlinks=True, copy_function=_link)
    shutil.rmtree(volume / _FOLDER / "vllm" / "cache", ignore_errors=True)  # what it keeps for the user it is made for
    command = volume / _FOLDER / "bin" / "vllm"
    command.parent.mkdir()
    command.write_text(_COMMAND)
    command.chmod(0o755)
    for library in environment.LIBRARIES[environment.Build.CPU]:  # an image of vLLM's own has them
        shutil.copy2(_found(library), command.parent)


def _link(source: str, target: str) -> None:
    """Six gigabytes are linked, where the volume is on the same disk."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _found(library: str) -> Path:
    """Where this computer's linker has it."""
    known = subprocess.run(["/sbin/ldconfig", "-p"], check=True, capture_output=True, text=True).stdout
    return Path(next(line.split()[-1] for line in known.splitlines() if line.split()[:1] == [library]))
