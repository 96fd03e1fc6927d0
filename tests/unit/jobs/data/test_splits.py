"""Splits: by image, seeded, exact shares; leaks found and named."""

from __future__ import annotations

import hashlib

import pytest

from medgr2_api.data import OnLeak, SplitBy, SplitSpec
from medgr2_jobs.data import splits
from medgr2_jobs.errors import DataError


def images(count: int, name: str = "x") -> list[str]:
    return [hashlib.sha256(f"{name}{index}".encode()).hexdigest() for index in range(count)]


def test_shares_are_exact_and_independent_of_order() -> None:
    split = SplitSpec(validation_fraction=0.2, test_fraction=0.1)
    first = splits.assign([images(50)], split, 1)
    assert sorted(first.values()).count("validation") == 10
    assert sorted(first.values()).count("test") == 5
    assert splits.assign([reversed(images(50))], split, 1) == first
    assert splits.assign([images(50)], split, 2) != first
    assert splits.digest(first) == splits.digest(dict(reversed(first.items())))
    assert splits.digest(first) != splits.digest(splits.assign([images(50)], split, 2))


def test_an_image_of_two_sources_has_one_side() -> None:
    shared = images(10, "shared")
    found = splits.assign([shared + images(10, "a"), shared + images(10, "b")], SplitSpec(validation_fraction=0.5), 1)
    alone = splits.assign([shared + images(10, "a")], SplitSpec(validation_fraction=0.5), 1)
    assert all(found[sha256] == alone[sha256] for sha256 in shared)
    assert len(found) == 30


@pytest.mark.parametrize("count", [1, 2, 3])
def test_few_images_still_train(count: int) -> None:
    found = splits.assign([images(count)], SplitSpec(validation_fraction=0.1), 1)
    assert list(found.values()).count("train") == max(1, count - 1)
    assert list(found.values()).count("validation") == (count > 1)


@pytest.mark.parametrize(("count", "shares"), [(2, [1, 0, 1]), (3, [2, 0, 1]), (10, [5, 4, 1])])
def test_one_image_is_left_to_train_on(count: int, shares: list[int]) -> None:
    found = splits.assign([images(count)], SplitSpec(validation_fraction=0.4, test_fraction=0.5), 1)
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


def test_what_belongs_together_is_never_divided() -> None:
    patients = {f"p{number}": images(6, f"p{number}/") for number in range(40)}
    joined = splits.together(patients)
    everything = [image for found in patients.values() for image in found]
    found = splits.assign(
        [everything], SplitSpec(by=SplitBy.PATIENT, validation_fraction=0.2, test_fraction=0.1), 1, joined
    )
    for held in patients.values():
        assert len({found[image] for image in held}) == 1
    assert [list(found.values()).count(name) for name in ("test", "validation")] == [24, 48]
    other = splits.assign(
        [everything], SplitSpec(by=SplitBy.PATIENT, validation_fraction=0.2, test_fraction=0.1), 2, joined
    )
    assert other != found


def test_an_image_of_two_patients_joins_them() -> None:
    a, b, c = images(3, "a"), images(3, "b"), images(3, "c")
    joined = splits.together({"a": a, "b": [*b, a[0]], "c": c})
    assert len({joined[image] for image in [*a, *b]}) == 1
    assert joined[c[0]] != joined[a[0]]
    for seed in range(20):
        found = splits.assign([[*a, *b, *c]], SplitSpec(validation_fraction=0.3), seed, joined)
        assert len({found[image] for image in [*a, *b]}) == 1
        assert "train" in found.values()


def test_images_of_another_source_follow_their_patient() -> None:
    seed, pool = images(4, "seed"), images(4, "pool")
    joined = splits.together({f"p{i}": [seed[i], pool[i]] for i in range(4)})
    found = splits.assign([seed], SplitSpec(validation_fraction=0.5), 1, joined)
    assert [found[image] for image in seed] == [found[image] for image in pool]
    assert set(found.values()) == {"train", "validation"}


def test_one_group_alone_trains() -> None:
    a = images(5)
    found = splits.assign([a], SplitSpec(validation_fraction=0.5), 1, splits.together({"all": a}))
    assert set(found.values()) == {"train"}


def test_what_looks_like_a_benchmarks_image_leaks_too() -> None:
    a, b = images(10), [*images(2), *images(4, "other")]
    names = dict.fromkeys(a, "x")
    found = splits.leaks(set(a), "bench", set(b), OnLeak.DROP, names, near={a[0], a[5]})
    assert found.images == {a[0], a[1], a[5]}
    assert found.near == {a[5]}
    assert found.share == pytest.approx(2 / 6)
    with pytest.raises(DataError, match=r"3 image\(s\)"):
        splits.leaks(set(a), "bench", set(b), OnLeak.FAIL, names, near={a[5]})


@pytest.mark.parametrize("seed", range(8))
def test_one_large_group_does_not_turn_the_shares_upside_down(seed: int) -> None:
    sets = {"large": images(80, "l"), "a": images(10, "a"), "b": images(10, "b")}
    everything = [image for found in sets.values() for image in found]
    found = splits.assign([everything], SplitSpec(validation_fraction=0.1), seed, splits.together(sets))
    assert list(found.values()).count("validation") == 10
    halves = {"x": images(50, "x"), "y": images(50, "y")}
    both = [image for held in halves.values() for image in held]
    found = splits.assign([both], SplitSpec(validation_fraction=0.1), seed, splits.together(halves))
    assert sorted(found.values()).count("validation") == 50, "a share that fits no group still gets one"
