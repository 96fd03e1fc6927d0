"""`medgr2` as a person runs it: a process with a kubeconfig."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.cluster.world import World

SECONDS = 600.0


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    code: int
    out: str
    err: str


class Medgr2:
    """The command line, by an admin in the world's namespace unless told otherwise."""

    def __init__(self, world: World) -> None:
        self._where = [f"--kubeconfig={world.control_plane.kubeconfig}", f"--namespace={world.namespace}"]

    def __call__(self, *arguments: object) -> str:
        """What it prints; it must end well."""
        done = self.run(*arguments)
        assert done.code == 0, done
        return done.out

    def run(self, *arguments: object, kubeconfig: Path | None = None) -> Done:
        """How it ends; with a kubeconfig, in that one's namespace."""
        process = self.start(*arguments, kubeconfig=kubeconfig)
        out, err = process.communicate(timeout=SECONDS)
        return Done(process.returncode, out.decode(), err.decode())

    def start(self, *arguments: object, kubeconfig: Path | None = None) -> subprocess.Popen[bytes]:
        """The command while it runs."""
        where = [f"--kubeconfig={kubeconfig}"] if kubeconfig else self._where
        command = [sys.executable, "-m", "medgr2_operator.cli.app", *map(str, arguments), *where]
        environment = {key: value for key, value in os.environ.items() if key != "KUBECONFIG"}
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


class Printed:
    """What a command that goes on has printed."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process, self._text = process, b""
        assert process.stdout is not None
        os.set_blocking(process.stdout.fileno(), False)

    def __call__(self) -> list[str]:
        assert self._process.stdout is not None
        self._text += self._process.stdout.read() or b""
        return self._text.decode().splitlines()
