"""Random schedules from seeds, many of them; those that Hypothesis looks for are in test_schedules.py.

Two files, for the tests of one file run one after the other.
"""

from __future__ import annotations

import pytest
from tests.unit.plan.schedule import run_schedule


@pytest.mark.parametrize("block", range(3))
def test_seeded_schedules(block: int) -> None:
    for seed in range(block * 100, (block + 1) * 100):
        run_schedule(seed)


@pytest.mark.slow
@pytest.mark.parametrize("block", range(10))
def test_ten_thousand_seeded_schedules(block: int) -> None:
    for seed in range(1000 + block * 1000, 2000 + block * 1000):
        run_schedule(seed)
