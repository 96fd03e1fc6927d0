"""Several processes of one stage: starts torchrun, passes SIGTERM on, and sums up their results."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

from medgr2_api.stage_contract import ExitCode, StageRequest, StageResult
from medgr2_api.stages import definition, listed

from ...errors import ConfigError, RendezvousTimeout, Terminated
from .rank_results import RANK_RESULTS_ENV, RankResults, worst
from .rendezvous import Rendezvous

_POLL_INTERVAL = 0.2  # seconds between looks at the stop flag
_SHUTDOWN_RESERVE = 10  # seconds of the grace period kept for the end


def launch(request: StageRequest, rendezvous: Rendezvous, stop: threading.Event) -> StageResult:
    """Runs the stage in this node's processes, until all have ended.

    Args:
        request: what to do; the processes read it from the environment.
        rendezvous: how many there are.
        stop: set from outside to ask for a checkpoint.

    Returns:
        The result that explains this node's end. Success is the same in all processes of all nodes.

    Raises:
        ConfigError: the stage cannot be divided up.
        RendezvousTimeout: the other nodes did not come.
        Terminated: asked to stop before there was anything to checkpoint, or while it could not.
    """
    if not definition(request.stage).distributed:
        distributed, sharded = listed(lambda stage: stage.distributed), listed(lambda stage: stage.sharded)
        raise ConfigError(
            f"stage {request.stage} runs in one process: take numNodes, numProcPerNode and deepspeed out of its "
            f"settings ({distributed} can use them); {sharded} have shards"
        )
    with tempfile.TemporaryDirectory(prefix="medgr2-") as folder:
        rank_results = RankResults(Path(folder))
        code = _run(_command(rendezvous), rank_results, _environment(request, rank_results), stop)
        return _node_result(rank_results, code, rendezvous, stop)


def _command(rendezvous: Rendezvous) -> list[str]:
    """torchrun's. Only the static rendezvous keeps the nodes' order: node 0 has rank 0, and the operator reads its pod.

    Its store tries again until the timeout when the name of node 0 is not known yet.
    """
    if rendezvous.nodes == 1:
        rendezvous_options = ["--standalone", "--local-addr", "127.0.0.1"]
    else:
        rendezvous_options = [
            "--nnodes",
            str(rendezvous.nodes),
            "--node-rank",
            str(rendezvous.index),
            "--rdzv-backend",
            "static",
        ]
        rendezvous_options += ["--rdzv-endpoint", rendezvous.endpoint, "--rdzv-id", rendezvous.name]
        rendezvous_options += ["--rdzv-conf", f"timeout={max(1, int(rendezvous.timeout))}"]
    options = ["--nproc-per-node", str(rendezvous.processes), "--max-restarts", "0", "--monitor-interval", "0.2"]
    agent = [sys.executable, "-m", "medgr2_jobs.runner.distributed.torchrun_agent"]
    return [*agent, *rendezvous_options, *options, "--module", "medgr2_jobs.runner.distributed.rank_main"]


def _environment(request: StageRequest, rank_results: RankResults) -> dict[str, str]:
    grace = max(1, int(request.grace_seconds - _SHUTDOWN_RESERVE))
    return {
        **os.environ,
        RANK_RESULTS_ENV: str(rank_results.folder),
        "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(grace),
        "OMP_NUM_THREADS": str(request.threads),
    }


def _run(command: list[str], rank_results: RankResults, environment: dict[str, str], stop: threading.Event) -> int:
    """torchrun's exit code; -n: signal n ended it."""
    process = subprocess.Popen(command, env=environment)
    while True:
        try:
            return process.wait(_POLL_INTERVAL)
        except subprocess.TimeoutExpired:
            if stop.is_set() and not rank_results.stop_requested:
                rank_results.request_stop()
                process.terminate()


def _node_result(rank_results: RankResults, code: int, rendezvous: Rendezvous, stop: threading.Event) -> StageResult:
    results = rank_results.read()
    if results:
        silent = _missing_result(stopped=stop.is_set())
        return worst([result or silent for result in results])
    if stop.is_set():
        raise Terminated("stopped before the processes had begun")
    if code == ExitCode.SIGTERM:
        raise RendezvousTimeout(
            f"node {rendezvous.index} of {rendezvous.nodes} waited {rendezvous.timeout:.0f} s at {rendezvous.endpoint} "
            "for the others; check their pods: pending, or unable to reach the first one?"
        )
    return StageResult(exit_code=ExitCode.ERROR, reason="TorchrunFailed", message="see the lines above in this log")


def _missing_result(*, stopped: bool) -> StageResult:
    """Of a process that left none."""
    if stopped:
        return StageResult(
            exit_code=ExitCode.SIGTERM,
            reason="Terminated",
            message="no checkpoint could be written within the grace period",
        )
    return StageResult(
        exit_code=128 + 9, reason="ProcessDied", message="a process ended without a result; out of memory?"
    )
