"""Near images and texts of benchmarks and validation never pass; phantoms and templates are left alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.support.curate_fixtures import FAR, CurateWorkspace, candidate, phash

from medgr2_jobs.store.rows import Split
from medgr2_jobs.store.rows.candidates import Candidate, CandidateOutcome
from medgr2_jobs.store.rows.prepared import Item

ALL: dict[str, Any] = {"selection": {"strategy": "All"}}


@pytest.fixture
def made(tmp_path: Path) -> CurateWorkspace:
    return CurateWorkspace(tmp_path)


SIGNS = ("Meniscus", "Halo", "Comet tail", "Spoke wheel")


def item(image: str, split: str, name: str = "real", options: tuple[str, ...] = SIGNS) -> Item:
    return Item(
        item_id=name,
        source="real",
        split=Split(split),
        benchmark="bench" if split == "test" else "",
        image_sha256=image,
        modality="CT",
        question_type="Diagnosis",
        question="Which sign is marked?",
        options=options,
        answer_index=1,
        rationale="",
    )


def same_text(name: str, image: str, **changes: Any) -> Candidate:
    """The item's text in another order, case and punctuation."""
    options = ("spoke wheel.", "Comet  tail", "halo", "meniscus")
    return candidate(name, image, "which sign is MARKED", **{"options": options, "answer_index": 2, **changes})


@pytest.mark.parametrize(("split", "kind"), [("test", "benchmark"), ("validation", "validation")])
def test_an_image_within_four_bits_of_a_held_out_one_is_out(made: CurateWorkspace, split: str, kind: str) -> None:
    held, (four, five, other) = made.image(split), made.free[:3]
    made.prepare_again({held: phash(), four: phash(1, 20, 40, 63), five: phash(1, 20, 40, 62, 63), other: FAR})
    candidates = [candidate("four", four), candidate("five", five), candidate("far", other), candidate("same", held)]
    for overlap in (False, True):
        assert made.reasons(candidates, allowOverlap=overlap, **ALL) == {
            "four": [f"{kind}_near_image"], "five": [], "far": [], "same": [f"{kind}_image"],
        }  # fmt: skip
    wider = {"imageHamming": 5, "textJaccard": 1.0}
    assert made.reasons(candidates, nearDuplicates=wider, **ALL)["five"] == [f"{kind}_near_image"]
    narrower = {"imageHamming": 0, "textJaccard": 1.0}
    assert made.reasons(candidates, nearDuplicates=narrower, **ALL)["four"] == [f"{kind}_near_image"]


@pytest.mark.parametrize(("split", "kind"), [("test", "benchmark"), ("validation", "validation")])
def test_a_held_out_question_is_out_when_options_and_answer_agree(made: CurateWorkspace, split: str, kind: str) -> None:
    held = made.image(split)
    made.prepare_again({held: phash()}, [item(held, split)])
    other_options = ("Meniscus", "Halo", "Comet tail", "Target")
    candidates = [
        same_text("same", made.free[0]),
        same_text("other-answer", made.free[1], answer_index=0),
        same_text("other-options", made.free[2], options=other_options, answer_index=1),
        candidate("other-question", made.free[3], "Which sign is seen?", options=SIGNS),
        same_text("broken", made.free[4], outcome=CandidateOutcome.SCHEMA),
    ]
    assert made.reasons(candidates, allowOverlap=True, **ALL) == {
        "same": [f"{kind}_text"], "other-answer": [], "other-options": [], "other-question": [],
        "broken": ["outcome:schema"],
    }  # fmt: skip


def test_a_template_may_be_asked_of_other_images(made: CurateWorkspace) -> None:
    """The prepared items ask it of images that differ: to have seen it elsewhere gives nothing away."""
    held, near, seed = made.image("test"), made.free[1], made.free[2]
    once = item(held, "test")
    made.prepare_again({held: phash(), near: phash(3), seed: FAR}, [once, item(near, "test", "near")])
    assert made.reasons([same_text("t", made.free[5])], **ALL) == {"t": ["benchmark_text"]}, "two views of one image"
    made.prepare_again({}, [item(seed, "train", "seed")])
    assert made.reasons([same_text("t", made.free[5])], **ALL) == {"t": []}


def test_phantoms_are_compared_exactly(made: CurateWorkspace) -> None:
    """They have no perceptual hash, and their questions are templates: as in the quickstart."""
    held = made.prepared.items[-1]
    assert held.split is Split.TEST
    made.prepare_again()
    candidates = [
        candidate("text", made.free[0], held.question, options=held.options, answer_index=held.answer_index),
        candidate("image", held.image_sha256, "Something else?"),
    ]
    near = {"imageHamming": 4, "textJaccard": 0.8}
    assert made.reasons(candidates, nearDuplicates=near, **ALL) == {"text": [], "image": ["benchmark_image"]}


def test_an_item_whose_answer_says_nothing_holds_no_text(made: CurateWorkspace) -> None:
    held = made.image("test")
    made.prepare_again({held: phash()}, [item(held, "test", options=("Meniscus", "?", "Comet tail", "Spoke wheel"))])
    asked = same_text("t", made.free[0], options=("spoke wheel.", "Comet  tail", "...", "meniscus"))
    assert made.reasons([asked], **ALL) == {"t": []}
