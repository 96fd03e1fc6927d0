"""`medgr2` as a person runs it: a process with a kubeconfig."""

from __future__ import annotations

import itertools
import os
from dataclasses import dataclass
from pathlib import Path

from medgr2_operator.cli.app import main
from tests.support.fork_runner import ForkedProgram
from tests.support.kwok_env import KwokEnv

SECONDS = 600.0


@dataclass(frozen=True)
class CompletedCommand:
    """How a command ended."""

    code: int
    out: str
    err: str


class Medgr2:
    """The command line, by an admin in the env's namespace unless told otherwise."""

    def __init__(self, env: KwokEnv) -> None:
        # beside the test's own folder, which some commands fill
        self._folder, self._number = env.folder.with_name(f"{env.folder.name}-said"), itertools.count()
        self._folder.mkdir(exist_ok=True)
        self._where = [f"--kubeconfig={env.control_plane.kubeconfig}", f"--namespace={env.namespace}"]

    def __call__(self, *arguments: object) -> str:
        """What it prints; it must end well."""
        done = self.run(*arguments)
        assert done.code == 0, done
        return done.out

    def run(self, *arguments: object, kubeconfig: Path | None = None) -> CompletedCommand:
        """How it ends; with a kubeconfig, in that one's namespace."""
        process = self.start(*arguments, kubeconfig=kubeconfig)
        out, err = process.communicate(timeout=SECONDS)
        return CompletedCommand(process.returncode, out.decode(), err.decode())

    def start(self, *arguments: object, kubeconfig: Path | None = None) -> ForkedProgram:
        """The command while it runs."""
        where = [f"--kubeconfig={kubeconfig}"] if kubeconfig else self._where
        environment = {key: value for key, value in os.environ.items() if key != "KUBECONFIG"}
        out = self._folder / f"medgr2-{next(self._number)}.out"
        return ForkedProgram(
            main, [*map(str, arguments), *where], environment=environment, out=out, err=out.with_suffix(".err")
        )


class LiveOutput:
    """What a command that goes on has printed."""

    def __init__(self, process: ForkedProgram) -> None:
        self._process = process

    def __call__(self) -> list[str]:
        return self._process.out.read_text().splitlines()
