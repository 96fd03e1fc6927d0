"""The image plan: every iteration takes up where the last one stopped; shards are slices of the same plan."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medgr2_api.generator import Paradigm, WeightedParadigm
from medgr2_api.stage_contract import Shard
from medgr2_jobs.generate import sampling_plan
from medgr2_jobs.generate.prepared_images import ImageUse
from medgr2_jobs.store.rows import Split

IMAGES = {f"{number:064x}": "CT" for number in range(10)}
KINDS = ("modality", "finding", "location", "count")


def tasks(iteration: int = 1, **changes: Any) -> list[sampling_plan.Task]:
    arguments = {"candidates": 12, "per_image": 3, "question_types": KINDS, "shard": Shard(), **changes}
    images = arguments.pop("images", IMAGES)
    return sampling_plan.tasks(images, "seed", iteration=iteration, **arguments)


def sequence(made: list[sampling_plan.Task]) -> list[str]:
    return list(dict.fromkeys(task.image_sha256 for task in made))


def test_iterations_follow_each_other_and_wrap_around() -> None:
    seen = [sha256 for iteration in (1, 2, 3, 4, 5) for sha256 in sequence(tasks(iteration))]
    assert len(seen) == 20
    assert Counter(seen) == dict.fromkeys(IMAGES, 2)
    assert seen[:10] == seen[10:]
    assert seen[:10] != sorted(seen[:10])


def test_an_image_that_comes_again_gets_the_other_kinds() -> None:
    every = [task for iteration in range(1, 5) for task in tasks(iteration, candidates=10, per_image=2, images=IMAGES)]
    kinds = {sha256: [t.question_type for t in every if t.image_sha256 == sha256] for sha256 in IMAGES}
    assert all(sorted(found) == sorted(KINDS) for found in kinds.values())
    assert len({tuple(found) for found in kinds.values()}) > 1


@given(
    st.integers(0, 60), st.integers(1, 7), st.integers(1, 5), st.integers(1, 9), st.integers(1, 4), st.integers(1, 4)
)
def test_shards_are_slices(
    candidates: int, per_image: int, count: int, images: int, iteration: int, kinds: int
) -> None:
    changes: dict[str, Any] = {
        "candidates": candidates,
        "per_image": per_image,
        "images": dict(list(IMAGES.items())[:images]),
        "question_types": KINDS[:kinds],
    }
    whole = tasks(iteration, **changes)
    assert len(whole) == candidates
    assert len({task.triplet_id for task in whole}) == candidates
    pieces = [tasks(iteration, shard=Shard(index=index, count=count), **changes) for index in range(count)]
    assert [task for piece in pieces for task in piece] == whole
    for one, other in itertools.pairwise(pieces):  # an image's questions stay together
        if one and other:
            assert one[-1].triplet_id.split("-")[1] != other[0].triplet_id.split("-")[1]
    if per_image <= kinds and math.ceil(candidates / per_image) <= images:
        assert len({(task.image_sha256, task.question_type) for task in whole}) == candidates


def test_only_training_images() -> None:
    def row(sha256: str, split: str) -> ImageUse:
        return ImageUse(sha256, "CT", "seed", Split(split), allow_external=True)

    rows = [row("a", "train"), row("b", "validation"), row("c", "test"), row("d", "train"), row("d", "test")]
    assert sampling_plan.training_images(rows) == {"a": "CT"}


def test_paradigms_follow_their_weights() -> None:
    weighted = [
        WeightedParadigm(name=Paradigm.DIRECT, weight=1),
        WeightedParadigm(name=Paradigm.META_COGNITIVE, weight=3),
    ]
    made = tasks(candidates=3000, per_image=4)
    found = Counter(sampling_plan.paradigm(task, weighted, 7) for task in made)
    assert found[Paradigm.META_COGNITIVE] / 3000 == pytest.approx(0.75, abs=0.04)
    assert [sampling_plan.paradigm(task, weighted, 7) for task in made] == [
        sampling_plan.paradigm(task, weighted, 7) for task in made
    ]
