"""`medgr2 run`."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from types import FrameType

from medgr2_api import workspace as names
from medgr2_api.cycle import Cycle
from medgr2_api.scheduling import RestartFrom
from medgr2_api.stages import ExitCode
from medgr2_api.status import AttemptState, Phase

from ..local.executor import Executor
from ..local.lock import RunLock, WorkspaceBusy
from ..local.state import StateError, StateFile, merge
from ..local.view import LiveView, PlainView, make_view
from .loading import load, parse_stage
from .results import print_results

INTERRUPTED = 128 + signal.SIGINT


def run_cycle(file: Path, workspace: Path, restart_from: str, secrets: Path | None, threads: int, plain: bool) -> int:
    """Runs the cycle to its end; returns the process's exit code."""
    wanted = load(file, local=True)
    workspace.mkdir(parents=True, exist_ok=True)
    view = make_view(plain)
    try:
        lock = RunLock(workspace, lambda pid: view.on_notice(f"waiting for the stages that run {pid} left behind"))
        with lock:
            state = StateFile(workspace, wanted.metadata.name)
            cycle = merge(_with_restart(wanted, state, restart_from), state.load())
            executor = Executor(workspace, cycle, view, inherit=(lock.fileno,), secrets=secrets, threads=threads)
            return _run(executor, view, file)
    except (WorkspaceBusy, StateError, ValueError) as error:
        print(f"{file}: {error}", file=sys.stderr)
        return ExitCode.USAGE


def _with_restart(wanted: Cycle, state: StateFile, restart_from: str) -> Cycle:
    """`--restart-from` as spec.restartFrom with a token that has not acted yet."""
    if not restart_from:
        return wanted
    stage, iteration = parse_stage(restart_from, wanted.spec.iterations)
    stored = state.load()
    used = set(stored.status.restart_tokens) if stored else set()
    token = next(f"r{n}" for n in range(1, len(used) + 2) if f"r{n}" not in used)
    spec = wanted.spec.model_copy(update={"restart_from": RestartFrom(iteration=iteration, stage=stage, token=token)})
    return wanted.model_copy(update={"spec": spec})


def _run(executor: Executor, view: LiveView | PlainView, file: Path) -> int:
    interrupted: list[int] = []

    def leave(number: int, _: FrameType | None) -> None:
        interrupted.append(number)
        if len(interrupted) == 1:
            view.on_notice("stopping: stages write their checkpoints (again: kill them)")
        executor.leave()

    previous = {number: signal.signal(number, leave) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with view:
            phase = executor.run()
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    folder = executor.root / names.report(executor.cycle.metadata.name)
    if phase is Phase.COMPLETE:
        print_results(folder)
        return ExitCode.OK
    if interrupted:
        print(f"stopped; the same command goes on: medgr2 run {file} --workspace {executor.root}", file=sys.stderr)
        return 128 + interrupted[0]
    return _explain(executor, phase)


def _explain(executor: Executor, phase: Phase) -> int:
    """Why the run ended without being complete."""
    status = executor.cycle.status
    if phase is Phase.FAILED:
        for stage in status.stages:
            if stage.state is AttemptState.FAILED:
                attempt = names.attempt_name(stage.iteration, stage.name, stage.token, stage.attempt)
                log = executor.root / names.log(executor.cycle.metadata.name, attempt)
                print(f"{stage.name}@{stage.iteration} failed: {stage.reason}: {stage.message}", file=sys.stderr)
                print(f"  log: {log}", file=sys.stderr)
        return executor.failure_exit_code or ExitCode.ERROR
    progressing = next((condition for condition in status.conditions if condition.type == "Progressing"), None)
    print(f"{phase}: {progressing.message if progressing else status.summary}", file=sys.stderr)
    if phase is Phase.PAUSED:
        print("look at what is there, then list the stage in spec.approved and run again", file=sys.stderr)
    return ExitCode.OK
