"""What a person sees of a run."""

from __future__ import annotations

import io
from types import SimpleNamespace

import pytest
from rich.console import Console
from tests.support.cycle_documents import tiny_cycle

from medgr2_api.cycle import Cycle
from medgr2_api.stage_contract import Progress
from medgr2_api.status import AttemptState, CycleStatus, Phase, StageStatus
from medgr2_operator.local import terminal_ui
from medgr2_operator.plan.types import Event


def running(step: int) -> Cycle:
    stages = [
        StageStatus(iteration=0, name="prepare", state=AttemptState.SUCCEEDED, reused=True),
        StageStatus(
            iteration=1,
            name="sft",
            state=AttemptState.RUNNING,
            progress=Progress(phase="train", step=step, total=40, eta_seconds=75, metrics={"loss": 0.51239}),
        ),
    ]
    status = CycleStatus(phase=Phase.RUNNING, iteration=1, stages=stages)
    return Cycle.model_validate(tiny_cycle()).model_copy(update={"status": status})


def console() -> tuple[Console, io.StringIO]:
    written = io.StringIO()
    return Console(file=written, width=120), written


def test_plain_lines_say_what_happens_and_now_and_then_how_far_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(terminal_ui, "time", SimpleNamespace(monotonic=lambda: now[0]))
    shown, written = console()
    plain = terminal_ui.PlainView(shown)
    plain.on_event("loop", Event("Warning", "Failed", "sft@1: [row 7] is empty"))
    plain.on_notice("stopping")
    for step in range(30):
        now[0] += 1
        plain.on_plan(running(step))
    assert written.getvalue().splitlines() == [
        "0:00  Failed: sft@1: [row 7] is empty",
        "0:00  stopping",
        "0:11  sft@1 train 10/40  loss 0.512",
        "0:21  sft@1 train 20/40  loss 0.512",
    ]


def test_the_live_picture_shows_every_stage_and_what_runs() -> None:
    shown, written = console()
    shown.print(terminal_ui.render(running(12), 61))
    text = written.getvalue()
    for part in ("loop", "Running", "1:01", "✔ prepare (reused)", "▶ sft"):
        assert part in text
    for part in ("sft@1", "12/40", "ETA 1:15", "train", "loss 0.512"):
        assert part in text


def named(name: str, step: int) -> Cycle:
    cycle = running(step)
    return cycle.model_copy(update={"metadata": cycle.metadata.model_copy(update={"name": name})})


def test_lines_of_several_cycles_say_whose_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(terminal_ui, "time", SimpleNamespace(monotonic=lambda: now[0]))
    shown, written = console()
    plain = terminal_ui.PlainView(shown, several=True)
    plain.on_event("one", Event("Normal", "Started", "sft@1: attempt 1 is running"))
    plain.on_notice("stopping")
    for step in (1, 2, 3):
        plain.on_plan(named("one", step))
        plain.on_plan(named("two", 10 * step))
        now[0] += 6
    assert written.getvalue().splitlines() == [
        "0:00  one  Started: sft@1: attempt 1 is running",
        "0:00  stopping",
        "0:12  one  sft@1 train 3/40  loss 0.512",
        "0:12  two  sft@1 train 30/40  loss 0.512",
    ]


def test_the_live_picture_shows_every_cycle() -> None:
    shown, written = console()
    live = terminal_ui.LiveView(shown)
    live.on_plan(named("one", 1))
    live.on_plan(named("two", 2))
    live.on_plan(named("one", 3))
    shown.print(live._render())
    text = written.getvalue()
    assert text.index("one") < text.index("3/40") < text.index("two") < text.index("2/40")
    assert "1/40" not in text
