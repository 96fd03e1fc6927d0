"""D_grade: every seed item in the paper's four grades, and beside the wrong image (docs/decisions.md, 2).

| grade | target | perturbation | response |
|---|---|---|---|
| original | 10 | none | the item's rationale and gold answer |
| perturbed | 6 | wordnet, synonyms | the same in WordNet's words, else in those of a table; left out without any |
| incoherent | 0 | phraseDeletion | the rationale without half of its words, gold answer |
| irrelevant | -6 | wrongAnswer | a wrong answer with a rationale for it |
| irrelevant | -6 | rationaleAgainstAnswer | the right rationale, a wrong answer |
| irrelevant | -6 | otherRationale | another question's rationale, a wrong answer |
| irrelevant | -6 | flippedFinding | the item's rationale with a finding turned into its opposite, gold answer |
| imageMismatch | -6 | otherImage, otherModality | the item's response beside another image |

Works for any data: an item without rationale gets a neutral sentence that names the option.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from medgr2_api.reward_model import Grades
from medgr2_api.training_spec import AnswerFormat

from ..prompts import answers
from ..store.rows import Split
from ..store.rows.prepared import Grade, GradedRow, Item
from . import finding_negation, paraphrase, synthetic_images
from .wordnet import Lexicon

#: Of the mixed wrong rows: how many contradict themselves, how many talk of something else (the rest is left out).
_AGAINST, _OTHER = 0.4, 0.2
#: How often a wrong row comes in other words: as often as a right one (original and perturbed), so that the wording
#: gives no grade away. GRPO finds such a shortcut at once: with 0.15 the policy learnt to paraphrase, not to answer.
_PARAPHRASED_WRONG = 0.5
#: Answers that say nothing without their question, normalised.
_POLAR = frozenset({"yes", "no", "true", "false"})


def rationale_for(item: Item) -> str:
    """The item's rationale, or a neutral sentence that names its gold option."""
    return item.rationale or neutral(item.options[item.answer_index])


def neutral(option: str) -> str:
    """A rationale that says nothing but the option."""
    return f"The image fits the option {option}."


@dataclass(frozen=True)
class _Text:
    rationale: str
    index: int


def rows(
    items: Iterable[Item],
    *,
    pool: Sequence[Item],
    grades: Grades,
    mismatches: int,
    answer_format: AnswerFormat,
    seed: int,
    lexicon: Lexicon | None = None,
) -> Iterator[GradedRow]:
    """D_grade of items of one split, in the order of the items.

    Args:
        items: read once.
        pool: items of the same split, which other images and other rationales are taken from.
        grades: the targets.
        mismatches: how many wrong answers, mixed wrong rows and wrong images each item gets; at 0 it gets one row
            with another question's rationale, so that the paper's fourth grade is there.
        answer_format: how responses are written.
        seed: decides what is changed, item by item.
        lexicon: WordNet, where it is at hand.
    """
    others = _Pool(pool)
    targets = {
        Grade.ORIGINAL: grades.original,
        Grade.PERTURBED: grades.perturbed,
        Grade.INCOHERENT: grades.incoherent,
        Grade.IRRELEVANT: grades.irrelevant,
        Grade.IMAGE_MISMATCH: grades.image_mismatch,
    }
    for item in items:
        rng = random.Random(f"grades/{seed}/{item.item_id}")
        words = _Words(item, lexicon, rng)
        variants = [*_texts(item, mismatches, others, words, rng)]
        for why, other_image in others.images(item, mismatches, rng):
            variants.append(
                (Grade.IMAGE_MISMATCH, why, _Text(words.often(rationale_for(item)), item.answer_index), other_image)
            )
        # phantoms are drawn for questions that only the image answers: they have all they need of the above
        flipped = (
            finding_negation.flip(item.rationale, rng) if synthetic_images.paraphrase(item.rationale) is None else None
        )
        if flipped is not None and mismatches:
            variants.append((Grade.IRRELEVANT, "flippedFinding", _Text(words.often(flipped), item.answer_index), item))
        for number, (grade, perturbation, text, other_image) in enumerate(variants):
            yield GradedRow(
                sample_id=f"{item.item_id}#{number}",
                item_id=item.item_id,
                source=item.source,
                split=Split.TRAIN if item.split is Split.TRAIN else Split.HELDOUT,
                image_sha256=other_image.image_sha256,
                modality=other_image.modality,
                question_type=item.question_type,
                question=item.question,
                options=item.options,
                response=answers.response(text.rationale, text.index, item.options, answer_format),
                grade=grade,
                target=targets[grade],
                perturbation=perturbation,
                seed=seed,
            )


@dataclass(frozen=True)
class _Words:
    """Other words for an item's texts: WordNet's, or those of the table for a text of which it knows no word."""

    item: Item
    lexicon: Lexicon | None
    rng: random.Random

    def other(self, text: str) -> tuple[str, str] | None:
        """(perturbation, the same in other words); None when there are none."""
        keep = self.item.options
        if self.lexicon is not None and synthetic_images.paraphrase(text) is None:
            reworded = paraphrase.paraphrase(text, self.rng, keep, self.lexicon.synonyms)
            if reworded is not None:
                return "wordnet", reworded
        reworded = paraphrase.paraphrase(text, self.rng, keep)
        return None if reworded is None else ("synonyms", reworded)

    def often(self, text: str) -> str:
        """A wrong row's rationale, paraphrased as often as a right row's."""
        if self.rng.random() >= _PARAPHRASED_WRONG:
            return text
        other = self.other(text)
        return other[1] if other else text


def _texts(
    item: Item, mismatches: int, pool: _Pool, words: _Words, rng: random.Random
) -> Iterator[tuple[Grade, str, _Text, Item]]:
    """The rows that change the text and keep the image."""
    gold = item.answer_index
    right = rationale_for(item)
    wrong = [index for index in range(len(item.options)) if index != gold]
    rng.shuffle(wrong)

    yield Grade.ORIGINAL, "none", _Text(right, gold), item
    perturbed = words.other(right)
    if perturbed is not None and perturbed[1] != right:
        yield Grade.PERTURBED, perturbed[0], _Text(perturbed[1], gold), item
    yield Grade.INCOHERENT, "phraseDeletion", _Text(paraphrase.drop_phrases(right, rng), gold), item
    if mismatches == 0:
        yield Grade.IRRELEVANT, "otherRationale", _Text(pool.other_rationale(item, rng), wrong[0]), item
    for number in range(mismatches):
        index = wrong[number % len(wrong)]
        believed = words.often(pool.rationale_of_wrong(item, index, rng))
        yield Grade.IRRELEVANT, "wrongAnswer", _Text(believed, index), item
        draw = rng.random()
        if draw < _AGAINST:
            yield Grade.IRRELEVANT, "rationaleAgainstAnswer", _Text(words.often(right), index), item
        elif draw < _AGAINST + _OTHER:
            yield Grade.IRRELEVANT, "otherRationale", _Text(pool.other_rationale(item, rng), index), item


class _Pool:
    """Where other images and other rationales come from: the items of the same split."""

    def __init__(self, items: Sequence[Item]) -> None:
        self.items = items
        self._by_answer: dict[tuple[str, str], list[Item]] = defaultdict(list)
        self._types: dict[str, list[Item]] = defaultdict(list)
        #: One item per image, by modality: enough to show it.
        self._images: dict[str, dict[str, Item]] = defaultdict(dict)
        #: What is known of an image: its answers to what is asked, and to anything.
        self._known: dict[tuple[str, str], set[str]] = defaultdict(set)
        self._named: dict[str, set[str]] = defaultdict(set)
        for item in items:
            gold = answers.normalise(item.options[item.answer_index])
            self._by_answer[item.question_type, gold].append(item)
            self._types[item.question_type].append(item)
            self._images[item.modality].setdefault(item.image_sha256, item)
            self._known[item.image_sha256, _asked(item, gold)].add(gold)
            if gold not in _POLAR:
                self._named[item.image_sha256].add(gold)
        self._shown = {modality: list(by_image.values()) for modality, by_image in self._images.items()}

    def rationale_of_wrong(self, item: Item, index: int, rng: random.Random) -> str:
        """A rationale for a wrong option: the item's own with the option exchanged, else that of an item where it is
        right, else the neutral sentence."""
        gold, option = item.options[item.answer_index], item.options[index]
        own = item.rationale
        if not own:
            return neutral(option)
        exchanged = paraphrase.swap(own, gold, option)
        if exchanged is not None:
            return exchanged
        others = self._by_answer.get((item.question_type, answers.normalise(option)), [])
        return rationale_for(rng.choice(others)) if others else neutral(option)

    def other_rationale(self, item: Item, rng: random.Random) -> str:
        """Another question's rationale, of another type where there is one."""
        types = [name for name in self._types if name != item.question_type]
        if types:
            return rationale_for(rng.choice(self._types[rng.choice(types)]))
        for _ in range(8):
            other = rng.choice(self.items)
            if other.question != item.question:
                return rationale_for(other)
        return "The text is about something else."

    def images(self, item: Item, count: int, rng: random.Random) -> Iterator[tuple[str, Item]]:
        """Up to `count` other images beside which the item's text is wrong, as (perturbation, an item that shows it).

        Of the same modality where possible, so that the modality alone does not give it away; a question that the
        modality answers needs another one. Images whose answer is known to be one of the other options come first:
        of the others we only know that nothing says the answer is the same.
        """
        names = [item.modality]
        if _asks_modality(item):
            names = []
        same = self._choose(item, names, rng, count)
        for other in same:
            yield "otherImage", other
        if same or not count:
            return
        elsewhere = [name for name in self._shown if name != item.modality]
        for other in self._choose(item, elsewhere, rng, count):
            yield "otherModality", other

    def _choose(self, item: Item, modalities: Sequence[str], rng: random.Random, count: int) -> list[Item]:
        gold = answers.normalise(item.options[item.answer_index])
        others = {answers.normalise(option) for option in item.options} - {gold}
        asked_kind = _asked(item, gold)
        certain: list[Item] = []
        unknown: list[Item] = []
        pools = [self._shown[name] for name in modalities if self._shown.get(name)]
        total = sum(map(len, pools))
        for _ in range(min(64, 4 * total)):  # a sample is enough; scanning all pairs would be quadratic
            if len(certain) >= count:
                break
            other = rng.choice(rng.choice(pools))
            if other.image_sha256 == item.image_sha256 or other in certain or other in unknown:
                continue
            known_answers = self._known.get((other.image_sha256, asked_kind), set())
            if gold in known_answers or gold in self._named[other.image_sha256]:
                continue
            if known_answers & others:
                certain.append(other)
            elif not (_asks_modality(item) and other.modality == item.modality):
                unknown.append(other)
        return (certain + unknown)[:count]


def _asked(item: Item, gold: str) -> str:
    """What the answer is an answer to: a named finding to all questions of its type, a yes to its question alone."""
    return answers.normalise(item.question) if gold in _POLAR else item.question_type


def _asks_modality(item: Item) -> bool:
    """Whether the image's modality is what the question asks for."""
    gold = answers.normalise(item.options[item.answer_index])
    return gold == answers.normalise(item.modality) or "modality" in answers.normalise(item.question_type)
