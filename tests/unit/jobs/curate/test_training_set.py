"""D_gen as a join: the seed first, then what each iteration kept, with its options as they were dealt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.support import jobs_fixtures
from tests.support.curate_fixtures import CurateWorkspace, candidate

from medgr2_api.cycle import AnswerFormat
from medgr2_api.stage_contract import ArtifactRef
from medgr2_jobs.curate.training_set import Origin, training_set
from medgr2_jobs.errors import ConfigError, CorruptArtifact
from medgr2_jobs.store.artifact import ArtifactReader
from medgr2_jobs.store.rows import Decision

LETTER = AnswerFormat.LETTER


class Artifacts:
    """Published artifacts by role."""

    def __init__(self, root: Path, refs: dict[str, ArtifactRef]) -> None:
        self.readers = {role: ArtifactReader(root, ref) for role, ref in refs.items()}

    def has_input(self, role: str) -> bool:
        return role in self.readers

    def input(self, role: str) -> ArtifactReader:
        if role not in self.readers:
            raise ConfigError(role)
        return self.readers[role]


@pytest.fixture
def made(tmp_path: Path) -> CurateWorkspace:
    return CurateWorkspace(tmp_path)


def order_of(training: dict[str, Any], asked: dict[str, Any]) -> tuple[int, ...] | None:
    """Which of the candidate's options each of the training row's is; None when nothing was dealt."""
    if training["response"] == asked["response"] and training["options"] == asked["options"]:
        return None
    return tuple(asked["options"].index(option) for option in training["options"])


def test_it_equals_the_training_table(made: CurateWorkspace) -> None:
    refs, previous, table = {"prepare": made.prepare}, None, []
    for t in (1, 2):
        asked = [
            candidate(f"t{t}-{n}", image, f"What is shown in round {t}?", iteration=t)
            for n, image in enumerate(made.free)
        ]
        asked[3] |= {"question": "Is it option B?"}
        asked[4] |= {"response": "It is CT."}
        asked[5] |= {"outcome": "schema", "question": None, "options": None, "answer_index": None, "response": None}
        code, found = made.curate(
            asked, dict.fromkeys([row["triplet_id"] for row in asked], 9.0), iteration=t, previous=previous,
            selection={"strategy": "Threshold", "threshold": 3.0}, rejectGuessable=True,
        )  # fmt: skip
        assert code == 0
        previous, table = jobs_fixtures.ref(made.root, made.asked), found.rows("training")
        kept = {row["row_id"]: row for row in table}
        decisions = [
            Decision(name, name in kept, (), order_of(kept[name], row) if name in kept else None)
            for row in asked
            for name in [row["triplet_id"]]
        ]
        assert any(row.option_order for row in decisions)
        refs[f"generate-{t}"] = jobs_fixtures.publish(made.root, "generate", {"candidates": asked}, iteration=t)
        refs[f"curate-{t}"] = jobs_fixtures.publish(made.root, "curate", {Decision: decisions}, iteration=t)
    rows = training_set(Artifacts(made.root, refs), 2, LETTER)
    columns = [name for name in table[0] if name != "score"]
    assert [{name: getattr(row, name) for name in columns} for row in rows] == [
        {name: tuple(row[name]) if name == "options" else row[name] for name in columns} for row in table
    ]
    assert {row.origin for row in rows} == {Origin.SEED, Origin.GENERATED}
    assert {row.iteration for row in rows} == {0, 1, 2}
    assert training_set(Artifacts(made.root, refs), 0, LETTER) == rows[:6]


def test_what_is_missing_is_said(made: CurateWorkspace) -> None:
    decisions = [Decision("gone", True, (), None)]
    refs = {
        "prepare": made.prepare,
        "curate-1": jobs_fixtures.publish(made.root, "curate", {Decision: decisions}, iteration=1),
    }
    with pytest.raises(ConfigError, match="generate-1"):
        training_set(Artifacts(made.root, refs), 1, LETTER)
    refs["generate-1"] = jobs_fixtures.publish(
        made.root, "generate", {"candidates": [candidate("gone", made.free[0], outcome="schema")]}, iteration=1
    )
    with pytest.raises(CorruptArtifact, match="'gone', which is no usable candidate of generate@1"):
        training_set(Artifacts(made.root, refs), 1, LETTER)
    with pytest.raises(ConfigError, match="curate-2"):
        training_set(Artifacts(made.root, {**refs, "curate-1": nothing_kept(made)}), 2, LETTER)


def nothing_kept(made: CurateWorkspace) -> ArtifactRef:
    return jobs_fixtures.publish(made.root, "curate", {Decision: []}, iteration=1)
