"""A flipped finding is a plausible sentence that says the opposite in one place."""

from __future__ import annotations

import json
import random
from dataclasses import asdict, replace
from hashlib import sha256

import pytest
from tests.unit.jobs.data.test_graded_dataset import FORMAT, make, phantom_items

from medgr2_jobs.data import finding_negation, paraphrase
from medgr2_jobs.prompts import answers


@pytest.mark.parametrize(
    ("text", "flipped"),
    [
        ("A nodule in the left lung.", "A nodule in the right lung."),
        ("Left ventricle.", "Right ventricle."),
        ("Right-sided weakness.", "Left-sided weakness."),
        ("The lower lobe.", "The upper lobe."),
        ("The posterior horn.", "The anterior horn."),
        ("There is no evidence of effusion.", "There is evidence of effusion."),
        ("There is evidence of effusion.", "There is no evidence of effusion."),
        ("There is no sign of effusion.", "There is a sign of effusion."),
        ("No fracture.", "Fracture."),
        ("There is a fracture.", "There is no fracture."),
        ("There are opacities.", "There are no opacities."),
        ("The spleen is absent.", "The spleen is present."),
        ("The spleen is present.", "The spleen is absent."),
        ("A mass without calcification.", "A mass with calcification."),
        ("Blood is not seen.", "Blood is seen."),
        ("The heart is normal.", "The heart is abnormal."),
        ("A normal heart.", "An abnormal heart."),
        ("An abnormal heart.", "A normal heart."),
        ("All within normal limits.", "All outside normal limits."),
        ("A benign lesion.", "A malignant lesion."),
        ("Two cysts.", "Four cysts."),
        ("We count 3 small round nodules.", "We count 5 small round nodules."),
        ("Multiple lesions.", "Two lesions."),
        ("The left lung is dense, and the Left hilum too.", "The right lung is dense, and the Right hilum too."),
    ],
)
def test_one_finding_is_turned_round(text: str, flipped: str) -> None:
    assert {finding_negation.flip(text, random.Random(seed)) for seed in range(10)} == {flipped}


@pytest.mark.parametrize(
    "text",
    [
        "A round lucency.",
        "The right answer is B.",
        "",
        "Nodules, notably.",
        "A left-to-right shunt.",
        "It runs from left to right.",
        "A lateral view.",
        "The images present a mass of 3 cm after 2 days.",
        "There is also blood.",
        "It is not only blood.",
        "It is no longer seen.",
    ],
)
def test_what_is_no_finding_stays(text: str) -> None:
    assert finding_negation.flip(text, random.Random(1)) is None


def test_one_of_several_is_chosen() -> None:
    text = "No effusion in the left upper lobe."
    found = {finding_negation.flip(text, random.Random(seed)) for seed in range(40)}
    assert found == {
        "Effusion in the left upper lobe.",
        "No effusion in the right upper lobe.",
        "No effusion in the left lower lobe.",
    }


def test_what_may_be_flipped_is_never_replaced_by_a_synonym() -> None:
    assert set(finding_negation.OPPOSITES) <= paraphrase.PROTECTED


def test_d_grade_has_flipped_findings_of_real_texts() -> None:
    items = [replace(item, rationale="A mass in the left lung.") for item in phantom_items(20)]
    flipped = [row for row in make(items) if row.perturbation == "flippedFinding"]
    assert len(flipped) == len(items)
    for row in flipped:
        item = next(item for item in items if item.item_id == row.item_id)
        assert (row.grade, row.target) == ("irrelevant", -6.0)
        assert "right lung" in row.response
        assert answers.extract(row.response, row.options, FORMAT) == item.answer_index
        assert row.image_sha256 == item.image_sha256
    assert not [row for row in make(items, mismatches=0) if row.perturbation == "flippedFinding"]


def test_the_rows_of_phantoms_are_what_they_were() -> None:
    """The quickstart's D_grade is tuned and measured (docs/measurements.md): it must not drift unnoticed."""
    digest = sha256()
    for row in make(phantom_items(60), mismatches=3):
        kept = {name: value for name, value in asdict(row).items() if name not in ("source", "seed")}
        digest.update(json.dumps(kept, sort_keys=True).encode())
    assert digest.hexdigest() == "dcd8d8c6479490457a8881def51b8a4c08fd998a898161ab58d0e426f3a29075"


def test_every_row_tells_its_source_and_seed() -> None:
    assert {(row.source, row.seed) for row in make(phantom_items(4), seed=7)} == {("seed", 7)}
