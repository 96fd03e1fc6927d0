"""What `medgr2 decisions` does, and how it does it in a workspace on this computer. The jobs read and write: they know
parquet."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medgr2_api import paths as names
from medgr2_api.stage_contract import ExitCode

from .errors import CommandError
from .unpack import UNPACKING, Unpacker, final_place, refusal

#: Folder of the workspace that a review is written to.
FOLDER = names.review("").parent.name
_PIECE = 1 << 20
_LARGEST = 64 << 20  # bytes of a file with decisions: a hundred thousand with long reasons


@dataclass(frozen=True)
class Wanted:
    """What is to be exported, and where to."""

    cycle: str
    iteration: int
    file_format: str
    everything: bool
    target: Path
    force: bool

    @property
    def arguments(self) -> list[str]:
        """Of `medgr2_jobs.review`."""
        every = ["--all"] if self.everything else []
        return ["export", self.cycle, "--iteration", str(self.iteration), "--format", self.file_format, *every]

    def place(self) -> Path:
        """The folder that is made.

        Raises:
            CommandError: it is there already.
        """
        return final_place(self.target, f"{self.cycle}-i{self.iteration:03d}-triplets", self.force)

    def say(self, place: Path, told: dict[str, Any]) -> int:
        """Says what is where, and what to do with it."""
        file = place / f"triplets.{self.file_format}"
        print(f"{file}: {told['triplets']} triplets of curate@{self.iteration}; {place / 'index.html'} shows them")
        print("fill in veto (true or false) where you have decided, or use the page; then")
        print(f"  medgr2 decisions import {self.cycle} {file} --iteration {self.iteration}")
        return ExitCode.OK


@dataclass(frozen=True)
class Imported:
    """What the jobs say of a review that they took."""

    sha256: str
    decided: int
    vetoed: int
    candidates: int

    @classmethod
    def of(cls, document: bytes) -> Imported:
        """From their JSON."""
        return cls(**json.loads(document))

    def __str__(self) -> str:
        counts = f"{self.vetoed} vetoed, {self.decided - self.vetoed} confirmed, of {self.candidates} candidates"
        return f"{names.review(self.sha256)}: {counts}"


def export_here(workspace: Path, wanted: Wanted) -> int:
    """Exports from a workspace on this computer.

    Raises:
        CommandError: nothing to review, or the target is there already.
    """
    place = wanted.place()
    with tempfile.TemporaryFile() as stderr:
        process = subprocess.Popen(_command(workspace, *wanted.arguments), stdout=subprocess.PIPE, stderr=stderr)
        assert process.stdout is not None
        try:
            with Unpacker(place) as unpacker:
                while piece := process.stdout.read(_PIECE):
                    unpacker.write(piece)
                code = process.wait()
                stderr.seek(0)
                said = stderr.read().decode(errors="replace")
                if code:
                    raise _failed(said, code)
                told = unpacker.end(said, replace=wanted.force)
        except UNPACKING as error:
            raise refusal(str(place), error) from error
        finally:
            process.stdout.close()
            process.kill()
            process.wait()
    return wanted.say(place, told)


def import_here(workspace: Path, cycle: str, iteration: int, file: Path) -> int:
    """Takes decisions into a workspace on this computer, and says what to put into the spec.

    Raises:
        CommandError: the file is not right; the message names its line.
    """
    data = read_file(file)
    command = _command(workspace, *receiving(cycle, iteration, file, len(data)))
    done = subprocess.run(command, input=data, capture_output=True, check=False)
    if done.returncode:
        raise _failed(done.stderr.decode(errors="replace"), done.returncode)
    imported = Imported.of(done.stdout)
    print(imported)
    print(f"put this into the spec of {cycle} (another review of iteration {iteration} goes):")
    print(f"  reviews: [{{iteration: {iteration}, sha256: {imported.sha256}}}]")
    print("then let curate take notice:")
    print(f"  medgr2 run CYCLE.yaml --workspace {workspace} --restart-from curate@{iteration}")
    return ExitCode.OK


def receiving(cycle: str, iteration: int, file: Path, size: int) -> list[str]:
    """Arguments of `medgr2_jobs.review` that reads a file from stdin."""
    return ["import", cycle, "--iteration", str(iteration), "--name", file.name, "--bytes", str(size)]


def read_file(file: Path) -> bytes:
    """The file with the decisions.

    Raises:
        CommandError: it cannot be read, or is none.
    """
    try:
        with file.open("rb") as stream:
            data = stream.read(_LARGEST + 1)
    except OSError as error:
        raise CommandError(f"{file}: {error.strerror}") from None
    if not data.strip():
        raise CommandError(f"{file}: is empty", ExitCode.DATA_ERROR)
    if len(data) > _LARGEST:
        raise CommandError(f"{file}: more than {_LARGEST >> 20} MiB: not a list of decisions", ExitCode.DATA_ERROR)
    return data


def _command(workspace: Path, *arguments: str) -> list[str]:
    if importlib.util.find_spec("pyarrow") is None:
        raise CommandError("decisions are in parquet, which needs the jobs' packages: pip install 'medgr2[jobs]'")
    return [sys.executable, "-m", "medgr2_jobs.review", *arguments, "--workspace", str(workspace)]


def _failed(said: str, code: int) -> CommandError:
    lines = said.strip().splitlines()
    return CommandError(lines[-1] if lines else f"exit code {code}", code)
