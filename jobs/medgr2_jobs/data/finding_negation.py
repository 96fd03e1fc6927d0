"""Turning one finding of a text into its opposite: laterality, presence, number (docs/decisions.md, 2).

The text stays plausible, only the image can tell that it is wrong: without such rows a reward model need not look.
Every rule therefore has its reverse, or leaves a phrase that right texts have as well: no word gives the grade away.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable

from . import paraphrase

_PAIRS = (
    "left right",
    "upper lower",
    "superior inferior",
    "anterior posterior",
    "medial lateral",
    "proximal distal",
    "central peripheral",
    "unilateral bilateral",
    "normal abnormal",
    "benign malignant",
    "increased decreased",
    "thickened thinned",
    "dilated narrowed",
    "symmetric asymmetric",
    "regular irregular",
)
OPPOSITES = {a: b for pair in _PAIRS for a, b in (pair.split(), pair.split()[::-1])}
_PRESENCE = {
    "within normal limits": "outside normal limits",
    "outside normal limits": "within normal limits",
    "no sign of": "a sign of",
    "without any": "with",
    "without": "with",
    "absent": "present",
    "is present": "is absent",
    "are present": "are absent",
    "is not": "is",
    "are not": "are",
}
#: Numbers of findings: a plural stays one, so that the verb agrees.
_NUMBERS = (
    dict(zip(("two", "three", "four", "five", "six"), ("four", "five", "two", "three", "three"), strict=True))
    | dict(zip("23456", "45233", strict=True))
    | dict.fromkeys(("multiple", "several", "numerous"), "two")
)
_FINDINGS = (
    "abnormalities|abscesses|adenomas|aneurysms|calcifications|calculi|cavities|cysts|defects|deposits|effusions|"
    "erosions|exudates|findings|fissures|foci|fractures|granulomas|haemorrhages|hemorrhages|infarcts|infiltrates|"
    "lesions|marks|masses|metastases|microaneurysms|nodules|opacities|osteophytes|papules|plaques|polyps|stones|"
    "tears|tumors|tumours|ulcers"
)


def _any(words: dict[str, str]) -> str:
    return "|".join(sorted(words, key=len, reverse=True))


_SIDE = (  # not "the right answer", "left to right", "a lateral view", "lower than"
    rf"(?<![\w-])(?<!to )({_any(OPPOSITES)})(?![\w-]|\s+(?:answer|option|choice|one|diagnosis|to|than|limits|views?|"
    r"projections?|films?|radiographs?)\b)|(?<![\w-])(?:left|right)(?=-sided)"
)
_DENIED = r"\bno\s+(?!sign of|longer|more|other|less|doubt|matter|one|further|because)([a-z])"
_THERE = (
    rf"\b(there (?:is|are))\s+(?!(?:no|not|without|also|still|{_any(_NUMBERS)}|one|many|few|[a-z]+ly)\b)(?:an?\s+)?"
    r"(?=[a-z])"
)
_COUNTED = rf"\b({_any(_NUMBERS)})(?=(?:\s+[a-z-]+){{0,2}}\s+(?:{_FINDINGS})\b)"
#: A pattern, and what takes the place of its match.
_RULES: tuple[tuple[re.Pattern[str], Callable[[re.Match[str]], str]], ...] = tuple(
    (re.compile(pattern, re.IGNORECASE), other)
    for pattern, other in (
        (_SIDE, lambda found: OPPOSITES[found[0].lower()]),
        (rf"\b({_any(_PRESENCE)})\b(?!\s+only\b)", lambda found: _PRESENCE[found[0].lower()]),
        (_DENIED, lambda found: found[1]),
        (_THERE, lambda found: f"{found[1]} no "),
        (_COUNTED, lambda found: _NUMBERS[found[0].lower()]),
    )
)


def flip(text: str, rng: random.Random) -> str | None:
    """The text with one of its findings turned into the opposite; None when it has none that we know.

    A word that stands several times is turned everywhere, so that the text does not contradict itself.

    Args:
        text: a rationale.
        rng: chooses which.
    """
    terms: dict[str, list[tuple[re.Match[str], str]]] = {}
    for pattern, other in _RULES:
        for match in pattern.finditer(text):
            terms.setdefault(match[0].lower(), []).append((match, other(match)))
    if not terms:
        return None
    for match, other_words in reversed(rng.choice(list(terms.values()))):
        text = paraphrase.put(text, match, other_words)
    return text
