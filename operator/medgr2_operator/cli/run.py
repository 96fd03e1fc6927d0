"""`medgr2 run`."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from medgr2_api import paths
from medgr2_api.cycle import Cycle
from medgr2_api.scheduling import RestartFrom
from medgr2_api.stage_contract import ExitCode
from medgr2_api.status import AttemptState, Phase

from ..local import gpus
from ..local.executor import Executor, RunObserver
from ..local.lock import RunLock
from ..local.runner import Runner
from ..local.state import StateError, StateFile, merge
from ..local.terminal_ui import LiveView, PlainView, make_view
from ..plan.spec_edits import edits_of
from ..plan.types import StageKey
from . import jobs_process
from .cycle_file import read_cycle
from .errors import CommandError, parse_stage
from .hints import print_edits, typed
from .results import print_results


@dataclass(frozen=True)
class Options:
    """What the command line says beside the cycles."""

    restart_from: str = ""
    secrets: Path | None = None
    threads: int = 1
    parallelism: int = 0
    plain: bool = False


def run_cycles(files: Sequence[Path], workspace: Path, options: Options) -> int:
    """Runs the cycles side by side to their ends; returns the process's exit code, that of the first that failed."""
    cycles = {file: read_cycle(file, local=True) for file in files}
    _check_names(files, cycles, options)
    commands = [_Commands(("run", file, "-w", workspace), "--restart-from") for file in files]
    again = typed("run", *files, "-w", workspace)
    return _start(list(zip(cycles.values(), commands, strict=True)), workspace, options, again)


def run_stored(cycle: Cycle, workspace: Path, options: Options) -> int:
    """Goes on with a cycle as the workspace has stored it, without its file."""
    name = cycle.metadata.name
    commands = _Commands(("restart", name, "-w", workspace))
    return _start([(cycle, commands)], workspace, options, typed("resume", name, "-w", workspace))


@dataclass(frozen=True)
class _Commands:
    """What to type to make a stage of a cycle anew."""

    words: tuple[object, ...]
    option: str = ""

    def restart(self, key: StageKey) -> str:
        """The command line."""
        return typed(*self.words, *([self.option] if self.option else []), key)


def _start(cycles: Sequence[tuple[Cycle, _Commands]], workspace: Path, options: Options, again: str) -> int:
    jobs_process.require("run")
    view = make_view(options.plain, len(cycles))
    workspace.mkdir(parents=True, exist_ok=True)
    lock = RunLock(
        workspace,
        lambda pid: view.on_notice(f"waiting for the stages that run {pid} left behind"),
        cycles=[cycle.metadata.name for cycle, _ in cycles],
    )
    with lock:
        executors = [_executor(workspace, cycle, view, options) for cycle, _ in cycles]
        runner = Runner(executors, view, parallelism=options.parallelism, gpus=gpus.here(), inherit=(lock.fileno,))
        return _run(runner, view, [commands for _, commands in cycles], workspace, again)


def _check_names(files: Sequence[Path], cycles: dict[Path, Cycle], options: Options) -> None:
    """
    Raises:
        CommandError: these cycles cannot be run together, or not with these options.
    """
    if options.restart_from and len(files) > 1:
        raise CommandError(f"--restart-from {options.restart_from}: of which cycle? Give one file")
    owners: dict[str, Path] = {}
    for file in files:
        name = cycles[file].metadata.name
        if name in owners:
            raise CommandError(f"{file}: metadata.name: {name!r} is also the name of the cycle in {owners[name]}")
        owners[name] = file


def _executor(workspace: Path, cycle: Cycle, view: RunObserver, options: Options) -> Executor:
    """
    Raises:
        StateError: the options do not fit the cycle, or the cycle its stored state.
    """
    state = StateFile(workspace, cycle.metadata.name)
    try:
        cycle = merge(_with_restart(cycle, state, options.restart_from), state.load())
    except (StateError, CommandError) as error:
        raise StateError(f"{cycle.metadata.name}: {error}") from error
    return Executor(workspace, cycle, view, secrets=options.secrets, threads=options.threads)


def _with_restart(cycle: Cycle, state: StateFile, restart_from: str) -> Cycle:
    """`--restart-from` as spec.restartFrom with a token that is new to the cycle."""
    if not restart_from:
        return cycle
    stage, iteration = restart_point(restart_from, cycle.spec.iterations)
    stored = state.load()
    used = set(stored.status.restart_tokens) if stored else set()
    token = next(f"r{n}" for n in range(1, len(used) + 2) if f"r{n}" not in used)
    spec = cycle.spec.model_copy(update={"restart_from": RestartFrom(iteration=iteration, stage=stage, token=token)})
    return cycle.model_copy(update={"spec": spec})


def restart_point(text: str, iterations: int) -> tuple[str, int]:
    """`grpo@2` → (grpo, 2).

    Raises:
        CommandError: no such stage or iteration; the message says what is possible.
    """
    stage, iteration = parse_stage(text)
    if iteration is None:
        raise CommandError(f"--restart-from {text!r}: expected STAGE@ITERATION, such as {stage}@2")
    if iteration > iterations:
        raise CommandError(f"--restart-from {text!r}: the cycle has {iterations} iterations")
    return stage, iteration


def _run(runner: Runner, view: LiveView | PlainView, commands: Sequence[_Commands], workspace: Path, again: str) -> int:
    interrupted: list[int] = []

    def leave(number: int, _: FrameType | None) -> None:
        interrupted.append(number)
        if len(interrupted) == 1:
            view.on_notice("stopping: stages write their checkpoints (again: kill them)")
        runner.leave()

    ended = [executor.cycle.status.completion_time for executor in runner.executors]
    previous = {number: signal.signal(number, leave) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with view:
            runner.run()
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    stopped = bool(interrupted)
    codes = [
        _print_end(
            _End(executor, own, workspace, ran=executor.cycle.status.completion_time != before),
            stopped=stopped,
            several=len(commands) > 1,
        )
        for executor, own, before in zip(runner.executors, commands, ended, strict=True)
    ]
    suspended = any(executor.suspended and executor.phase is Phase.SUSPENDED for executor in runner.executors)
    if suspended or (stopped and any(executor.phase is not Phase.COMPLETE for executor in runner.executors)):
        print(f"stopped; the same command goes on: {again}", file=sys.stderr)
        return 128 + (interrupted[0] if stopped else signal.SIGTERM)
    return next((code for code in codes if code), ExitCode.OK)


@dataclass(frozen=True)
class _End:
    """How a cycle ended."""

    executor: Executor
    commands: _Commands
    workspace: Path
    ran: bool
    """This run brought it there; False: it had ended before."""


def _print_end(end: _End, *, stopped: bool, several: bool) -> int:
    """Says how a cycle ended; returns its exit code.

    A complete cycle that has nothing to run, while its file asks for something else than it was made with, is a
    configuration error: `medgr2 run edited.yaml && publish` must not take the old results for the file's.
    """
    executor, edits = end.executor, edits_of(end.executor.cycle)
    name, phase = executor.cycle.metadata.name, executor.phase
    if several:
        print(f"\n{name}: {phase}", flush=True)
    if edits and phase in (Phase.COMPLETE, Phase.FAILED):
        print_edits(name, edits, end.commands.restart)
    if phase is Phase.COMPLETE:
        print_results(executor.root / paths.report(name))
        if executor.cycle.status.models.policy is not None:
            print(f"model: {typed('model', name, '-w', end.workspace)}")
        return ExitCode.CONFIG if edits and not end.ran else ExitCode.OK
    return ExitCode.OK if stopped and phase is not Phase.FAILED else _print_cause(end)


def _print_cause(end: _End) -> int:
    """Why the run ended without being complete."""
    executor, status = end.executor, end.executor.cycle.status
    if executor.phase is Phase.SUSPENDED and executor.suspended:
        print("Suspended, as `medgr2 suspend` asked", file=sys.stderr)
        return ExitCode.OK
    if executor.phase is Phase.FAILED:
        for stage in status.stages:
            if stage.state is AttemptState.FAILED:
                attempt = paths.attempt_name(stage.iteration, stage.name, stage.token, stage.attempt)
                log = executor.root / paths.log(executor.cycle.metadata.name, attempt)
                print(f"{stage.name}@{stage.iteration} failed: {stage.reason}: {stage.message}", file=sys.stderr)
                print(f"  log: {log}", file=sys.stderr)
                print(
                    f"  once it is mended: {end.commands.restart(StageKey(stage.iteration, stage.name))}",
                    file=sys.stderr,
                )
        return executor.failure_exit_code or ExitCode.ERROR
    progressing = next((condition for condition in status.conditions if condition.type == "Progressing"), None)
    print(f"{executor.phase}: {progressing.message if progressing else status.summary}", file=sys.stderr)
    if executor.phase is Phase.PAUSED:
        approve = typed("approve", executor.cycle.metadata.name, "-w", end.workspace)
        print(f"look at the results, then let it go on: {approve}", file=sys.stderr)
    return ExitCode.OK
