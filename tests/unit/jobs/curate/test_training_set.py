"""D_gen as a join: the seed first, then what each iteration kept, with its options as they were dealt."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.support import jobs_fixtures
from tests.support.curate_fixtures import CurateWorkspace, candidate
from tests.support.jobs_fixtures import Artifacts

from medgr2_api.stage_contract import ArtifactRef
from medgr2_api.training_spec import AnswerFormat
from medgr2_jobs.curate.training_set import Origin, TrainingRow, training_set
from medgr2_jobs.errors import ConfigError, CorruptArtifact
from medgr2_jobs.store.rows import Candidate, Decision, Item, Split

LETTER = AnswerFormat.LETTER


@pytest.fixture
def made(tmp_path: Path) -> CurateWorkspace:
    return CurateWorkspace(tmp_path)


def seed_row(item: Item) -> TrainingRow:
    response = f"<think>{item.rationale}</think><answer>{'ABCD'[item.answer_index]}</answer>"
    return TrainingRow(
        item.item_id, Origin.SEED, 0, item.image_sha256, item.modality, item.question_type, item.question, item.options,
        item.answer_index, response,
    )  # fmt: skip


def kept_row(row: Candidate, options: tuple[str, ...], answer_index: int, response: str) -> TrainingRow:
    assert row.question is not None
    return TrainingRow(
        row.triplet_id, Origin.GENERATED, row.iteration, row.image_sha256, row.modality, row.question_type,
        row.question, options, answer_index, response, row.generator,
    )  # fmt: skip


def test_the_seed_then_what_each_iteration_kept_in_the_order_of_its_candidates(made: CurateWorkspace) -> None:
    first = [candidate("b", made.free[0]), candidate("dropped", made.free[1]), candidate("a", made.free[2])]
    second = [candidate("c", made.free[3], iteration=2), candidate("broken", made.free[4], outcome="schema")]
    decided = {
        1: [Decision("a", True, (), (2, 0, 1, 3)), Decision("dropped", False, ("balance",), None),
            Decision("b", True, (), None)],
        2: [Decision("c", True, (), (0, 1, 2, 3)), Decision("broken", False, ("outcome:schema",), None)],
    }  # fmt: skip
    refs = {"prepare": made.prepare}
    for t, candidates in ((1, first), (2, second)):
        refs[f"generate-{t}"] = publish(made, "generate", t, {Candidate: candidates})
        refs[f"curate-{t}"] = publish(made, "curate", t, {Decision: decided[t]})
    seed = [seed_row(item) for item in made.seed]
    assert [item.split for item in made.prepared.items] != [Split.TRAIN] * len(seed)
    usual = "<think>It looks like it.</think><answer>{}</answer>"
    rows = [
        *seed,
        kept_row(first[0], ("CT", "MRI", "OCT", "Fundus"), 0, usual.format("A")),
        kept_row(first[2], ("OCT", "CT", "MRI", "Fundus"), 1, usual.format("B")),
        kept_row(second[0], ("CT", "MRI", "OCT", "Fundus"), 0, usual.format("A")),
    ]
    artifacts = Artifacts(made.root, refs)
    assert training_set(artifacts, 2, LETTER) == rows
    assert training_set(artifacts, 1, LETTER) == rows[:-1]
    assert training_set(artifacts, 0, LETTER) == seed
    in_words = training_set(artifacts, 1, AnswerFormat.OPTION_TEXT)
    assert in_words[-1].response == usual.format("CT"), "dealt anew: written in the format that is asked for"
    assert in_words[-2].response == usual.format("A"), "as the generator gave it"


def test_what_is_missing_is_said(made: CurateWorkspace) -> None:
    refs = {
        "prepare": made.prepare,
        "curate-1": publish(made, "curate", 1, {Decision: [Decision("gone", True, (), None)]}),
    }
    with pytest.raises(ConfigError, match="generate-1"):
        training_set(Artifacts(made.root, refs), 1, LETTER)
    broken = [candidate("gone", made.free[0], outcome="schema")]
    refs["generate-1"] = publish(made, "generate", 1, {Candidate: broken})
    with pytest.raises(CorruptArtifact, match="'gone', which is no usable candidate of generate@1"):
        training_set(Artifacts(made.root, refs), 1, LETTER)
    del refs["generate-1"]
    refs["curate-1"] = publish(made, "curate", 1, {Decision: []})
    assert len(training_set(Artifacts(made.root, refs), 1, LETTER)) == 6, "stage generate is off"
    with pytest.raises(ConfigError, match="curate-2"):
        training_set(Artifacts(made.root, refs), 2, LETTER)


def publish(made: CurateWorkspace, stage: str, iteration: int, tables: jobs_fixtures.Tables) -> ArtifactRef:
    return jobs_fixtures.publish(made.root, stage, tables, iteration=iteration)
