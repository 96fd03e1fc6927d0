"""Several processes of one stage: starts torchrun, passes SIGTERM on, and tells how it went."""

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
from .rank_results import OUTCOMES_ENV, Outcomes, worst
from .rendezvous import World

_LOOK = 0.2  # seconds between looks at the stop flag
_RESERVE = 10  # seconds of the grace period kept for the end


def launch(request: StageRequest, world: World, stop: threading.Event) -> StageResult:
    """Runs the stage in this node's processes, until all have ended.

    Args:
        request: what to do; the processes read it from the environment.
        world: how many there are.
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
        outcomes = Outcomes(Path(folder))
        code = _run(_command(world), outcomes, _environment(request, outcomes), stop)
        return _verdict(outcomes, code, world, stop)


def _command(world: World) -> list[str]:
    """torchrun's. Only the static rendezvous keeps the nodes' order: node 0 has rank 0, and the operator reads its pod.

    Its store tries again until the timeout when the name of node 0 is not known yet.
    """
    if world.nodes == 1:
        meeting = ["--standalone", "--local-addr", "127.0.0.1"]
    else:
        meeting = ["--nnodes", str(world.nodes), "--node-rank", str(world.index), "--rdzv-backend", "static"]
        meeting += ["--rdzv-endpoint", world.endpoint, "--rdzv-id", world.name]
        meeting += ["--rdzv-conf", f"timeout={max(1, int(world.timeout))}"]
    options = ["--nproc-per-node", str(world.processes), "--max-restarts", "0", "--monitor-interval", "0.2"]
    agent = [sys.executable, "-m", "medgr2_jobs.runner.distributed.torchrun_agent"]
    return [*agent, *meeting, *options, "--module", "medgr2_jobs.runner.distributed.rank_main"]


def _environment(request: StageRequest, outcomes: Outcomes) -> dict[str, str]:
    grace = max(1, int(request.grace_seconds - _RESERVE))
    return {
        **os.environ,
        OUTCOMES_ENV: str(outcomes.folder),
        "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(grace),
        "OMP_NUM_THREADS": str(request.threads),
    }


def _run(command: list[str], outcomes: Outcomes, environment: dict[str, str], stop: threading.Event) -> int:
    """torchrun's exit code; -n: signal n ended it."""
    process = subprocess.Popen(command, env=environment)
    while True:
        try:
            return process.wait(_LOOK)
        except subprocess.TimeoutExpired:
            if stop.is_set() and not outcomes.asked_to_stop:
                outcomes.ask_to_stop()
                process.terminate()


def _verdict(outcomes: Outcomes, code: int, world: World, stop: threading.Event) -> StageResult:
    results = outcomes.read()
    if results:
        silent = _silent(stopped=stop.is_set())
        return worst([result or silent for result in results])
    if stop.is_set():
        raise Terminated("stopped before the processes had begun")
    if code == ExitCode.SIGTERM:
        raise RendezvousTimeout(
            f"node {world.index} of {world.nodes} waited {world.timeout:.0f} s at {world.endpoint} for the others; "
            "look after their pods: pending, or unable to reach the first one?"
        )
    return StageResult(exit_code=ExitCode.ERROR, reason="TorchrunFailed", message="see the lines above in this log")


def _silent(*, stopped: bool) -> StageResult:
    """Of a process that ended without a word."""
    if stopped:
        return StageResult(
            exit_code=ExitCode.SIGTERM,
            reason="Terminated",
            message="no checkpoint could be written within the grace period",
        )
    return StageResult(
        exit_code=128 + 9, reason="ProcessDied", message="a process ended without a word; out of memory?"
    )
