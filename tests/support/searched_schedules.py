"""Schedules of moves that Hypothesis chooses; it shrinks one that breaks an invariant."""

from __future__ import annotations

import hypothesis.strategies as st
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


def explore(examples: int) -> None:
    """Has Hypothesis look for a schedule of up to 60 moves that breaks an invariant, always the same ones."""
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
