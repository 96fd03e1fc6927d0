"""A part of a stage that runs beside the rest of it, in a forked process of its own."""

from __future__ import annotations

import ctypes
import logging
import multiprocessing
import signal
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..errors import Checkpointed, TemporaryError

if TYPE_CHECKING:  # a fetching process imports this module, and little else
    from .context import StageContext

_log = logging.getLogger(__name__)
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def die_with_parent(number: int) -> None:
    """Asks the kernel to send this process a signal when its parent dies."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0)


class BackgroundProcess:
    """`work()` in a forked process; it returns a number.

    It shares nothing with its parent but the volume. Asked to stop with the stage, it sees `ctx.stop` and may write a
    checkpoint; when the stage is killed, so is it: two writers of one checkpoint can not be.
    """

    def __init__(self, ctx: StageContext[Any], name: str, work: Callable[[], float]) -> None:
        fork = multiprocessing.get_context("fork")
        self.name = name
        self._receiver, sender = fork.Pipe(duplex=False)
        self._process = fork.Process(target=_run, args=(ctx, work, sender), name=name)
        self._process.start()
        sender.close()

    def result(self, ctx: StageContext[Any]) -> float:
        """Waits for the answer.

        Raises:
            Checkpointed: the stage was asked to stop meanwhile.
            TemporaryError: the process ended without an answer; the stage's log says why.
        """
        while not self._receiver.poll(0.2):
            if ctx.stop.is_set():
                ctx.check_stop()
        try:
            value = self._receiver.recv()
        except EOFError:
            raise TemporaryError(f"{self.name} ended without a result; see the lines above in this log") from None
        self._process.join()
        return float(value)

    def stop(self) -> None:
        """Asks it to checkpoint, if it still runs, and waits for its end."""
        if self._process.is_alive():
            self._process.terminate()
        self._process.join()


def _run(ctx: StageContext[Any], work: Callable[[], float], sender: Any) -> None:
    die_with_parent(signal.SIGKILL)
    ctx.silence()
    try:
        sender.send(work())
    except Checkpointed:  # as the stage was asked to, which knows it
        return
    except Exception:
        _log.exception("%s failed", multiprocessing.current_process().name)
        sys.exit(1)
