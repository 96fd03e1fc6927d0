"""The planner against random schedules: crashes, lost Jobs, lagging caches, edits, restarts, clocks that jump.

What must hold is checked after every single action (see `invariants`): nothing is created twice, no two
writers of one stage, no stage before its inputs, ends are for ever, results are stored before Jobs are deleted, every
run ends, the status stays small, and planning is pure.

`make bench NAME=schedules` runs ten times as many. Which mutations of the planner they notice is in test_mutations.py.
"""

from __future__ import annotations

import pytest
from tests.support.event_schedules import SEEDS, run_schedule
from tests.support.searched_schedules import explore


@pytest.mark.parametrize("first", range(0, SEEDS, 100))
def test_seeded_schedules(first: int) -> None:
    for seed in range(first, first + 100):
        run_schedule(seed)


def test_schedules_found_by_hypothesis() -> None:
    explore(100)
