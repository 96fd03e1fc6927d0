"""Which questions an iteration asks, about which images: fixed by the inputs alone, whatever is answered."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from medgr2_api.generator import Paradigm, WeightedParadigm
from medgr2_api.stage_contract import Shard

from ..store.rows import Split
from .prepared_images import ImageUse


@dataclass(frozen=True)
class Task:
    """One question to be made."""

    triplet_id: str
    image_sha256: str
    modality: str
    question_type: str


def training_images(rows: Iterable[ImageUse]) -> dict[str, str]:
    """sha256 → modality of the images that may be asked about.

    An image that is in the training split and also in another is none of them: it must not reach the training data.
    """
    modality: dict[str, str] = {}
    elsewhere: set[str] = set()
    for row in rows:
        if row.split is Split.TRAIN:
            modality[row.image_sha256] = row.modality
        else:
            elsewhere.add(row.image_sha256)
    return {sha256: name for sha256, name in modality.items() if sha256 not in elsewhere}


def tasks(
    images: Mapping[str, str],
    order_seed: str,
    *,
    iteration: int,
    candidates: int,
    per_image: int,
    question_types: Sequence[str],
    shard: Shard,
) -> list[Task]:
    """The tasks of one shard of an iteration.

    The images stand in one order for the whole cycle, and each iteration takes up where the one before it stopped;
    an image that comes round again is asked for the kinds it was not asked for before.

    Args:
        images: sha256 → modality; not empty unless `candidates` is 0.
        order_seed: the same in all iterations.
        iteration: from 1.
        candidates: tasks of the iteration, over all shards.
        per_image: tasks about one image.
        question_types: question types, dealt to each image in an order of its own.
        shard: which contiguous slice of the iteration's images.
    """
    order = sorted(images)
    random.Random(f"order/{order_seed}").shuffle(order)
    count = math.ceil(candidates / per_image)
    planned = []
    for place in shard.part_of(count):
        round_number, at = divmod((iteration - 1) * count + place, len(order))
        sha256 = order[at]
        shuffled = random.Random(f"kinds/{order_seed}/{sha256}").sample(question_types, len(question_types))
        for number in range(min(per_image, candidates - place * per_image)):
            question_type = shuffled[(round_number * per_image + number) % len(shuffled)]
            planned.append(Task(f"t{iteration:03d}-{place:06d}-{number:02d}", sha256, images[sha256], question_type))
    return planned


def paradigm(task: Task, weighted: Sequence[WeightedParadigm], seed: int) -> Paradigm:
    """The paradigm of a task, by weight."""
    rng = random.Random(f"paradigm/{seed}/{task.triplet_id}")
    return rng.choices([item.name for item in weighted], [item.weight for item in weighted])[0]
