"""Changing words: light paraphrase (grade `perturbed`) and lost phrases (grade `incoherent`).

Synonyms are those of a small table of general words, or of whoever the caller names (`wordnet.py`, as in the paper).
Whatever carries the meaning of a finding is never touched: laterality, negation, numbers, anatomy, modality.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence

from . import synthetic_images

#: Groups of general words that may stand for each other. Same word class and inflection within a group.
_GROUPS = (
    "shows displays demonstrates presents reveals",
    "show display demonstrate present reveal",
    "showing displaying demonstrating presenting revealing",
    "shown displayed demonstrated presented",
    "indicates suggests",
    "indicate suggest",
    "indicating suggesting",
    "appears seems looks",
    "appear seem look",
    "seen observed noted visible",
    "image picture",
    "images pictures",
    "typical characteristic",
    "consistent compatible",
    "because since",
    "therefore thus hence consequently",
    "also additionally moreover",
    "important relevant",
    "clear evident obvious",
    "clearly evidently obviously",
    "likely probable",
    "often frequently commonly",
    "usually generally typically",
    "option choice alternative",
    "answer response",
    "question query",
    "correct accurate",
    "fits matches suits",
    "help assist",
    "helps assists",
    "need require",
    "needs requires",
    "area region zone",
    "areas regions zones",
    "feature trait attribute",
    "features traits attributes",
    "finding observation",
    "findings observations",
    "shape form contour",
    "big large",
    "bigger larger",
    "about around approximately",
    "several various",
    "within inside",
    "used employed utilised",
    "use employ utilise",
    "using employing utilising",
    "given provided",
    "described characterised",
    "description account",
    "conclude infer",
    "evaluate assess",
    "evaluated assessed",
)

_PROTECTED_WORDS = """
left right upper lower bilateral unilateral ipsilateral contralateral medial lateral anterior posterior superior
inferior proximal distal dorsal ventral central peripheral apical basal
no not none never without with absent absence present presence negative positive nor neither cannot normal abnormal
increased decreased thickened thinned dilated narrowed symmetric asymmetric regular irregular
one two three four five six seven eight nine ten single double first second third many few multiple several
numerous
ct mri mr xray x-ray radiograph ultrasound sonography dermoscopy fundus oct microscopy histology mammography
t1 t2 flair doppler
lung heart liver brain kidney spleen bone skin retina eye breast chest abdomen pelvis spine thorax colon stomach
knee hip shoulder ankle wrist vessel artery vein nerve muscle lymph thyroid prostate bladder pancreas uterus ovary
disc disk optic cup head neck body base root apex arch wall valve chamber canal cord column lobe cell tissue gland duct
septum sinus tract joint ligament tendon cartilage meniscus rib
nodule cyst plaque fissure mass deposit lesion tumor tumour fracture edema oedema effusion pneumonia hemorrhage
benign malignant carcinoma melanoma adenoma
"""
#: Never replaced and never a replacement, whatever the table says.
PROTECTED = frozenset(_PROTECTED_WORDS.split())

_WORD = re.compile(r"[A-Za-z][A-Za-z0-9-]*")
#: "a " or "an " at the end; its group is the "a".
_ARTICLE = re.compile(r"\b(a)n?\s$", re.IGNORECASE)
_VOWEL = re.compile(r"(?!uni|us[eu]|eu|one)[aeiou]", re.IGNORECASE)


def _table() -> dict[str, tuple[str, ...]]:
    table: dict[str, tuple[str, ...]] = {}
    for group in _GROUPS:
        words = [word for word in group.split() if word not in PROTECTED]
        for word in words:
            others = tuple(other for other in words if other != word)
            if others:
                table[word] = others
    return table


SYNONYMS = _table()


def of_table(word: str) -> tuple[str, ...]:
    """The table's synonyms of a lower-case word."""
    return SYNONYMS.get(word, ())


def paraphrase(
    text: str,
    rng: random.Random,
    keep: tuple[str, ...] = (),
    synonyms: Callable[[str], Sequence[str]] = of_table,
) -> str | None:
    """The same statement with up to a third of its words replaced by synonyms; None when no word has one.

    Args:
        text: a rationale.
        rng: chooses words and synonyms.
        keep: phrases whose words stay and are put nowhere else, such as the options.
        synonyms: those of a lower-case word.
    """
    template = synthetic_images.paraphrase(text)
    if template is not None:
        return template
    protected = PROTECTED | {word.lower() for phrase in keep for word in _WORD.findall(phrase)}
    words = list(_WORD.finditer(text))
    others: dict[str, list[str]] = {}
    for word in {match[0].lower() for match in words}:
        if not {word, word.removesuffix("s"), word.removesuffix("es")} & protected:
            others[word] = [other for other in synonyms(word) if other not in protected]
    places = [match for match in words if others.get(match[0].lower())]
    if not places:
        return None
    chosen = rng.sample(places, min(len(places), max(1, len(words) // 3)))
    for match in sorted(chosen, key=lambda place: -place.start()):
        text = put(text, match, rng.choice(others[match[0].lower()]))
    return text


def put(text: str, place: re.Match[str], other: str) -> str:
    """The text with other words at a place, in the place's capitals; an article before it follows their first sound."""
    before = text[: place.start()]
    article = _ARTICLE.search(before)
    if article and bool(_VOWEL.match(place[0])) != bool(_VOWEL.match(other)):
        before = before[: article.end(1)] + ("n " if _VOWEL.match(other) else " ")
    if place[0][0].isupper():
        other = other[0].upper() + other[1:]
    return before + other + text[place.end() :]


def drop_phrases(text: str, rng: random.Random) -> str:
    """The text without about half of its words, at least two, in random phrases of one or two words."""
    words = text.split()
    lost: set[int] = set()
    target = min(len(words), max(2, len(words) // 2))
    while len(lost) < target:
        start = rng.randrange(len(words))
        lost.update(range(start, min(len(words), start + rng.choice((1, 2)), start + target - len(lost))))
    return " ".join(word for index, word in enumerate(words) if index not in lost)


def swap(text: str, old: str, new: str) -> str | None:
    """The text with every whole-word occurrence of `old` replaced by `new`; None when there is none."""
    pattern = re.compile(rf"(?<!\w){re.escape(old)}(?!\w)", re.IGNORECASE)
    changed, count = pattern.subn(lambda _: new, text)
    return changed if count else None
