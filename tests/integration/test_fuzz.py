"""A short run of `make bench NAME=fuzz`: nothing that reads what others wrote ends in a traceback, or dies."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
from bench.fuzz import fuzz

from tests.support.fuzz_target import Case, Target
from tests.support.fuzz_targets import TARGETS

#: Of all targets together; the bench has 50,000.
CASES = 1500
#: Resident memory of a target's process, or of one that it started, at most.
MOST_MIB = 700


def _raises(_: Path) -> Case:
    def case(rng: random.Random) -> str:
        return "even" if rng.random() < 0.5 else str({}["nothing"])

    return case


def _dies(_: Path) -> Case:
    numbers = iter(range(100))

    def case(_: random.Random) -> str:
        if next(numbers) == 2:
            os.abort()
        return "alive"

    return case


RAISES = Target("raises", 1.0, _raises)
DIES = Target("dies", 1.0, _dies)


@pytest.mark.parametrize("name", list(TARGETS))
def test_damage_is_refused_or_read(name: str) -> None:
    outcome = fuzz(name, seed=18, cases=round(CASES * TARGETS[name].share), seconds=300)
    assert not outcome.faults, outcome.faults[0]
    assert outcome.cases == round(CASES * TARGETS[name].share)
    assert len(outcome.ended) > 1, "the damage must show in some cases, and in others not"
    assert outcome.peak_mib < MOST_MIB


def test_a_traceback_is_counted_with_its_case() -> None:
    outcome = fuzz(f"{__name__}:RAISES", seed=1, cases=20, seconds=60)
    assert outcome.cases == 20
    assert outcome.ended["traceback"] == len(outcome.faults) > 0
    assert outcome.ended["even"] > 0
    assert "KeyError: 'nothing'" in outcome.faults[0]


def test_a_death_is_counted_and_the_next_case_goes_on() -> None:
    outcome = fuzz(f"{__name__}:DIES", seed=1, cases=8, seconds=60)
    assert outcome.ended == {"alive": 6, "death": 2}
    assert [fault.partition("\n")[0] for fault in outcome.faults] == [
        f"{__name__}:DIES, case {number}: died of SIGABRT" for number in (2, 5)
    ]
