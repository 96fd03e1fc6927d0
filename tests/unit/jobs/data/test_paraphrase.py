"""Texts in other words, and with fewer: what carries the meaning stays."""

from __future__ import annotations

import random
import re

import pytest

from medgr2_jobs.data import paraphrase


@pytest.mark.parametrize(
    "text",
    [
        "The left lung shows no nodule.",
        "Two lesions are seen in the upper right lobe on MRI.",
        "The image demonstrates a normal CT without fracture, suggesting benign disease.",
    ],
)
def test_what_carries_the_meaning_is_never_replaced(text: str) -> None:
    def meaning(words: str) -> list[str]:
        return [
            word for word in words.lower().replace(",", "").replace(".", "").split() if word in paraphrase.PROTECTED
        ]

    for seed in range(20):
        changed = paraphrase.paraphrase(text, random.Random(seed))
        assert changed not in (None, text)
        assert meaning(changed) == meaning(text)


def test_nothing_to_replace() -> None:
    assert paraphrase.paraphrase("No nodule.", random.Random(0)) is None
    assert paraphrase.paraphrase("The image shows it.", random.Random(0), keep=("image", "shows")) is None
    assert paraphrase.paraphrase("An effusion is present.", random.Random(0)) is None


def test_the_options_words_are_neither_replaced_nor_put_elsewhere() -> None:
    text = "The regions fit."
    assert paraphrase.paraphrase(text, random.Random(0), keep=("a region",)) is None
    synonyms = {"fit": ("match", "suit")}
    found = {
        paraphrase.paraphrase(text, random.Random(s), ("suit",), lambda word: synonyms.get(word, ())) for s in range(9)
    }
    assert found == {"The regions match."}


@pytest.mark.parametrize(
    ("text", "other"),
    [
        ("An image of it.", "A picture of it."),
        ("We see a picture.", "We see an image."),
        ("A unit.", "A picture."),
        ("The image.", "The picture."),
        ("Image.", "Picture."),
    ],
)
def test_an_article_follows_its_word(text: str, other: str) -> None:
    place = re.search("image|picture|unit", text, re.IGNORECASE)
    assert place is not None
    assert paraphrase.put(text, place, "image" if place[0] == "picture" else "picture") == other


def test_no_synonym_is_protected() -> None:
    assert not paraphrase.PROTECTED & set(paraphrase.SYNONYMS)
    assert not paraphrase.PROTECTED & {word for others in paraphrase.SYNONYMS.values() for word in others}


@pytest.mark.parametrize("text", ["one", "one two", "The marks look like cyst.", "a b c d e f g h i j"])
def test_phrases_get_lost(text: str) -> None:
    for seed in range(20):
        left = paraphrase.drop_phrases(text, random.Random(seed)).split()
        assert len(left) == max(0, len(text.split()) - max(2, len(text.split()) // 2))


def test_swap_takes_whole_words() -> None:
    assert paraphrase.swap("Cysts and a cyst.", "cyst", "mass") == "Cysts and a mass."
    assert paraphrase.swap("The massive thing.", "mass", "cyst") is None
    assert paraphrase.swap("a\\b", "a\\b", "\\1") == "\\1"
