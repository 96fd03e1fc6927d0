"""Splits: by image, seeded, exact shares; leaks found and named."""

from __future__ import annotations

import hashlib

import pytest

from medgr2_api.data import OnLeak, Split, SplitBy
from medgr2_jobs.data import splits
from medgr2_jobs.errors import ConfigError, DataError


def images(count: int, name: str = "x") -> list[str]:
    return [hashlib.sha256(f"{name}{index}".encode()).hexdigest() for index in range(count)]


def test_shares_are_exact_and_independent_of_order() -> None:
    split = Split(validation_fraction=0.2, test_fraction=0.1)
    first = splits.assign([images(50)], split, 1)
    assert sorted(first.values()).count("validation") == 10
    assert sorted(first.values()).count("test") == 5
    assert splits.assign([reversed(images(50))], split, 1) == first
    assert splits.assign([images(50)], split, 2) != first
    assert splits.digest(first) == splits.digest(dict(reversed(first.items())))
    assert splits.digest(first) != splits.digest(splits.assign([images(50)], split, 2))


def test_an_image_of_two_sources_has_one_side() -> None:
    shared = images(10, "shared")
    found = splits.assign([shared + images(10, "a"), shared + images(10, "b")], Split(validation_fraction=0.5), 1)
    alone = splits.assign([shared + images(10, "a")], Split(validation_fraction=0.5), 1)
    assert all(found[sha256] == alone[sha256] for sha256 in shared)
    assert len(found) == 30


@pytest.mark.parametrize("count", [1, 2, 3])
def test_few_images_still_train(count: int) -> None:
    found = splits.assign([images(count)], Split(validation_fraction=0.1), 1)
    assert list(found.values()).count("train") == max(1, count - 1)
    assert list(found.values()).count("validation") == (count > 1)


@pytest.mark.parametrize(("count", "shares"), [(2, [1, 0, 1]), (3, [2, 0, 1]), (10, [5, 4, 1])])
def test_one_image_is_left_to_train_on(count: int, shares: list[int]) -> None:
    found = splits.assign([images(count)], Split(validation_fraction=0.4, test_fraction=0.5), 1)
    assert [list(found.values()).count(name) for name in ("test", "validation", "train")] == shares


def test_leaks_are_counted_or_refused() -> None:
    a, b = images(10), images(4) + images(4, "other")
    names = {sha256: f"seed/{index}.png" for index, sha256 in enumerate(a)}
    found = splits.leaks(set(a), "bench", set(b), OnLeak.DROP, names)
    assert found.images == set(images(4))
    assert found.share == 0.5
    with pytest.raises(DataError, match=r"benchmark 'bench'.*4 image\(s\).*seed/0.png, seed/1.png"):
        splits.leaks(set(a), "bench", set(b), OnLeak.FAIL, names)
    assert not splits.leaks(set(a), "bench", set(images(4, "other")), OnLeak.FAIL, names).images


def test_by_patient_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"data.split.by: Patient"):
        splits.check(Split(by=SplitBy.PATIENT))
