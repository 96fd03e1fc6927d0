"""Stage curate: every candidate has a decision with all its reasons; D_gen grows; held-out images never pass."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.support.curate_fixtures import CurateWorkspace, candidate, reasons_of

from medgr2_api.training_spec import AnswerFormat
from medgr2_jobs.curate import contamination
from medgr2_jobs.store.rows import Split
from medgr2_jobs.store.rows.candidates import Decision
from medgr2_jobs.store.rows.prepared import Grade
from medgr2_jobs.store.rows.training import CalibrationRow


@pytest.fixture
def made(tmp_path: Path) -> CurateWorkspace:
    return CurateWorkspace(tmp_path)


def threshold(value: float) -> dict[str, Any]:
    return {"selection": {"strategy": "Threshold", "threshold": value}}


ALL = {"selection": {"strategy": "All"}}


def test_every_reason_is_written_down(made: CurateWorkspace) -> None:
    seed = made.seed[0]
    candidates = [
        candidate("kept", made.free[0]),
        candidate("low", made.free[1]),
        candidate("broken", made.free[2], outcome="invalid_json"),
        candidate("double", made.free[0], "  what IS it "),
        candidate("known", seed.image_sha256, seed.question),
        candidate("asked-otherwise", seed.image_sha256, "Something else?"),
        candidate("bench", made.image("test")),
        candidate("valid", made.image("validation")),
        candidate("forgotten", made.free[3]),
        candidate("bench-and-low", made.image("test"), "More?"),
        candidate("broken-bench", made.image("test"), outcome="http_error"),
    ]
    scores = dict.fromkeys([row.triplet_id for row in candidates], 8.0)
    del scores["forgotten"], scores["broken"], scores["broken-bench"]
    scores |= {"low": 3.0, "double": 7.0, "bench-and-low": -1.0}
    code, found = made.curate(candidates, scores, **threshold(3.0))
    assert code == 0
    decisions = found.rows(Decision)
    assert reasons_of(found) == {
        "kept": [],
        "low": ["below_threshold"],
        "broken": ["outcome:invalid_json"],
        "double": ["duplicate"],
        "known": ["overlap"],
        "asked-otherwise": [],
        "bench": ["benchmark_image"],
        "valid": ["validation_image"],
        "forgotten": ["not_scored"],
        "bench-and-low": ["benchmark_image", "below_threshold"],
        "broken-bench": ["outcome:http_error", "benchmark_image"],
    }
    assert [row.triplet_id for row in decisions] == [row.triplet_id for row in candidates]
    assert [row.keep for row in decisions] == [not row.reasons for row in decisions]
    assert found.manifest.counters == {
        "candidates": 11,
        "ok": 9,
        "kept": 2,
        "training_rows": 8,
        "threshold": 3.0,
        "dropped_below_threshold": 2,
        "dropped_benchmark_image": 3,
        "dropped_duplicate": 1,
        "dropped_not_scored": 1,
        "dropped_outcome": 2,
        "dropped_overlap": 1,
        "dropped_validation_image": 1,
    }


def test_training_set_grows(made: CurateWorkspace) -> None:
    code, first = made.curate([candidate("t1", made.free[0])], {"t1": 9.0}, **threshold(3.0))
    assert code == 0
    assert first.manifest.counters["training_rows"] == 7
    rows = made.training()
    assert [row.origin for row in rows] == ["seed"] * 6 + ["generated"]
    for row, item in zip(rows, made.seed, strict=False):
        assert (row.row_id, row.answer_index) == (item.item_id, item.answer_index)
        assert row.response == f"<think>{item.rationale}</think><answer>{'ABCD'[item.answer_index]}</answer>"

    again = [candidate("t2", made.free[0], iteration=2), candidate("t3", made.free[1], iteration=2)]
    code, second = made.curate(again, {"t2": 9.5, "t3": -2.0}, iteration=2, history=made.history, **threshold(3.0))
    assert code == 0
    assert made.training() == rows
    assert second.rows(Decision) == [
        Decision("t2", False, ("overlap",), None),
        Decision("t3", False, ("below_threshold",), None),
    ]
    assert second.manifest.counters["training_rows"] == 7


def test_allow_overlap_never_lets_a_held_out_image_in(made: CurateWorkspace) -> None:
    seed = made.seed[0]
    candidates = [
        candidate("known", seed.image_sha256, seed.question),
        candidate("double", seed.image_sha256, seed.question),
        candidate("bench", made.image("test")),
        candidate("valid", made.image("validation")),
    ]
    assert made.reasons(candidates, allowOverlap=True, **ALL) == {
        "known": [],
        "double": ["duplicate"],
        "bench": ["benchmark_image"],
        "valid": ["validation_image"],
    }


def test_best_of_equal_candidates_stays(made: CurateWorkspace) -> None:
    candidates = [candidate(name, made.free[0]) for name in ("low", "high", "mid")]
    found = made.reasons(candidates, {"low": 1.0, "high": 9.0, "mid": 5.0}, **threshold(3.0))
    assert found == {"low": ["duplicate", "below_threshold"], "high": [], "mid": ["duplicate"]}


def test_a_broken_candidate_stands_for_no_good_one(made: CurateWorkspace) -> None:
    candidates = [candidate("broken", made.free[0], outcome="refused"), candidate("good", made.free[0])]
    assert made.reasons(candidates, **ALL) == {"broken": ["outcome:refused"], "good": []}


def test_a_score_that_is_no_number_is_no_score(made: CurateWorkspace) -> None:
    scores = {"nan": math.nan, "infinite": math.inf, "good": 1.0}
    candidates = [candidate(name, image) for name, image in zip(scores, made.free, strict=False)]
    for selection in ({"strategy": "TopK", "k": 4}, {"strategy": "Threshold", "threshold": 0.0}):
        found = made.reasons(candidates, scores, selection=selection)
        assert found == {"nan": ["not_scored"], "infinite": ["not_scored"], "good": []}


def test_the_seed_is_written_in_the_answer_format(made: CurateWorkspace) -> None:
    code, _ = made.curate([], {}, answer_format=AnswerFormat.OPTION_TEXT, **ALL)
    assert code == 0
    for row in made.training(AnswerFormat.OPTION_TEXT):
        assert row.response.endswith(f"<answer>{row.options[row.answer_index]}</answer>")


def test_either_table_of_prepare_holds_an_image_out(made: CurateWorkspace) -> None:
    image, item = made.prepared.images[0], made.prepared.items[0]
    images = [replace(image, image_sha256=name, split=Split(split)) for name, split in (("a", "train"), ("b", "test"))]
    items = [
        replace(item, image_sha256=name, split=Split(split)) for name, split in (("a", "test"), ("c", "validation"))
    ]
    assert contamination.held_images(images, items) == {"benchmark": {"a", "b"}, "validation": {"c"}}


def test_without_scores(made: CurateWorkspace, capfd: pytest.CaptureFixture[str]) -> None:
    candidates = [candidate(f"t{number}", image) for number, image in enumerate(made.free)]
    candidates.append(candidate("bad", made.free[0], outcome="schema"))
    found = made.reasons(candidates, **ALL)
    assert [name for name, reasons in found.items() if reasons] == ["bad"]
    found = made.reasons(candidates, selection={"strategy": "RandomK", "k": 4})
    assert sum(not reasons for reasons in found.values()) == 4
    assert sum(reasons == ["not_in_random_k"] for reasons in found.values()) == 6
    assert made.curate(candidates, **threshold(3.0))[0] == 78
    assert "stage score is disabled" in capfd.readouterr().err


def test_top_k_keeps_k_that_may_be_kept(made: CurateWorkspace) -> None:
    candidates = [candidate(f"t{number}", image) for number, image in enumerate(made.free[:5])]
    candidates.append(candidate("bench", made.image("test")))
    scores = {f"t{number}": float(number) for number in range(5)} | {"bench": 10.0}
    found = made.reasons(candidates, scores, selection={"strategy": "TopK", "k": 2})
    assert {name for name, reasons in found.items() if not reasons} == {"t4", "t3"}
    assert found["bench"] == ["benchmark_image"]
    assert found["t0"] == ["not_in_top_k"]


def test_fitted_precision(made: CurateWorkspace) -> None:
    candidates = [candidate("up", made.free[0]), candidate("down", made.free[1])]
    grades = [(10.0, 8.0), (6.0, 6.0), (0.0, 2.0), (-6.0, -4.0)]
    rows = [CalibrationRow("s", Grade.ORIGINAL, target, score) for target, score in grades]
    selection = {"strategy": "FittedPrecision", "precision": 0.95}
    scores = {"up": 5.0, "down": 3.0}
    code, found = made.curate(candidates, scores, calibration=rows, selection=selection)
    assert code == 0
    assert found.manifest.counters["threshold"] == 4.0
    assert found.manifest.counters["precision_reached"] == 1
    assert [row.keep for row in found.rows(Decision)] == [True, False]
    assert made.curate(candidates, scores, selection=selection)[0] == 78


def test_no_candidates_is_the_seed(made: CurateWorkspace) -> None:
    for candidates, scores in (([], {}), (None, None)):
        code, found = made.curate(candidates, scores, **threshold(3.0))
        assert code == 0
        assert len(made.training()) == 6
        assert found.rows(Decision) == []


def test_iteration_two_needs_the_first(made: CurateWorkspace, capfd: pytest.CaptureFixture[str]) -> None:
    assert made.curate([], {}, iteration=2, **threshold(3.0))[0] == 78
    assert "stage curate was given no input 'curate-1'" in capfd.readouterr().err


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> CurateWorkspace:
    return CurateWorkspace(tmp_path_factory.mktemp("curate"))


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_nothing_held_out_and_nothing_twice(shared: CurateWorkspace, data: st.DataObject) -> None:
    images = [row.image_sha256 for row in shared.prepared.images]
    names = data.draw(st.lists(st.integers(0, 9999).map(str), unique=True, max_size=25))
    questions = ["What is it?", "what is it", "Where?", *(row.question for row in shared.prepared.items)]
    candidates = [
        candidate(name, data.draw(st.sampled_from(images)), data.draw(st.sampled_from(questions))) for name in names
    ]
    scores = {name: data.draw(st.floats(-6, 10)) for name in names}
    code, found = shared.curate(candidates, scores, allowOverlap=False, **threshold(data.draw(st.floats(-6, 10))))
    assert code == 0
    held_out = {row.image_sha256 for row in shared.prepared.images if row.split is not Split.TRAIN}
    training = shared.training()
    assert not {row.image_sha256 for row in training} & held_out
    keys = [(row.image_sha256, row.question.strip(" ?").lower()) for row in training]
    assert len(set(keys)) == len(keys)
    assert len(found.rows(Decision)) == len(candidates)
