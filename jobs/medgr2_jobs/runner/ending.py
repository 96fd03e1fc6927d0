"""The end of a process whose main thread cannot end it any more: it waits for something that never comes."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import NoReturn

from medgr2_api.stage_contract import RESULT_PATH_ENV, StageResult

from ..errors import StageError
from ..store import atomic
from .distributed.rank_results import RANK_RESULTS_ENV, RankResults

_log = logging.getLogger(__name__)


def write_result(result: StageResult) -> None:
    """Writes the result of a stage's process to where it was asked for."""
    path = os.environ.get(RESULT_PATH_ENV)
    if not path:
        return
    text = result.to_termination_message()
    try:
        try:
            atomic.write_text(Path(path), text)
        except OSError:  # a pod's termination log is a mount: it can be written, not replaced
            Path(path).write_text(text)
    except (OSError, StageError) as error:  # the exit code still says what happened
        _log.error("could not leave the result at %s: %s", path, error)


def end_process(error: StageError, usage: dict[str, float]) -> NoReturn:
    """Ends this process at once, from any of its threads, as if its stage had raised the error.

    Nothing that was half done is tidied up: as after `kill -9`, the next attempt passes it over.

    Args:
        error: why.
        usage: what the attempt has cost so far.
    """
    result = StageResult(exit_code=error.exit_code, reason=error.reason, message=str(error), usage=usage)
    _log.error("%s: %s", result.reason, result.message)
    if folder := os.environ.get(RANK_RESULTS_ENV):  # one of several processes: their parent sums up
        RankResults(Path(folder)).write_result(int(os.environ["LOCAL_RANK"]), result)
    else:
        write_result(result)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(result.exit_code)
