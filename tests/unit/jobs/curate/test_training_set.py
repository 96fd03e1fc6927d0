"""D_gen as a join: the seed first, then what each iteration kept, with its options as they were dealt."""

from __future__ import annotations

from dataclasses import replace
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
from tests.support import jobs_fixtures
from tests.support.curate_fixtures import CurateWorkspace, candidate, triplet
from tests.support.jobs_fixtures import Artifacts
from tests.support.rows import row_of

from medgr2_api.stage_contract import ArtifactRef
from medgr2_api.training_spec import AnswerFormat
from medgr2_jobs.curate.option_shuffle import option_order
from medgr2_jobs.curate.training_set import Origin, TrainingRow, capped, training_set
from medgr2_jobs.errors import ConfigError, CorruptArtifact
from medgr2_jobs.store.rows import Split
from medgr2_jobs.store.rows.candidates import AnswerPosterior, Candidate, Decision, Triplet
from medgr2_jobs.store.rows.prepared import Item

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


CURATION = {"selection": {"strategy": "Threshold", "threshold": 2}}


def found(name: str, answer_index: int | None, *, claim: int = 0, agreed: bool = True) -> AnswerPosterior:
    posterior = [0.9 * (place == answer_index) + 0.025 for place in range(4)]
    return row_of(
        AnswerPosterior, triplet_id=name, posterior=posterior, answer_index=answer_index, claim=claim, agreed=agreed,
        rationale="" if answer_index is None else "Now I see.",
    )  # fmt: skip


def corrected(made: CurateWorkspace, *, deals: bool = False) -> dict[str, TrainingRow]:
    """D_gen by row id, without the seed: of kept and rejected candidates each way."""
    kept = ["right", "wrong", "unsettled", "not-asked"]
    rejected = [
        "rescued",
        "rescued-as-claimed",
        "lost",
        "not-asked-either",
        "contaminated",
        "vetoed",
        "answered",
        "both",
    ]
    reasons = {
        "contaminated": ("benchmark_text", "below_threshold"), "vetoed": ("below_threshold", "vetoed"),
        "answered": ("wrong_answer",), "both": ("below_threshold", "wrong_answer"),
    }  # fmt: skip
    decisions = [Decision(name, True, (), (2, 0, 1, 3) if deals else None) for name in kept]
    decisions += [Decision(name, False, reasons.get(name, ("below_threshold",)), None) for name in rejected]
    posteriors = [
        found("right", 0), found("wrong", 2), found("unsettled", None), found("rescued", 1, agreed=False),
        found("rescued-as-claimed", 0), found("lost", None), found("contaminated", 1), found("vetoed", 0),
        found("answered", 3), found("both", 3),
    ]  # fmt: skip
    candidates = [candidate(name, image) for name, image in zip([*kept, *rejected], cycle(made.free), strict=False)]
    parameters = {"seed": 5, "curation": {**CURATION, "rejectGuessable": deals}, "answerFormat": LETTER}
    refs = {
        "prepare": made.prepare,
        "generate-1": publish(made, "generate", 1, {Candidate: candidates}),
        "curate-1": publish(made, "curate", 1, {Decision: decisions}, parameters=parameters),
        "relabel-1": publish(made, "relabel", 1, {AnswerPosterior: posteriors}),
    }
    rows = training_set(Artifacts(made.root, refs), 1, LETTER)
    return {row.row_id: row for row in rows if row.origin is not Origin.SEED}


def test_what_is_settled_corrects_the_kept_and_rescues_what_the_score_alone_rejected(made: CurateWorkspace) -> None:
    rows = corrected(made)
    assert {name: row.origin for name, row in rows.items()} == {
        "right": Origin.GENERATED,
        "wrong": Origin.CORRECTED,
        "not-asked": Origin.GENERATED,
        "rescued": Origin.RESCUED,
        "rescued-as-claimed": Origin.RESCUED,
        "answered": Origin.CORRECTED,
        "both": Origin.RESCUED,
    }, "never what is contaminated or vetoed, and not what nobody is sure of"
    assert rows["right"].response == "<think>It looks like it.</think><answer>A</answer>"
    assert rows["wrong"].response == "<think>Now I see.</think><answer>C</answer>"
    assert (rows["wrong"].answer_index, rows["wrong"].posterior) == (2, pytest.approx(0.925))
    assert rows["rescued-as-claimed"].response == "<think>Now I see.</think><answer>A</answer>"
    assert rows["not-asked"].posterior is None
    assert {name for name, row in rows.items() if not row.trusted} == {"rescued"}, "no second source"


def test_what_is_rescued_fills_no_group_beyond_its_share(made: CurateWorkspace) -> None:
    """Of six findings and two counts three findings make 0.6: what was kept first, then the likelier."""
    names = {"kept": 0.81, "kept-too": 0.82, "rescued": 0.95, "likelier": 0.99, "likely": 0.96, "tied": 0.95}
    kinds = dict.fromkeys(names, "finding") | {"one": "count", "two": "count"}
    candidates = [
        replace(candidate(name, image), question_type=kinds[name])
        for name, image in zip(kinds, made.free, strict=False)
    ]
    keep = ("kept", "kept-too")
    decisions = [Decision(name, name in keep, () if name in keep else ("below_threshold",), None) for name in kinds]
    posteriors = [
        replace(found(name, 1), posterior=(0.0, names.get(name, 0.9), 0.0, 1 - names.get(name, 0.9))) for name in kinds
    ]

    def rows(balance: dict[str, Any] | None) -> list[str]:
        parameters = {"seed": 5, "curation": {**CURATION, "balance": balance}, "answerFormat": LETTER}
        refs = {
            "prepare": made.prepare,
            "generate-1": publish(made, "generate", 1, {Candidate: candidates}),
            "curate-1": publish(made, "curate", 1, {Decision: decisions}, parameters=parameters),
            "relabel-1": publish(made, "relabel", 1, {AnswerPosterior: posteriors}),
        }
        inputs = Artifacts(made.root, refs)
        there = [row.row_id for row in training_set(inputs, 1, LETTER) if row.origin is not Origin.SEED]
        assert sorted({*kinds} - {*there}) == sorted(capped(inputs, 1)), "lineage and report say the same"
        return there

    assert rows(None) == [*kinds]
    assert rows({"by": ["questionType"], "maxShare": 0.6}) == ["kept", "kept-too", "likelier", "one", "two"]
    assert rows({"by": ["questionType"], "maxShare": 0.8}) == [*kinds]
    assert rows({"by": ["modality"], "maxShare": 0.1}) == [*kinds], "one group is no group too large"


def test_options_of_what_is_settled_are_dealt_where_curation_deals_them(made: CurateWorkspace) -> None:
    rows = corrected(made, deals=True)
    plain = corrected(made)
    assert rows["right"].options == ("OCT", "CT", "MRI", "Fundus"), "as curation dealt them"
    for name in ("wrong", "rescued"):
        index, options = rows[name].answer_index, rows[name].options
        assert options[index] == plain[name].options[plain[name].answer_index]
        assert rows[name].response == f"<think>Now I see.</think><answer>{'ABCD'[index]}</answer>"
    settled: Triplet = triplet(
        "rescued", made.free[0], answer_index=1, response="<think>It looks like it.</think><answer>B</answer>"
    )
    order = option_order(settled, LETTER, 5)
    assert order is not None
    assert rows["rescued"].options == tuple(settled.options[place] for place in order)
    assert {rows[name].options for name in ("wrong", "rescued", "rescued-as-claimed")} != {settled.options}


def publish(
    made: CurateWorkspace, stage: str, iteration: int, tables: jobs_fixtures.Tables, **fields: Any
) -> ArtifactRef:
    return jobs_fixtures.publish(made.root, stage, tables, iteration=iteration, **fields)
