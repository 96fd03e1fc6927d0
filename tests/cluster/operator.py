"""The operator as a process beside the test cluster, as its container would run it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Mapping
from pathlib import Path

from medgr2_operator.runtime.main import main
from tests.cluster.control_plane import ControlPlane
from tests.support.fork_runner import ForkedProgram
from tests.support.ports import free_port

STOP_SECONDS = 30


class Operator:
    """One replica. Kill it, stop it, start it again."""

    def __init__(self, control_plane: ControlPlane, folder: Path, namespace: str, name: str = "operator-0") -> None:
        self.namespace, self.name = namespace, name
        self.log = folder / f"{name}.log"
        self.port = free_port()
        self._kubeconfig = control_plane.user_kubeconfig(name, ["system:masters"])
        self._process: subprocess.Popen[bytes] | ForkedProgram | None = None
        self._told = False

    def start(self, **settings: str) -> Operator:
        """Starts it; watches its own namespace only, so that tests do not meet."""
        given = {
            "kubeconfig": str(self._kubeconfig),
            "namespaces": self.namespace,
            "namespace": self.namespace,
            "identity": self.name,
            "image": "localhost/stage:test",
            "port": str(self.port),
            **settings,
        }
        environment: Mapping[str, str] = {
            **{key: value for key, value in os.environ.items() if not key.startswith("MEDGR2_")},
            **{f"MEDGR2_OPERATOR_{key.upper()}": value for key, value in given.items()},
        }
        self._process, self._told = self._launch(environment), False
        return self

    def _launch(self, environment: Mapping[str, str]) -> subprocess.Popen[bytes] | ForkedProgram:
        with self.log.open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "medgr2_operator.runtime.main"],
                env=environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """Of the running process."""
        assert self._process is not None
        return self._process.pid

    def kill(self) -> None:
        """As a node that loses its power."""
        self._end(signal.SIGKILL)

    def stop(self) -> int:
        """As a rollout; its exit code."""
        return self._end(signal.SIGTERM)

    def alive(self) -> bool:
        """Whether the process runs."""
        return self._process is not None and self._process.poll() is None

    def lost(self) -> bool:
        """Whether it has ended though no test ended it."""
        return self._process is not None and not self._told and not self.alive()

    def get(self, path: str) -> tuple[int, str]:
        """Status and text of one of its endpoints; status 0: nobody answers."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except OSError:
            return 0, ""

    def _end(self, number: int) -> int:
        if self._process is None:
            return 0
        self._told = True
        if self._process.poll() is None:
            self._process.send_signal(number)
        try:
            return self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            raise


class ForkedOperator(Operator):
    """The same, forked from a process that has imported everything."""

    def _launch(self, environment: Mapping[str, str]) -> ForkedProgram:
        return ForkedProgram(main, environment=environment, out=self.log)
