"""WordNet's synonyms, where it is at hand: real words, in the same inflection, never of what carries the meaning."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import nltk
import pytest
from tests.cluster import system
from tests.unit.jobs.data.test_graded_dataset import make, phantom_items

from medgr2_jobs.data import paraphrase, wordnet
from medgr2_jobs.data.wordnet import Lexicon
from medgr2_jobs.errors import ConfigError

TEXT = "The physicians see a disrupted cortex of the left femur; this demonstrates two fractures that are often missed."


@pytest.fixture(scope="module")
def nowhere() -> Iterator[None]:
    """nltk has no data, whatever this computer has."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nltk.data, "path", [])
        yield


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory, nowhere: None) -> Path:
    """Debian's WordNet, as it is copied; it is installed where that can be done."""
    if system.missing(system.WORDNET):
        if why := system.not_installable():
            pytest.skip(f"WordNet is not here, and {why}")
        system.install(system.WORDNET)
    found = tmp_path_factory.mktemp("wordnet")
    assert wordnet.find(found) is not None
    return found


@pytest.fixture(scope="module")
def lexicon(cache: Path) -> Lexicon:
    found = wordnet.find(cache)
    assert found is not None
    return found


@pytest.mark.usefixtures("nowhere")
def test_without_wordnet_there_is_no_lexicon(tmp_path: Path) -> None:
    assert wordnet.find(tmp_path / "cache", debian=tmp_path / "none") is None
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("word", "other"),
    [
        ("physician", "doctor"),
        ("physicians", "doctors"),
        ("classes", "categories"),
        ("demonstrates", "exhibits"),
        ("demonstrated", "exhibited"),
        ("demonstrating", "exhibiting"),
        ("examined", "analysed"),
        ("noticed", "observed"),
        ("large", "big"),
        ("frequently", "often"),
    ],
)
def test_synonyms_are_single_words_of_the_same_inflection(lexicon: Lexicon, word: str, other: str) -> None:
    found = lexicon.synonyms(word)
    assert other in found
    assert all(name.isalpha() and name.islower() and name != word for name in found)


@pytest.mark.parametrize(
    ("word", "wrong"), [("demonstrated", "showed"), ("large", "bombastic"), ("indicates", "bespeaks")]
)
def test_no_irregular_no_later_and_no_rare_sense(lexicon: Lexicon, word: str, wrong: str) -> None:
    assert lexicon.synonyms(word)
    assert wrong not in lexicon.synonyms(word)


@pytest.mark.parametrize("word", ["cortex", "femur", "pneumonia", "lesions", "fluid", "region", "radiograph", "two"])
def test_what_carries_the_meaning_has_none(lexicon: Lexicon, word: str) -> None:
    assert lexicon.synonyms(word) == ()


@pytest.mark.parametrize(
    "word", ["characteristic", "shape", "sign", "children", "cut", "xyzzy", "a", "t2", "well-known"]
)
def test_a_word_of_several_kinds_or_of_none_that_we_know_has_none(lexicon: Lexicon, word: str) -> None:
    assert lexicon.synonyms(word) == ()


@pytest.mark.parametrize(
    ("base", "ending", "word"),
    [
        ("study", "s", "studies"),
        ("box", "s", "boxes"),
        ("display", "s", "displays"),
        ("imply", "ed", "implied"),
        ("observe", "ed", "observed"),
        ("observe", "ing", "observing"),
        ("agree", "ing", "agreeing"),
        ("look", "ing", "looking"),
        ("big", "", "big"),
    ],
)
def test_inflections(base: str, ending: str, word: str) -> None:
    assert wordnet.inflect(base, ending) == word


def test_a_text_in_wordnets_words(lexicon: Lexicon) -> None:
    def said(*keep: str) -> set[str]:
        found = {paraphrase.paraphrase(TEXT, random.Random(seed), keep, lexicon.synonyms) for seed in range(30)}
        return {text for text in found if text is not None}

    assert any("doctors" in text for text in said())
    for text in said():
        assert text != TEXT
        assert all(kept in text for kept in ("cortex", "left femur", "two fractures"))
    optic = paraphrase.paraphrase("It reveals the optic disc.", random.Random(0), synonyms=lexicon.synonyms)
    assert optic == "It uncovers the optic disc.", "not the optic record, which is WordNet's"
    assert all("physicians" in text for text in said("physicians"))
    assert said("physicians")


def test_rows_say_whose_words_they_have(lexicon: Lexicon) -> None:
    def told(rationale: str | None, lexicon: Lexicon | None) -> set[str]:
        items = [replace(item, rationale=rationale or item.rationale) for item in phantom_items(3)]
        rows = [row for row in make(items, lexicon=lexicon) if row.grade == "perturbed"]
        assert len(rows) == len(items)
        return {row.perturbation for row in rows}

    assert told(TEXT, None) == {"synonyms"}
    assert told(TEXT, lexicon) == {"wordnet"}
    assert told("An image of a cyst.", lexicon) == {"synonyms"}, "WordNet has no single word for image"
    assert told(None, lexicon) == {"synonyms"}, "phantoms have words of their own"


def test_the_same_rows_each_time(lexicon: Lexicon, cache: Path) -> None:
    items = [replace(item, rationale=TEXT) for item in phantom_items(5)]
    assert make(items, lexicon=lexicon) == make(items, lexicon=wordnet.find(cache))


def test_a_copy_that_was_interrupted_is_made_again(cache: Path, tmp_path: Path) -> None:
    shutil.copytree(cache, tmp_path / "cache")
    folder = tmp_path / "cache/corpora/wordnet"
    (folder / "lexnames").unlink()
    (folder / "data.noun").write_bytes(b"torn")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nltk.data, "path", [])
        again = wordnet.find(tmp_path / "cache")
    assert again is not None
    assert (folder / "data.noun").read_bytes() == (wordnet.DEBIAN / "data.noun").read_bytes()


@pytest.mark.parametrize("zipped", [False, True])
def test_nltks_own_data_are_found_unpacked_or_not(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, zipped: bool
) -> None:
    data = tmp_path / "nltk_data"
    if zipped:
        shutil.make_archive(str(data / "corpora/wordnet"), "zip", cache / "corpora", "wordnet")
    else:
        shutil.copytree(cache, data)
    monkeypatch.setattr(nltk.data, "path", [str(data)])
    found = wordnet.find(tmp_path / "cache", debian=tmp_path / "none")
    assert found is not None
    assert found.synonyms("physicians") == ("doctors",)
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("lost", ["lexnames", "verb.exc", "index.noun"])
def test_half_a_wordnet_is_said(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: str) -> None:
    shutil.copytree(cache, tmp_path / "nltk_data")
    (tmp_path / "nltk_data/corpora/wordnet" / lost).unlink()
    monkeypatch.setattr(nltk.data, "path", [str(tmp_path / "nltk_data")])
    with pytest.raises(ConfigError, match=r"WordNet at .* cannot be read .*install it whole"):
        wordnet.find(tmp_path / "cache")
