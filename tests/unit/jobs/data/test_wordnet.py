"""WordNet's synonyms, where it is at hand: real words, in the same inflection, never of what carries the meaning."""

from __future__ import annotations

import random
from pathlib import Path

import nltk
import pytest
from tests.cluster import system
from tests.unit.jobs.data.test_grades import make, phantom_items

from medgr2_jobs.data import wording, wordnet
from medgr2_jobs.data.wordnet import Lexicon

TEXT = "The physicians see a disrupted cortex of the left femur; this demonstrates two fractures that are often missed."


@pytest.fixture(autouse=True)
def no_data_of_nltk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(nltk.data, "path", [str(tmp_path / "none")])


@pytest.fixture
def lexicon(tmp_path: Path) -> Lexicon:
    """Debian's WordNet; it is installed where that can be done."""
    if not (wordnet.DEBIAN / "data.noun").is_file():
        if why := system.obstacle():
            pytest.skip(why)
        system.install()
    found = wordnet.find(tmp_path / "cache")
    assert found is not None
    return found


def test_without_wordnet_there_is_no_lexicon(tmp_path: Path) -> None:
    assert wordnet.find(tmp_path / "cache", debian=tmp_path / "none") is None


def test_synonyms_are_single_words_of_the_same_inflection(lexicon: Lexicon) -> None:
    assert "doctors" in lexicon.synonyms("physicians")
    assert "doctor" in lexicon.synonyms("physician")
    assert {"shows", "exhibits"} & set(lexicon.synonyms("demonstrates"))
    for word in ("physicians", "demonstrates", "frequently", "widespread"):
        assert all(other.isalpha() and other.islower() and other != word for other in lexicon.synonyms(word))
    assert lexicon.synonyms("xyzzy") == ()


@pytest.mark.parametrize("word", ["cortex", "femur", "pneumonia", "left", "two", "large", "picture", "children"])
def test_what_carries_the_meaning_or_has_several_stays(lexicon: Lexicon, word: str) -> None:
    assert lexicon.synonyms(word) == ()


def test_a_text_in_wordnets_words(lexicon: Lexicon) -> None:
    said = {wording.paraphrase(TEXT, random.Random(seed), lexicon=lexicon) for seed in range(30)}
    assert any("doctors" in (text or "") for text in said)
    for text in said:
        assert text is not None
        for kept in ("cortex", "left", "femur", "two"):
            assert kept in text
    assert wording.paraphrase(TEXT, random.Random(1), keep=("physicians",), lexicon=lexicon) is not None
    kept = {wording.paraphrase(TEXT, random.Random(s), keep=("physicians",), lexicon=lexicon) for s in range(30)}
    assert all("physicians" in (text or "") for text in kept)


def test_rows_say_whose_words_they_have(lexicon: Lexicon) -> None:
    items = [{**item, "rationale": TEXT} for item in phantom_items(3)]
    assert {row["perturbation"] for row in make(items) if row["grade"] == "perturbed"} == {"synonyms"}
    told = {row["perturbation"] for row in make(items, lexicon=lexicon) if row["grade"] == "perturbed"}
    assert told == {"wordnet"}


def test_a_copy_that_was_interrupted_is_made_again(lexicon: Lexicon, tmp_path: Path) -> None:
    folder = tmp_path / "cache/corpora/wordnet"
    (folder / "lexnames").unlink()
    (folder / "data.noun").write_bytes(b"torn")
    again = wordnet.find(tmp_path / "cache")
    assert again is not None
    assert "doctor" in again.synonyms("physician")
