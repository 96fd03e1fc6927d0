"""A process that imports the heavy libraries once and forks one child per stage attempt.

Importing torch, transformers and trl takes several seconds; a small cycle has thirty stages. `medgr2 run` starts one
forkserver (`python -m medgr2_jobs.runner.forkserver`) and asks it for stages: one JSON object a line on stdin, one on
stdout.

```
→ {"id": "i001-sft-a1-s0", "env": {"MEDGR2_STAGE_REQUEST": "…"}, "log": "/…/i001-sft-a1-s0.log"}
← {"id": "i001-sft-a1-s0", "pid": 4711}
← {"id": "i001-sft-a1-s0", "exitCode": 0}          (128 + n when signal n ended it)
```

Not multiprocessing's forkserver: it passes over a preload that fails, starts anew without a word when it died, imports
the asking program's main module (here the operator's) in every child, and leaves the children to themselves when its
parent is gone.

Nothing outlives its parent: when stdin closes (the executor is gone, `kill -9` included) the children are asked to
checkpoint; when the forkserver dies, the kernel asks them.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import time
from pathlib import Path
from typing import Any

from medgr2_api.guarded_streams import guarded

from . import process_tuning
from .background_process import die_with_parent

PRELOAD = (
    "numpy",
    "PIL.Image",
    "pyarrow.parquet",
    "torch",
    "transformers.models.qwen2_5_vl.modeling_qwen2_5_vl",
    "transformers.models.qwen2_5_vl.processing_qwen2_5_vl",
    "trl.trainer.sft_trainer",
    "trl.trainer.grpo_trainer",
    "medgr2_jobs.models.vlm",
    "medgr2_jobs.training.trainer",
    "medgr2_jobs.runner.main",
)

_GRACE_SECONDS = 60.0


def preload() -> None:
    """Imports everything a stage may need; starts no thread and touches no GPU, so that forking is safe."""
    for name in PRELOAD:
        process_tuning.load(name)


class Forkserver:
    """The loop: read commands, fork, reap, reply."""

    def __init__(self) -> None:
        self.children: dict[int, str] = {}
        self._buffer = b""
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_write, False)
        # orders are read with os.read; the children must not inherit a buffered copy
        self._commands = os.dup(0)
        self._replies = os.dup(1)
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, 0)
        os.dup2(2, 1)  # a stray print must not look like a reply

    def serve(self) -> int:
        """Runs until stdin closes, then until the last child has ended."""
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the executor, which decides
        self._reply({"ready": True})
        while self._read_commands():
            self._reap()
        return self._shut_down()

    def _read_commands(self) -> bool:
        readable, _, _ = select.select([self._commands, self._wake_read], [], [], 1.0)
        if self._wake_read in readable:
            os.read(self._wake_read, 4096)
        if self._commands not in readable:
            return True
        data = os.read(self._commands, 65536)
        if not data:
            return False
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        for line in lines:
            self._fork(json.loads(line))
        return True

    def _fork(self, command: dict[str, Any]) -> None:
        parent = os.getpid()
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                code = self._child(command, parent)
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        self.children[pid] = command["id"]
        self._reply({"id": command["id"], "pid": pid})

    def _child(self, command: dict[str, Any], parent: int) -> int:
        """In the child: own session, own log, default signals, then the stage."""
        os.setsid()
        die_with_parent(signal.SIGTERM)
        if os.getppid() != parent:  # the forkserver died between fork and prctl
            return 128 + signal.SIGTERM
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        for handle in (self._commands, self._replies, self._wake_read, self._wake_write):
            os.close(handle)
        log = Path(command["log"])
        log.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        os.environ.update(command["env"])
        from . import main

        return main.main()

    def _reap(self) -> None:
        while self.children:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            code = os.waitstatus_to_exitcode(status)
            self._reply({"id": self.children.pop(pid), "exitCode": code if code >= 0 else 128 - code})

    def _shut_down(self) -> int:
        """The executor is gone: checkpoint, wait, and at last kill."""
        for pid in self.children:
            os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + _GRACE_SECONDS
        while self.children and time.monotonic() < deadline:
            self._reap()
            time.sleep(0.05)
        for pid in self.children:
            os.kill(pid, signal.SIGKILL)
        return 0

    def _reply(self, reply: dict[str, Any]) -> None:
        try:
            os.write(self._replies, json.dumps(reply).encode() + b"\n")
        except BrokenPipeError:  # the executor is gone; stdin says so next
            return


def main() -> int:
    """Entry point."""
    preload()
    return Forkserver().serve()


if __name__ == "__main__":
    with guarded():
        code = main()
    sys.exit(code)
