"""Job names."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from medgr2_api.stages import stage_names
from medgr2_operator.plan.scheduling import JOB_NAME_LENGTH, job_name
from medgr2_operator.plan.types import AttemptKey

NAMES = st.from_regex(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?", fullmatch=True)
KEYS = st.builds(
    AttemptKey,
    st.integers(0, 20),
    st.sampled_from(stage_names()),
    st.sampled_from(["", "a", "again-2"]),
    st.integers(1, 10_000),
)


def test_shape() -> None:
    name = job_name("omnimed", "uid", AttemptKey(2, "grpo", "", 1))
    assert re.fullmatch(r"omnimed-i002-grpo-a1-[0-9a-f]{8}", name)


@given(NAMES, KEYS)
def test_is_a_label_that_leaves_room_for_pods(cycle: str, key: AttemptKey) -> None:
    name = job_name(cycle, "uid", key)
    assert len(name) <= JOB_NAME_LENGTH
    assert re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name)
    assert name == job_name(cycle, "uid", key)


@given(NAMES, KEYS, KEYS)
def test_differs_by_attempt(cycle: str, one: AttemptKey, other: AttemptKey) -> None:
    assert (job_name(cycle, "uid", one) == job_name(cycle, "uid", other)) == (one == other)


def test_differs_by_owner_and_by_what_was_cut_off() -> None:
    key = AttemptKey(1, "preferences", "", 1)
    assert job_name("c" * 60, "uid-1", key) != job_name("c" * 61, "uid-2", key)
