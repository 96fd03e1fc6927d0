"""Near-duplicates within the batch and against D_gen: both limits mean what they say."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.curate_fixtures import FAR, CurateWorkspace, candidate, phash, triplet
from tests.support.near_clusters import SHAPES, cluster

from medgr2_api.curation import NearDuplicates
from medgr2_jobs.duplicates import phash_index, text_fingerprint
from medgr2_jobs.duplicates.near import NearIndex
from medgr2_jobs.store.rows.candidates import Triplet

ALL: dict[str, Any] = {"selection": {"strategy": "All"}}
QUESTION = "Which abnormality is most clearly visible in the left lung of this patient?"
ASKED = "Which abnormality is most clearly visible in the left lung of this patient here?"
OTHER = "What would be the next step after the finding in the right kidney?"


@pytest.fixture
def made(tmp_path: Path) -> CurateWorkspace:
    return CurateWorkspace(tmp_path)


def limits(hamming: int = 4, jaccard: float = 0.8) -> dict[str, Any]:
    return {**ALL, "nearDuplicates": {"imageHamming": hamming, "textJaccard": jaccard}}


def test_both_image_and_text_must_be_near(made: CurateWorkspace) -> None:
    first, near, far, unhashed = made.free[:4]
    made.prepare_again({first: phash(), near: phash(0, 5, 33, 60), far: FAR})
    candidates = [
        candidate("first", first, QUESTION),
        candidate("both", near, ASKED),
        candidate("text-only", far, ASKED),
        candidate("image-only", near, OTHER),
        candidate("no-hash", unhashed, QUESTION),
        candidate("no-hash-again", unhashed, ASKED),
        candidate("other-answer", near, QUESTION, answer_index=2),
    ]
    expected: dict[str, list[str]] = {row.triplet_id: [] for row in candidates}
    expected |= {"both": ["near_duplicate"], "no-hash-again": ["near_duplicate"]}
    assert made.reasons(candidates, **limits(jaccard=0.85)) == expected
    assert made.reasons(candidates, **limits(hamming=3, jaccard=0.85))["both"] == []
    assert made.reasons(candidates, **ALL) == {name: [] for name in expected}


def test_the_best_scored_stays_then_the_first(made: CurateWorkspace) -> None:
    image = made.free[0]
    candidates = [candidate("low", image, QUESTION), candidate("high", image, ASKED),
                  candidate("tied", image, ASKED + " Really?")]  # fmt: skip
    selection = {"strategy": "Threshold", "threshold": 0.0}
    asked = {**limits(jaccard=0.7), "selection": selection}
    found = made.reasons(candidates, {"low": 5.0, "high": 9.0, "tied": 9.0}, **asked)
    assert found == {"low": ["near_duplicate"], "high": [], "tied": ["near_duplicate"]}


def test_what_is_ruled_out_stands_for_nothing(made: CurateWorkspace) -> None:
    """The better one is too near a benchmark's image; the other one, a bit farther away, is not."""
    held, (near, next_) = made.image("test"), made.free[:2]
    made.prepare_again({held: phash(), near: phash(1, 2, 3, 4), next_: phash(1, 2, 3, 4, 5)})
    candidates = [candidate("near", near, QUESTION), candidate("next", next_, ASKED)]
    scores = {"near": 9.0, "next": 5.0}
    assert made.reasons(candidates, scores, **limits()) == {"near": ["benchmark_near_image"], "next": []}


def test_near_duplicates_are_not_a_chain(made: CurateWorkspace) -> None:
    """b is near a, c is near b and not near a: b goes, and c stays."""
    a, b, c = made.free[:3]
    made.prepare_again({a: phash(), b: phash(1, 2, 3, 4), c: phash(1, 2, 3, 4, 5, 6, 7, 8)})
    candidates = [candidate(name, image, QUESTION) for name, image in (("a", a), ("b", b), ("c", c))]
    assert made.reasons(candidates, **limits()) == {"a": [], "b": ["near_duplicate"], "c": []}


def test_the_same_is_called_the_same(made: CurateWorkspace) -> None:
    image, seed = made.free[0], made.seed[0]
    candidates = [
        candidate("one", image, QUESTION),
        candidate("two", image, QUESTION.upper()),
        candidate("known", seed.image_sha256, seed.question, options=seed.options, answer_index=seed.answer_index),
        candidate("nearly", seed.image_sha256, f"{seed.question} Now?", options=seed.options,
                  answer_index=seed.answer_index),
    ]  # fmt: skip
    assert made.reasons(candidates, **limits(jaccard=0.7)) == {
        "one": [], "two": ["duplicate"], "known": ["overlap"], "nearly": ["near_overlap"],
    }  # fmt: skip
    allowed = made.reasons(candidates, allowOverlap=True, **limits(jaccard=0.7))
    assert allowed == {"one": [], "two": ["duplicate"], "known": [], "nearly": ["near_duplicate"]}


def test_what_an_earlier_iteration_kept_counts_as_known(made: CurateWorkspace) -> None:
    first, near = made.free[:2]
    made.prepare_again({first: phash(), near: phash(7)})
    assert made.curate([candidate("t1", first, QUESTION)], **limits())[0] == 0
    again = [candidate("t2", near, ASKED, iteration=2)]
    assert made.reasons(again, iteration=2, history=made.history, **limits()) == {"t2": ["near_overlap"]}


# -- exhaustively ------------------------------------------------------------------------------------------------------

WORDS = ("left", "right", "lung", "kidney", "mass", "cyst")


@st.composite
def rows(draw: st.DrawFn) -> list[Triplet]:
    count = draw(st.integers(0, 14))
    question = st.lists(st.sampled_from(WORDS), min_size=1, max_size=6).map(" ".join)
    return [
        triplet(str(n), f"i{draw(st.integers(0, 7))}", draw(question), options=("cyst", "mass"),
                answer_index=draw(st.integers(0, 1)))
        for n in range(count)
    ]  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(rows(), rows(), st.data())
def test_pairs_are_those_of_an_exhaustive_comparison(mine: Any, others: Any, data: st.DataObject) -> None:
    limit = data.draw(st.sampled_from([0, 2, 4, 7, 9, 40, 64]))
    jaccard = data.draw(st.sampled_from([0.0, 0.05, 0.4, 0.8, 1.0]))
    flips = st.lists(st.integers(0, 63), max_size=8)
    phashes = {f"i{n}": phash(*data.draw(flips)) for n in range(6)}  # i6 and i7 have none

    def near(a: Triplet, b: Triplet) -> bool:
        left, right = phashes.get(a.image_sha256), phashes.get(b.image_sha256)
        if left and right:
            images = (int(left, 16) ^ int(right, 16)).bit_count() <= limit
        else:
            images = a.image_sha256 == b.image_sha256
        said = [text_fingerprint.shingles(text_fingerprint.text_of(row)) for row in (a, b)]
        return images and text_fingerprint.jaccard(*said) >= jaccard

    index = NearIndex(mine, others, phashes, NearDuplicates(image_hamming=limit, text_jaccard=jaccard))
    assert index.near_others().tolist() == [any(near(row, other) for other in others) for row in mine]
    order = data.draw(st.permutations(range(len(mine))))
    may_keep = data.draw(st.lists(st.booleans(), min_size=len(mine), max_size=len(mine)))
    kept: list[int] = []
    expected = [False] * len(mine)
    for place in order:
        expected[place] = any(near(mine[place], mine[other]) for other in kept)
        if may_keep[place] and not expected[place]:
            kept.append(place)
    assert index.near_kept(order, np.array(may_keep, np.bool_)).tolist() == expected


@pytest.mark.parametrize("shape", SHAPES)
def test_clusters_are_those_of_an_exhaustive_comparison(shape: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_fingerprint, "_FEW", 3)
    mine, phashes = cluster(shape, 240)
    said = [text_fingerprint.shingles(text_fingerprint.text_of(row)) for row in mine]
    bits = [int(phashes[row.image_sha256], 16) for row in mine]

    def near(a: int, b: int) -> bool:
        return (bits[a] ^ bits[b]).bit_count() <= 4 and text_fingerprint.jaccard(said[a], said[b]) >= 0.8

    kept: list[int] = []
    expected = []
    for place in range(len(mine)):
        expected.append(any(near(place, other) for other in kept))
        if not expected[-1]:
            kept.append(place)
    index = NearIndex(mine, mine[:50], phashes, NearDuplicates())
    assert index.near_kept(range(len(mine)), np.ones(len(mine), np.bool_)).tolist() == expected
    assert index.near_others().tolist() == [any(near(n, other) for other in range(50)) for n in range(len(mine))]
    assert len(kept) > 0
    assert (len(kept) < len(mine)) == ("beyond" not in shape)


def test_rows_of_the_same_hash_and_the_same_text_are_compared_once(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[int] = []
    of = phash_index.CloseImages.of

    def counted(self: phash_index.CloseImages, unit: int, *among: Any) -> Any:
        compared.append(unit)
        return of(self, unit, *among)

    monkeypatch.setattr(phash_index.CloseImages, "of", counted)
    mine = [triplet(str(n), f"i{n % 3}", WORDS[n % 2], options=("cyst", "mass")) for n in range(300)]
    phashes = {"i0": phash(), "i1": phash(), "i2": phash(7)}  # the first two look the same
    assert all(NearIndex(mine, mine, phashes, NearDuplicates()).near_others())
    assert sorted(compared) == [0, 1, 2, 3]


@pytest.mark.parametrize("limit", [0, 4, 7, 8, 64])
def test_within_looks_at_every_bit(limit: int) -> None:
    random = np.random.default_rng(limit)
    centres = random.integers(0, 1 << 63, 20, np.uint64)
    flips = [sum(1 << int(bit) for bit in random.choice(64, number % 12, replace=False)) for number in range(300)]
    mine = np.array([int(centres[n % 20]) ^ flip for n, flip in enumerate(flips)], np.uint64)
    found = phash_index.within(
        *(phash_index.ImageCodes(bits, np.ones(len(bits), np.bool_)) for bits in (mine, centres)), limit
    )
    expected = [(np.bitwise_count(value ^ centres) <= limit).any() for value in mine]
    assert found.tolist() == expected
    assert any(expected)


def test_option_order_case_and_punctuation_do_not_count() -> None:
    one = triplet("t", "i", "Where is it?", options=("Left lung", "Right lung"), answer_index=0)
    other = triplet("t", "i", "where  IS it", options=("right lung.", "left lung"), answer_index=1)
    assert text_fingerprint.text_of(one) == text_fingerprint.text_of(other)
    assert text_fingerprint.text_of(one) != text_fingerprint.text_of(replace(one, answer_index=1))
