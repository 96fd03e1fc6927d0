"""One process of a stage that torchrun started: the same stage, side by side with the others."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import NoReturn

from medgr2_api.guarded_streams import guarded
from medgr2_api.stage_contract import REQUEST_ENV, WORKSPACE_ENV, StageRequest, StageResult

from ...errors import ConfigError, PeerLost, StageError, Terminated
from .. import stage_log
from ..attempt import run_guarded, work
from ..background_process import die_with_parent
from ..process_group import TorchProcessGroup
from .rank_results import RANK_RESULTS_ENV, RankResults
from .rendezvous import Rendezvous

#: Longest a tensor may be on its way: a process that hangs (not: is lost) is found out by this.
_TIMEOUT = timedelta(minutes=30)


class RankProcess:
    """This process, and how it ends."""

    def __init__(self) -> None:
        self.local_rank = int(os.environ["LOCAL_RANK"])
        self.rank_results = RankResults(Path(os.environ[RANK_RESULTS_ENV]))
        self.rank_results.mark_started(self.local_rank)
        self.stop = threading.Event()
        self.joined = threading.Event()

    def run(self) -> NoReturn:
        """Never returns: ends the process, whatever its libraries' threads are doing."""
        die_with_parent(signal.SIGKILL)
        self._handle_sigterm()
        request = StageRequest.model_validate_json(os.environ[REQUEST_ENV])
        root = Path(os.environ.get(WORKSPACE_ENV, "/workspace"))
        with stage_log.written(request):
            self._end(run_guarded(request, root, lambda: self._work(request, root)))

    def _work(self, request: StageRequest, root: Path) -> StageResult:
        try:
            group = _init_process_group(Rendezvous.from_environment(), self.local_rank)
            self.joined.set()
            return work(request, root, self.stop, group)
        except Exception as error:
            if not isinstance(error, StageError) and any(map(_is_connection_error, _chain(error))):
                raise PeerLost("the connection to another process of this training broke; its own log says why") from (
                    error
                )
            raise

    def _handle_sigterm(self) -> None:
        """Answers SIGTERM from a thread: the main one may be waiting for a process that will never answer."""
        read, write = os.pipe()
        os.set_blocking(write, False)
        signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        signal.signal(signal.SIGTERM, lambda *_: None)

        def answer() -> None:
            while os.read(read, 1)[0] != signal.SIGTERM:
                pass
            if not self.rank_results.stop_requested:
                self._end(_result_of(PeerLost("another process on this node failed")))
            if not self.joined.is_set():
                self._end(_result_of(Terminated("stopped before the processes had found each other")))
            self.stop.set()

        threading.Thread(target=answer, name="signals", daemon=True).start()

    def _end(self, result: StageResult) -> NoReturn:
        self.rank_results.write_result(self.local_rank, result)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(result.exit_code)


def _init_process_group(rendezvous: Rendezvous, local_rank: int) -> TorchProcessGroup:
    """Connects this process with the others.

    Raises:
        ConfigError: there are fewer GPUs than processes.
    """
    import torch
    import torch.distributed as dist

    if torch.cuda.is_available():
        if rendezvous.processes > torch.cuda.device_count():
            raise ConfigError(
                f"numProcPerNode is {rendezvous.processes}, but there are {torch.cuda.device_count()} GPUs here: "
                "lower it, or ask for as many in the stage's resources"
            )
        torch.cuda.set_device(local_rank)
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo", timeout=_TIMEOUT)
    return TorchProcessGroup.create(rendezvous.layout)


def _result_of(error: StageError) -> StageResult:
    return StageResult(exit_code=error.exit_code, reason=error.reason, message=str(error))


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _is_connection_error(error: BaseException) -> bool:
    """Whether an error comes from the connection between the processes. (Gloo's have no type of their own.)"""
    import torch.distributed as dist

    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error).lower())


if __name__ == "__main__":
    with guarded():
        RankProcess().run()
