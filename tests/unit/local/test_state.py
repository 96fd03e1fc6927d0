"""The stored state of a local run, and what may change between two runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.support.cycle_documents import tiny_cycle

from medgr2_api.cycle import Cycle
from medgr2_api.status import CycleStatus, Phase
from medgr2_operator.local.state import StateError, StateFile, merge


def cycle(**spec: Any) -> Cycle:
    return Cycle.model_validate(tiny_cycle(**spec))


def stored(root: Path) -> Cycle:
    first = merge(cycle(), None)
    first = first.model_copy(update={"status": CycleStatus(phase=Phase.RUNNING)})
    StateFile(root, "loop").save(first)
    loaded = StateFile(root, "loop").load()
    assert loaded == first
    return loaded


def test_the_status_stays_and_the_generation_counts_changes(tmp_path: Path) -> None:
    before = stored(tmp_path)
    same, changed = merge(cycle(), before), merge(cycle(iterations=3), before)
    assert same.status == changed.status == before.status
    assert same.metadata.uid == changed.metadata.uid == before.metadata.uid != ""
    assert [merged.metadata.generation for merged in (before, same, changed)] == [1, 1, 2]
    assert changed.spec.iterations == 3


def test_what_may_not_change(tmp_path: Path) -> None:
    before = merge(cycle(iterations=2), stored(tmp_path))
    with pytest.raises(StateError, match="iterations may only grow"):
        merge(cycle(), before)
    elsewhere = {"persistentVolumeClaim": {"claimName": "y"}}
    with pytest.raises(StateError, match=r"spec\.workspace: is immutable"):
        merge(cycle(iterations=2, workspace=elsewhere), before)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"apiVersion": "medgr2.io/v2"}'])
def test_a_state_that_cannot_be_read_is_named_and_kept(tmp_path: Path, text: str) -> None:
    stored(tmp_path)
    path = tmp_path / "cycles" / "loop" / "state.json"
    path.write_text(text)
    with pytest.raises(StateError, match=r"state\.json: not a state of this version .* move the file away"):
        StateFile(tmp_path, "loop").load()
    assert path.read_text() == text
