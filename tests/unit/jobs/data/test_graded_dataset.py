"""D_grade: every grade says what it means, on phantoms and on data without rationales."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from tests.support.rows import row_of

from medgr2_api.reward_model import Grades
from medgr2_api.training_spec import AnswerFormat
from medgr2_jobs.data import graded_dataset, synthetic_images
from medgr2_jobs.prompts import answers
from medgr2_jobs.store.rows import Split
from medgr2_jobs.store.rows.prepared import GradedRow, Item

FORMAT = AnswerFormat.OPTION_TEXT


def phantom_items(count: int = 60, *, rationale: bool = True, per_image: int = 4) -> list[Item]:
    found = []
    for index in range(count):
        shown = synthetic_images.attributes(1, index)
        for asked in synthetic_images.questions(1, index, per_image):
            found.append(
                row_of(
                    Item,
                    item_id=f"seed/{index}-{asked.kind}",
                    source="seed",
                    split=Split.TRAIN,
                    image_sha256=f"{index:064x}",
                    modality=shown.modality,
                    question_type=asked.kind,
                    question=asked.text,
                    options=asked.options,
                    answer_index=asked.answer_index,
                    rationale=asked.rationale if rationale else "",
                )
            )
    return found


def make(items: list[Item], mismatches: int = 1, seed: int = 0, **options: Any) -> list[GradedRow]:
    settings = {"grades": Grades(), "mismatches": mismatches, "answer_format": FORMAT, "seed": seed}
    return list(graded_dataset.rows(items, **{"pool": items, **settings, **options}))


def test_the_wording_gives_no_grade_away() -> None:
    """R would learn it, and GRPO would find it: a policy that paraphrases instead of answering."""
    spoken = Counter()
    for row in make(phantom_items(200), mismatches=3):
        if row.perturbation not in ("phraseDeletion", "otherRationale"):
            said = row.response.split("<think>")[1].split("</think>")[0]
            spoken[row.target > 0, synthetic_images.paraphrase(said) is None] += 1
    for right in (True, False):
        paraphrased, plain = spoken[right, True], spoken[right, False]
        assert paraphrased / (paraphrased + plain) == pytest.approx(0.5, abs=0.05), f"right: {right}"


def test_each_grade_is_what_it_says() -> None:
    items = {item.item_id: item for item in phantom_items()}
    rows = make(list(items.values()))
    for row in rows:
        item = items[row.item_id]
        gold = item.answer_index
        chosen = answers.extract(row.response, row.options, FORMAT)
        own_image = row.image_sha256 == item.image_sha256
        match row.grade:
            case "original":
                assert (row.target, chosen, own_image) == (10, gold, True)
                assert item.rationale in row.response
            case "perturbed":
                assert (row.target, chosen, own_image) == (6, gold, True)
                assert item.rationale not in row.response
            case "incoherent":
                assert (row.target, chosen, own_image) == (0, gold, True)
                assert len(row.response) < len(answers.response(item.rationale, gold, item.options, FORMAT))
            case "irrelevant":
                assert (row.target, own_image) == (-6, True)
                assert chosen not in (None, gold)
            case "imageMismatch":
                assert (row.target, chosen, own_image) == (-6, gold, False)
                index = int(row.image_sha256, 16)
                shown = synthetic_images.attributes(1, index)
                assert shown.value(item.question_type) != item.options[gold]
                assert row.modality == shown.modality
                assert (row.perturbation == "otherImage") == (shown.modality == item.modality)
    counts = Counter(row.grade for row in rows)
    assert counts["original"] == counts["perturbed"] == counts["incoherent"] == len(items)
    assert counts["imageMismatch"] == len(items)
    assert 1.4 * len(items) < counts["irrelevant"] < 1.8 * len(items)
    assert len({row.sample_id for row in rows}) == len(rows)


def test_mismatches_scale_and_zero_keeps_the_fourth_grade() -> None:
    items = phantom_items(40)
    none = Counter(row.grade for row in make(items, 0))
    three = Counter(row.grade for row in make(items, 3))
    assert none["imageMismatch"] == 0
    assert none["irrelevant"] == len(items)
    assert three["irrelevant"] > 4 * len(items)
    assert three["imageMismatch"] > 2 * len(items)


def test_seeded() -> None:
    items = phantom_items(10)
    assert make(items) == make(items)
    assert make(items) != make(items, seed=1)


def test_an_image_of_which_the_same_answer_is_known_is_never_the_wrong_one() -> None:
    def item(name: str, image: str, gold: str, question_type: str = "finding") -> Item:
        (some,) = phantom_items(1, per_image=1)
        options = ("cyst", "mass", "nodule")
        return replace(
            some,
            item_id=name,
            image_sha256=image,
            question_type=question_type,
            modality="CT",
            options=options,
            answer_index=options.index(gold),
        )

    items = [
        item("asked", "a", "cyst"),
        item("both-1", "b", "mass"),
        item("both-2", "b", "cyst"),  # this image shows both
        item("same", "c", "cyst"),
        item("other", "d", "nodule"),
        item("unknown", "e", "mass", question_type="count"),  # nothing is known of its finding
    ]
    rows = [row for seed in range(20) for row in make(items, 4, seed) if row.item_id == "asked"]
    assert {row.image_sha256 for row in rows} == {"a", "d", "e"}


def test_what_an_image_shows_by_another_type_of_question_is_known_too() -> None:
    (some,) = phantom_items(1, per_image=1)
    base = replace(some, modality="CT", options=("cyst", "mass"), answer_index=0)
    items = [
        replace(base, item_id="asked", image_sha256="a", question_type="diagnosis"),
        replace(base, item_id="fits", image_sha256="b", question_type="finding"),
        replace(base, item_id="wrong", image_sha256="c", question_type="finding", answer_index=1),
    ]
    rows = [row for seed in range(20) for row in make(items, 4, seed) if row.item_id == "asked"]
    assert {row.image_sha256 for row in rows} == {"a", "c"}


def test_a_yes_says_something_of_its_own_question_alone() -> None:
    (some,) = phantom_items(1, per_image=1)
    base = replace(some, modality="CT", question_type="presence", options=("Yes", "No"))

    def item(image: str, question: str, index: int) -> Item:
        return replace(base, item_id=image, image_sha256=image, question=question, answer_index=index)

    items = [
        item("a", "Is there a cyst?", 0),
        item("fits", "is there a cyst", 0),
        *(item(f"wrong-{number}", "Is there a cyst?", 1) for number in range(9)),
        item("unknown-1", "Is there a mass?", 0),
        item("unknown-2", "Is there a mass?", 1),
    ]
    rows = [row for seed in range(20) for row in make(items, 1, seed) if row.item_id == "a"]
    shown = {row.image_sha256 for row in rows if row.grade == "imageMismatch"}
    assert shown <= {item.image_sha256 for item in items if item.item_id.startswith("wrong")}
    assert len(shown) > 3
    unsure = [item for item in items if not item.item_id.startswith("wrong")]
    rows = [row for seed in range(20) for row in make(unsure, 1, seed) if row.item_id == "a"]
    shown = {row.image_sha256 for row in rows if row.grade == "imageMismatch"}
    assert shown == {"unknown-1", "unknown-2"}


def test_rows_are_made_one_by_one() -> None:
    """Memory must not grow with the items: they are asked for when their rows are."""
    items = phantom_items(10)
    asked: list[str] = []

    def one_by_one() -> Iterator[Item]:
        for item in items:
            asked.append(item.item_id)
            yield item

    made = graded_dataset.rows(one_by_one(), pool=items, grades=Grades(), mismatches=1, answer_format=FORMAT, seed=0)
    assert next(made).item_id == items[0].item_id
    assert asked == [items[0].item_id]


def test_a_question_that_the_modality_answers_is_shown_beside_another_modality() -> None:
    (some,) = phantom_items(1, per_image=1)
    items = [
        replace(
            some,
            item_id=name,
            image_sha256=name,
            question_type="Diagnosis" if name in "ac" else "Anatomy",  # of b and d we only know the modality
            options=("CT", "MRI"),
            modality=modality,
            answer_index=int(modality == "MRI"),
        )
        for name, modality in (("a", "CT"), ("b", "CT"), ("c", "MRI"), ("d", "MRI"))
    ]
    rows = [row for seed in range(20) for row in make(items, 4, seed) if row.item_id == "a"]
    assert {row.image_sha256 for row in rows if row.grade == "imageMismatch"} == {"c", "d"}


def test_data_without_rationales() -> None:
    items = phantom_items(20, rationale=False)
    rows = make(items)
    original = next(row for row in rows if row.grade == "original")
    option = items[0].options[items[0].answer_index]
    assert original.response == f"<think>The image fits the option {option}.</think><answer>{option}</answer>"
    wrong = next(row for row in rows if row.perturbation == "wrongAnswer")
    assert option not in wrong.response
    assert Counter(row.grade for row in rows)["perturbed"] == len(items)


def test_validation_items_are_held_out() -> None:
    items = [replace(item, split=Split.VALIDATION) for item in phantom_items(5)]
    assert {row.split for row in make(items)} == {"heldout"}


def test_one_item_alone_has_no_other_image() -> None:
    rows = make(phantom_items(1, per_image=1), 2)
    assert not [row for row in rows if row.grade == "imageMismatch"]
    assert [row for row in rows if row.grade == "irrelevant"]
