"""Phantoms: deterministic, readable by the loader of real data, and not guessable without the image."""

from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
from tests.unit.jobs.data.test_omnimedvqa import place

from medgr2_jobs.data import omnimedvqa, synthetic_images
from medgr2_jobs.data.record import Record


def test_drawing_is_deterministic_and_indices_differ() -> None:
    first = [np.asarray(synthetic_images.draw(synthetic_images.attributes(3, i), 3, i)) for i in range(20)]
    again = [np.asarray(synthetic_images.draw(synthetic_images.attributes(3, i), 3, i)) for i in range(20)]
    assert all((a == b).all() for a, b in zip(first, again, strict=True))
    assert len({a.tobytes() for a in first}) == 20
    assert not (np.asarray(synthetic_images.draw(synthetic_images.attributes(3, 0), 4, 0)) == first[0]).all()
    assert first[0].shape == (56, 56, 3)


@pytest.mark.parametrize("kind", synthetic_images.KINDS)
def test_every_value_of_an_attribute_changes_the_picture(kind: str) -> None:
    base = synthetic_images.attributes(1, 0)
    drawn = set()
    for value in synthetic_images.VALUES[kind]:
        changed = synthetic_images.Attributes(**{**base.__dict__, kind: value})
        drawn.add(synthetic_images.draw(changed, 1, 0).tobytes())
    assert len(drawn) == len(synthetic_images.VALUES[kind])


def test_questions_are_answerable_and_of_different_kinds() -> None:
    for index in range(50):
        shown = synthetic_images.attributes(2, index)
        asked = synthetic_images.questions(2, index, 1 + index % 4)
        assert len({question.kind for question in asked}) == 1 + index % 4
        for question in asked:
            assert len(set(question.options)) == 4
            assert question.options[question.answer_index] == shown.value(question.kind)
            assert shown.value(question.kind) in question.rationale
            assert synthetic_images.paraphrase(question.rationale) not in (None, question.rationale)


def test_looking_up_the_options_is_near_chance() -> None:
    """Gold is uniform over values and distractors are true for other images: text alone tells nothing."""
    train = [asked for i in range(2000) for asked in synthetic_images.questions(5, i, 4)]
    test = [asked for i in range(500) for asked in synthetic_images.questions(6, i, 4)]
    right, seen = Counter[tuple[str, str]](), Counter[tuple[str, str]]()
    position: dict[str, Counter[int]] = defaultdict(Counter)
    for question in train:
        position[question.kind][question.answer_index] += 1
        for index, option in enumerate(question.options):
            seen[question.text, option] += 1
            right[question.text, option] += index == question.answer_index
    hits = sum(
        max(range(4), key=lambda k: right[q.text, q.options[k]] / seen[q.text, q.options[k]]) == q.answer_index
        for q in test
    )
    always = sum(position[q.kind].most_common(1)[0][0] == q.answer_index for q in test)
    assert hits / len(test) == pytest.approx(0.25, abs=0.04)  # standard error 0.01
    assert always / len(test) == pytest.approx(0.25, abs=0.04)


def test_the_loader_of_real_data_reads_them(tmp_path: Path) -> None:
    folder = tmp_path / "phantoms"
    truth = synthetic_images.write(folder, dataset="demo", seed=9, images=12, questions_per_image=4)
    found = list(omnimedvqa.read(place(tmp_path, "phantoms")))
    assert len(found) == 48
    for record in found:
        assert isinstance(record, Record)
        assert record.options[record.answer_index] == truth[record.image_path].value(record.question_type)
        assert record.rationale
        assert (record.image.width, record.image.height) == (56, 56)
    assert len({record.image.sha256 for record in found if isinstance(record, Record)}) == 12


def test_images_without_questions_still_have_a_record(tmp_path: Path) -> None:
    synthetic_images.write(tmp_path / "p", dataset="demo", seed=9, images=5, questions_per_image=0)
    found = list(omnimedvqa.read(place(tmp_path, "p")))
    assert len(found) == 5
