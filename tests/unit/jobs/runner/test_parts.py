from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from medgr2_api.stage_contract import CycleRef, StageRequest
from medgr2_jobs.errors import Checkpointed
from medgr2_jobs.runner import parts
from medgr2_jobs.runner.context import StageContext
from medgr2_jobs.runner.parts import Parts

UNITS = [f"unit {index}" for index in range(40)]


class Clock:
    """Time that passes only where the work says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(parts.time, "monotonic", made.monotonic)
    return made


class Work:
    """Takes its time, and notes which units it was given together."""

    def __init__(self, clock: Clock, seconds: float) -> None:
        self.clock, self.seconds = clock, seconds
        self.calls: list[list[int]] = []

    def __call__(self, units: Sequence[str], first: int) -> list[Any]:
        self.calls.append(list(range(first, first + len(units))))
        self.clock.now += self.seconds * len(units)
        return [{"said": f"{unit}!", "at": first + index} for index, unit in enumerate(units)]


def context(root: Path) -> StageContext[Any]:
    request = StageRequest(
        cycle=CycleRef(name="c", uid="u"), iteration=1, stage="preferences", input_hash="a" * 64, parameters={}
    )
    made: StageContext[Any] = StageContext(request, None, root)
    made.writer.open()
    return made


def sizes(work: Work) -> list[int]:
    return [len(call) for call in work.calls]


def test_a_part_takes_about_as_long_as_it_should(tmp_path: Path, clock: Clock) -> None:
    work = Work(clock, 10.0)
    made = Parts(context(tmp_path)).make("w", UNITS, work)
    assert sizes(work)[:4] == [1, 4, 9, 9], "9 units of 10 seconds; the first ones find out"
    assert [row["at"] for row in made] == list(range(40))

    slow = Work(clock, 100.0)
    Parts(context(tmp_path / "slow")).make("w", UNITS, slow)
    assert set(sizes(slow)) == {1}, "no unit is divided"


@pytest.mark.parametrize("seconds", [0.0, 7.0, 1000.0])
def test_whatever_the_parts_were_the_same_comes_out(tmp_path: Path, clock: Clock, seconds: float) -> None:
    """Stopped again and again, at another rate each time, and so with other parts."""
    straight = Parts(context(tmp_path / "straight")).make("w", UNITS, Work(clock, 1.0))
    ctx = context(tmp_path / "stopped")
    calls: list[list[int]] = []
    for attempt in range(3):
        work = Work(clock, seconds / (attempt + 1))

        def stopping(units: Sequence[str], first: int, work: Work = work) -> list[Any]:
            if len(work.calls) == 1:
                ctx.stop.set()
            return work(units, first)

        with pytest.raises(Checkpointed) as stopped:
            Parts(ctx).make("w", UNITS, stopping)
        ctx.stop.clear()
        calls += work.calls
        assert stopped.value.step == sum(map(len, calls)), "all that is finished counts"
    last = Work(clock, seconds)
    assert Parts(ctx).make("w", UNITS, last) == straight
    done = [index for call in (*calls, *last.calls) for index in call]
    assert sorted(done) == list(range(40)), "nothing is done twice, nothing is left out"


def test_a_damaged_part_is_done_again(tmp_path: Path, clock: Clock) -> None:
    ctx = context(tmp_path)
    straight = Parts(ctx).make("w", UNITS, Work(clock, 10.0))
    (ctx.work / "w-000005.json").write_text('[{"said": "uni')
    again = Work(clock, 100.0)
    assert Parts(ctx).make("w", UNITS, again) == straight
    assert again.calls == [[5], [6], [7], [8], [9], [10], [11], [12], [13]]
    assert Parts(ctx).make("other", UNITS[:1], again) == [{"said": "unit 0!", "at": 0}], "each work has its own"


def test_a_stage_s_works_count_together(tmp_path: Path, clock: Clock) -> None:
    """What is told as safe must not fall back from one work to the next: less would count as no progress."""
    ctx = context(tmp_path)
    finished = Parts(ctx)
    finished.make("first", UNITS[:3], Work(clock, 1.0))
    ctx.stop.set()
    with pytest.raises(Checkpointed) as stopped:
        finished.make("second", UNITS, Work(clock, 1.0))
    assert stopped.value.step == 3
