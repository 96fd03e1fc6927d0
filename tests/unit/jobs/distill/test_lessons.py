"""Who learns from what: by hash, the same in every iteration; and never from a student's rows alone."""

from __future__ import annotations

import hashlib

from medgr2_jobs.curate.training_set import Origin, TrainingRow
from medgr2_jobs.distill.lessons import FIRST_SHARE, Lesson, Origins, origins, with_first_share
from medgr2_jobs.distill.task_split import in_probe, is_students
from medgr2_jobs.generate.prepared_images import ImageUse, PreparedImages
from medgr2_jobs.generate.sampling_plan import Task
from medgr2_jobs.store.rows import Split
from medgr2_jobs.store.rows.prepared import ImageOrigin


def lesson(name: str, depth: int) -> Lesson:
    row = TrainingRow(name, Origin.GENERATED, 1, name, "CT", "finding", "What?", ("a", "b", "c", "d"), 0, "")
    return Lesson(row, depth, "text")


def test_the_first_generator_keeps_its_share() -> None:
    found = [lesson(f"own{n}", 1 + n % 2) for n in range(50)] + [lesson(f"first{n}", 0) for n in range(9)]
    kept = with_first_share(found, 7)
    own = sum(row.depth > 0 for row in kept)
    assert [row for row in kept if row.depth == 0] == found[50:]
    assert own == 21
    assert 9 / len(kept) >= FIRST_SHARE
    assert 9 / (len(kept) + 1) < FIRST_SHARE, "as many as may be"
    assert kept == [row for row in found if row in kept], "in their order"
    assert with_first_share(found[::-1], 7) == kept[::-1], "by hash, not by place"
    assert with_first_share(found, 8) != kept
    assert with_first_share(found[:3], 7) == [], "nothing of the first generator: nothing at all"
    assert with_first_share(found[40:], 7) == found[40:]


def test_a_student_may_leave_only_if_all_that_it_saw_may() -> None:
    """What it writes may tell of the pictures that it learnt from; what nobody has allowed may not leave."""
    asked = {"open": True, "joint": True, "private": False, "unsaid": None}
    rows = [ImageUse(name, "CT", "pool", Split.TRAIN, allowed) for name, allowed in asked.items()]
    prepared = PreparedImages.of(rows, [ImageOrigin("joint", "seed"), ImageOrigin("private", "clinic")])
    assert origins(prepared, [lesson("open", 0)]) == Origins(["pool"], may_leave=True)
    assert origins(prepared, [lesson("open", 0), lesson("joint", 0)]) == Origins(["pool", "seed"], may_leave=True)
    assert origins(prepared, [lesson("open", 0), lesson("private", 0)]) == Origins(["clinic", "pool"], may_leave=False)
    assert not origins(prepared, [lesson("open", 0), lesson("unsaid", 0)]).may_leave


def images(count: int) -> list[str]:
    return [hashlib.sha256(str(number).encode()).hexdigest() for number in range(count)]


def test_a_tenth_of_the_pictures_is_the_probes() -> None:
    held = [image for image in images(2000) if in_probe(image)]
    assert 150 < len(held) < 250
    # the same for ever: whoever was measured on them must not have learnt from them
    assert [image[:6] for image in held[:3]] == ["2c6242", "19581e", "c23560"]


def test_the_student_gets_its_share_and_none_of_the_probe() -> None:
    tasks = [Task(f"t{number:06d}", image, "CT", "finding") for number, image in enumerate(images(4000))]
    mine = [task for task in tasks if is_students(task, 0.7)]
    assert 0.6 < len(mine) / len(tasks) < 0.66, "0.7 of nine tenths"
    assert not [task for task in mine if in_probe(task.image_sha256)]
    fewer = {task.triplet_id for task in tasks if is_students(task, 0.3)}
    assert fewer < {task.triplet_id for task in mine}, "a larger share asks more, and nothing else"
    assert all(is_students(task, 1.0) for task in tasks)
    assert not any(is_students(task, 0.0) for task in tasks)
