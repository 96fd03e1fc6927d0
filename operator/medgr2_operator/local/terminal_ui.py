"""Shows a run: a live view on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from datetime import UTC, datetime

from rich.console import Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from medgr2_api.cycle import Cycle
from medgr2_api.metrics import MACRO_ACCURACY
from medgr2_api.percent import percent
from medgr2_api.printable import one_line
from medgr2_api.stages import stage_names
from medgr2_api.status import AttemptState, Phase, StageStatus

from ..plan.types import Event
from .console import Console
from .executor import RunObserver

_MARKS: dict[AttemptState, tuple[str, str]] = {
    AttemptState.SUCCEEDED: ("✔", "green"),
    AttemptState.RUNNING: ("▶", "cyan"),
    AttemptState.AWAITING_APPROVAL: ("?", "magenta"),
    AttemptState.PENDING: ("·", "dim"),
    AttemptState.TERMINATING: ("◼", "yellow"),
    AttemptState.FAILED: ("✘", "red"),
    AttemptState.GONE: ("↻", "yellow"),
}
_PLAIN_INTERVAL = 10.0  # seconds between progress lines of one stage


def make_view(plain: bool, cycles: int = 1) -> PlainView | LiveView:
    """A live view when stdout is a terminal and `plain` is false."""
    console = Console()
    return LiveView(console) if console.is_terminal and not plain else PlainView(console, several=cycles > 1)


class PlainView(RunObserver):
    """One line per transition, and now and then one for progress; of several cycles, each with its cycle's name."""

    def __init__(self, console: Console, *, several: bool = False) -> None:
        self.console = console
        self._several = several
        self._started = time.monotonic()
        self._last: dict[tuple[str, str, int], float] = {}

    def __enter__(self) -> PlainView:
        return self

    def __exit__(self, *_: object) -> None:
        return

    def on_event(self, cycle: str, event: Event) -> None:
        self._line(f"{event.reason}: {event.message}" if event.message else event.reason, cycle)

    def on_notice(self, text: str) -> None:
        self._line(text)

    def on_plan(self, cycle: Cycle) -> None:
        for stage in cycle.status.stages:
            progress = stage.progress
            if stage.state is not AttemptState.RUNNING or progress is None or not progress.total:
                continue
            key = (cycle.metadata.name, stage.name, stage.iteration)
            now = time.monotonic()
            if now - self._last.setdefault(key, now) >= _PLAIN_INTERVAL:
                self._last[key] = now
                done = f"{progress.phase} {progress.step}/{progress.total}{_metrics(stage)}"
                self._line(f"{stage.name}@{stage.iteration} {done}", cycle.metadata.name)

    def _line(self, text: str, cycle: str = "") -> None:
        elapsed = time.monotonic() - self._started
        whose = f"{cycle}  " if self._several and cycle else ""
        self.console.print(f"{_clock(elapsed)}  {whose}{one_line(text)}", highlight=False, markup=False, soft_wrap=True)
        sys.stdout.flush()


class LiveView(RunObserver):
    """Of each cycle: the graph by iteration, bars for what runs, the score so far."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._cycles: dict[str, Cycle] = {}
        self._started = time.monotonic()
        self._live = Live(
            console=console, get_renderable=self._render, refresh_per_second=4, transient=False, redirect_stderr=False
        )

    def __enter__(self) -> LiveView:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def on_event(self, cycle: str, event: Event) -> None:
        if event.type == "Warning":
            self._live.console.print(Text(f"{cycle}: {event.reason}: {event.message}", style="yellow"))

    def on_notice(self, text: str) -> None:
        self._live.console.print(Text(text, style="dim"))

    def on_plan(self, cycle: Cycle) -> None:
        self._cycles[cycle.metadata.name] = cycle

    def _render(self) -> RenderableType:
        if not self._cycles:
            return Text("starting …", style="dim")
        return Group(*(render(cycle, time.monotonic() - self._started) for cycle in self._cycles.values()))


def render(cycle: Cycle, elapsed: float) -> RenderableType:
    """A cycle as a rich renderable."""
    status = cycle.status
    style = {Phase.COMPLETE: "bold green", Phase.FAILED: "bold red"}.get(status.phase, "bold cyan")
    head = Text.assemble(
        (cycle.metadata.name, "bold"), "  ", (str(status.phase), style), "  ", status.summary,
        ("  " + _clock(elapsed), "dim"),
    )  # fmt: skip
    return Group(head, _graph(cycle), _running(status.stages))


def _graph(cycle: Cycle) -> Table:
    """One row per iteration, one mark per stage."""
    table = Table.grid(padding=(0, 2))
    by_key = {(stage.iteration, stage.name): stage for stage in cycle.status.stages}
    for iteration in range(cycle.spec.iterations + 1):
        cells = Text()
        for name in stage_names():
            stage = by_key.get((iteration, name))
            if stage is None:
                continue
            mark, style = _MARKS[stage.state]
            cells.append(f"{mark} {name}", style=style)
            notes = ["reused"] * stage.reused + ["does not go on"] * (stage.promoted is False)
            cells.append(f" ({', '.join(notes)})   " if notes else "   ", style="dim")
        scores = ", ".join(
            f"{score.checkpoint} {percent(value)}"
            for score in cycle.status.scores
            if score.iteration == iteration and (value := score.value(MACRO_ACCURACY.name)) is not None
        )
        if cells or iteration <= cycle.status.iteration:
            label = "start" if iteration == 0 else f"round {iteration}"
            table.add_row(
                Text(label, style="bold"),
                cells,
                Text(f"validation macro accuracy, %: {scores}" if scores else "", "magenta"),
            )
    return table


def _running(stages: list[StageStatus]) -> Table:
    """A bar for each running stage."""
    table = Table.grid(padding=(0, 1))
    for stage in stages:
        if stage.state not in (AttemptState.RUNNING, AttemptState.TERMINATING):
            continue
        progress = stage.progress
        total = progress.total if progress else 0
        bar = ProgressBar(total=total or 1, completed=progress.step if progress else 0, width=28, pulse=not total)
        seconds = (datetime.now(UTC) - stage.start_time).total_seconds() if stage.start_time else 0.0
        eta = f"ETA {_clock(progress.eta_seconds)}" if progress and progress.eta_seconds is not None else ""
        phase = progress.phase if progress else "starting"
        table.add_row(
            Text(f"{stage.name}@{stage.iteration}", style="cyan"),
            bar,
            Text(f"{progress.step}/{total}" if progress and total else "", justify="right"),
            Text(_clock(seconds), style="dim"),
            Text(eta, style="dim"),
            Text(phase + _metrics(stage)),
        )
    return table


def _metrics(stage: StageStatus) -> str:
    if stage.progress is None or not stage.progress.metrics:
        return ""
    return "  " + "  ".join(f"{key} {value:.3g}" for key, value in stage.progress.metrics.items())


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(max(0.0, seconds)), 60)
    return f"{minutes:d}:{rest:02d}"
