"""The status of a cycle that cannot be run as it is written."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from tests.support.simulator_helpers import finish, make_simulator, reconcile, run, until

from medgr2_api.status import CycleStatus, Phase
from medgr2_api.waiting import WaitingReason
from medgr2_operator.runtime.rejection import rejected

NOW = datetime(2026, 1, 1, 1, 0, tzinfo=UTC)


def reject(status: dict[str, Any] | None, generation: int = 3, message: str = "spec.seed: x") -> CycleStatus:
    manifest = {"metadata": {"name": "loop", "generation": generation}, "status": status}
    new = rejected(manifest, message, NOW)
    assert new is not None
    assert rejected({**manifest, "status": new}, message, NOW + timedelta(hours=1)) is None, "it is written once"
    return CycleStatus.model_validate(new)


def true(status: CycleStatus) -> set[str]:
    return {condition.type for condition in status.conditions if condition.status == "True"}


def test_one_that_was_never_run_has_a_phase_and_is_stalled() -> None:
    for before in (None, {}):
        status = reject(before)
        assert (status.phase, status.observed_generation, true(status)) == (Phase.INVALID, 3, {"Stalled"})
        assert {(c.reason, c.message) for c in status.conditions} == {("InvalidSpec", "spec.seed: x")}
        assert {c.type for c in status.conditions} == {"Progressing", "Ready", "Reconciling", "Stalled"}
        assert status.summary == "invalid: spec.seed: x"


def test_every_condition_is_about_the_spec_that_was_refused() -> None:
    sim = make_simulator()
    run(sim, until(sim, "sft"))
    status = reject(sim.status.dump())
    assert {c.observed_generation for c in status.conditions} == {3}
    assert true(status) == {"WorkspaceReady", "Stalled"}
    assert status.phase is Phase.INVALID
    assert status.stages == sim.status.stages, "what runs goes on"
    assert status.active_since == sim.status.active_since, "and so does its clock"


def test_the_clock_stands_still_while_nothing_runs() -> None:
    sim = make_simulator(pauseBefore=["prepare"])
    before = {**sim.status.dump(), "activeSince": "2026-01-01T00:00:00Z", "activeSeconds": 5.0}
    status = reject(before)
    assert (status.active_since, status.active_seconds) == (None, 3605)


def test_an_end_stays_one() -> None:
    sim = make_simulator()
    finish(sim)
    status = reject(sim.status.dump())
    assert status.phase is Phase.COMPLETE
    assert true(status) == {"WorkspaceReady", "Complete", "Stalled"}


def test_a_mended_spec_takes_all_of_it_back() -> None:
    sim = make_simulator()
    sim.waits_for = WaitingReason.STARTING
    reconcile(sim)
    sim.status = reject(sim.status.dump())
    planned = reconcile(sim)
    assert sim.status.phase is Phase.RUNNING
    assert "Stalled" not in true(sim.status)
    assert [event.message for event in planned.events if event.reason == "Running"] == ["was Invalid"]


def test_what_cannot_be_read_is_kept() -> None:
    """A status of a newer version."""
    newer = {"fieldOfTomorrow": [1], "stages": [{"name": "distil", "iteration": 1, "attempt": 1, "state": "Running"}]}
    new = rejected({"metadata": {"generation": 1}, "status": newer}, "message", NOW)
    assert new is not None
    assert {key: new[key] for key in newer} == newer
