"""torchrun, with what the stage's contract asks of it: it ends with its parent, and says what ended a process."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from torch.distributed import DistError
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.elastic.rendezvous import RendezvousError
from torch.distributed.run import main as torchrun

from medgr2_api.guarded_streams import guarded
from medgr2_api.stage_contract import ExitCode, StageResult

from ..background_process import die_with_parent
from .rank_results import RANK_RESULTS_ENV, RankResults


def main() -> int:
    """Exit code: 0, 1, or 143 when the nodes did not find each other."""
    die_with_parent(signal.SIGKILL)  # its processes follow it in the same way
    try:
        torchrun(sys.argv[1:])
    except ChildFailedError as error:
        rank_results = RankResults(Path(os.environ[RANK_RESULTS_ENV]))
        for failure in error.failures.values():
            if failure.exitcode < 0:
                rank_results.write_result(failure.local_rank, _killed(-failure.exitcode))
        return ExitCode.ERROR
    except SignalException:  # passed on, and its effect awaited
        return ExitCode.ERROR
    except (DistError, RendezvousError) as error:
        print(f"rendezvous: {str(error).splitlines()[0]}", file=sys.stderr)
        return ExitCode.SIGTERM
    return ExitCode.OK


def _killed(number: int) -> StageResult:
    name = signal.Signals(number).name
    hint = "; out of memory?" if number == signal.SIGKILL else ""
    return StageResult(exit_code=128 + number, reason="ProcessKilled", message=f"a process was ended by {name}{hint}")


if __name__ == "__main__":
    with guarded():
        code = main()
    sys.exit(code)
