"""The planner against random schedules: crashes, lost Jobs, lagging caches, edits, restarts, clocks that jump.

What must hold is checked after every single action (see `invariants`): nothing is created twice, no two
writers of one stage, no stage before its inputs, ends are for ever, results are stored before Jobs are deleted, every
run ends, the status stays small, and planning is pure.
"""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test
from tests.support.cycle_specs import SPECS, spec_of
from tests.support.event_schedules import settle
from tests.support.planner_simulator import PlannerSimulator
from tests.support.simulator_events import ACTIONS, BY_NAME

NUMBERS = st.integers(0, 255)
MOVES = st.sampled_from([move.__name__ for move, weight in ACTIONS.items() for _ in range(weight)])


class Schedules(RuleBasedStateMachine):
    """Hypothesis chooses the moves, and shrinks a schedule that breaks something."""

    @initialize(number=st.integers(0, len(SPECS) - 1))
    def start(self, number: int) -> None:
        self.simulator = PlannerSimulator(spec_of(number))

    @rule(name=MOVES, a=NUMBERS, b=NUMBERS)
    def move(self, name: str, a: int, b: int) -> None:
        BY_NAME[name](self.simulator, a, b)

    def teardown(self) -> None:
        if hasattr(self, "simulator"):
            settle(self.simulator)


def _explore(examples: int) -> None:
    run_state_machine_as_test(
        Schedules,
        settings=settings(
            max_examples=examples,
            stateful_step_count=60,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_schedules_found_by_hypothesis() -> None:
    _explore(60)


@pytest.mark.slow
def test_many_schedules_found_by_hypothesis() -> None:
    _explore(1000)
