"""Random schedules from seeds; with those that Hypothesis looks for, in test_schedules.py, they are over 10,000.

Two files, for the tests of one file run one after the other.
"""

from __future__ import annotations

import pytest
from tests.support.event_schedules import run_schedule


@pytest.mark.parametrize("block", range(3))
def test_seeded_schedules(block: int) -> None:
    for seed in range(block * 100, (block + 1) * 100):
        run_schedule(seed)


@pytest.mark.slow
@pytest.mark.parametrize("block", range(9))
def test_thousands_of_seeded_schedules(block: int) -> None:
    for seed in range(1000 + block * 1000, 2000 + block * 1000):
        run_schedule(seed)
