"""Controls really take away what they say."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
from tests.support.rows import row_of

from medgr2_api.training_spec import AnswerFormat
from medgr2_jobs.evaluate import controls
from medgr2_jobs.models import vlm
from medgr2_jobs.store.images import ImageStore
from medgr2_jobs.store.rows.evaluation import EvalCondition
from medgr2_jobs.store.rows.prepared import Item

Loaded = tuple[Any, Any]


def item(
    item_id: str, image: str, modality: str = "CT", answer: int = 0, options: tuple[str, ...] = ("x", "y")
) -> Item:
    return row_of(Item, item_id=item_id, image_sha256=image, modality=modality, question_type="q",
                  question="What ?", options=options, answer_index=answer)  # fmt: skip


def seen(encoder: vlm.Encoder, row: vlm.PromptResponse) -> tuple[int, int, int] | None:
    """A stub model: the mean colour of the pixels that the row's tensors really hold, on the scale 0 to 255."""
    inputs = encoder.batch([row]).inputs
    if "pixel_values" not in inputs:
        assert encoder.image_token_id not in inputs["input_ids"]
        return None
    processor = encoder.processor.image_processor
    patches = inputs["pixel_values"].view(-1, 3, 2, 14, 14).mean((0, 2, 3, 4)).tolist()
    rgb = [(x * s + m) * 255 for x, s, m in zip(patches, processor.image_std, processor.image_mean, strict=True)]
    return round(rgb[0]), round(rgb[1]), round(rgb[2])


@pytest.fixture
def questions(colours: dict[str, str]) -> list[Item]:
    return [item("1", colours["red"]), item("2", colours["green"]), item("3", colours["red"], answer=1)]


def shown(condition: EvalCondition, questions: list[Item], processor: Any, store: ImageStore) -> list[Any]:
    kind = controls.BlankEncoder if condition is EvalCondition.BLANK else vlm.Encoder
    encoder = kind(processor, store)
    asked = controls.rows(condition, questions, AnswerFormat.OPTION_TEXT)
    assert asked is not None
    return [seen(encoder, row) for row in asked]


def test_what_the_pixels_hold_under_each_condition(
    questions: list[Item], tiny_model: Loaded, store: ImageStore
) -> None:
    red, green, grey = (250, 10, 10), (10, 250, 10), (128, 128, 128)
    assert shown(EvalCondition.REAL, questions, tiny_model[1], store) == [red, green, red]
    assert shown(EvalCondition.BLANK, questions, tiny_model[1], store) == [grey, grey, grey]
    assert shown(EvalCondition.SHUFFLED, questions, tiny_model[1], store) == [green, red, green]
    assert shown(EvalCondition.OPTIONS_ONLY, questions, tiny_model[1], store) == [None, None, None]


def test_blank_keeps_the_size_and_so_the_number_of_tokens(
    colours: dict[str, str], tiny_model: Loaded, store: ImageStore
) -> None:
    real = vlm.Encoder(tiny_model[1], store)
    blank = controls.BlankEncoder(real.processor, store)
    for sha256 in colours.values():
        assert blank.image(sha256).size == store.load(sha256).size
        assert blank.image_tokens(sha256) == real.image_tokens(sha256)


def test_options_only_shows_neither_question_nor_image(questions: list[Item]) -> None:
    rows = controls.rows(EvalCondition.OPTIONS_ONLY, questions, AnswerFormat.OPTION_TEXT)
    assert rows is not None
    assert [(row.image_sha256, row.prompt) for row in rows] == [(None, "x, y")] * 3
    letters = controls.rows(EvalCondition.OPTIONS_ONLY, questions, AnswerFormat.LETTER)
    assert letters is not None
    assert letters[0].prompt.startswith("A. x\nB. y\n")


def test_a_derangement_moves_every_image_within_its_modality() -> None:
    items = [item(str(n), f"image{n % 30}", modality="CT" if n % 30 < 20 else "MRI") for n in range(90)]
    items.append(item("x", "alone", modality="OCT"))
    mapping = controls.derangement(items)
    assert mapping is not None
    modality = {entry.image_sha256: entry.modality for entry in items}
    assert set(mapping) == set(modality)
    assert all(source != target for source, target in mapping.items())
    assert all(modality[s] == modality[t] for s, t in mapping.items() if s != "alone")
    within = [t for s, t in mapping.items() if s != "alone"]
    assert len(set(within)) == len(within)  # one to one: no image is shown more often than before
    assert mapping == controls.derangement(items[::-1])  # the same for every iteration and every order of rows


def test_a_single_image_cannot_be_shuffled() -> None:
    assert controls.derangement([item("1", "only"), item("2", "only")]) is None
    assert controls.rows(EvalCondition.SHUFFLED, [item("1", "only")], AnswerFormat.LETTER) is None


def test_option_prior_learns_which_texts_tend_to_be_right() -> None:
    training = [item("a", "i", options=("Cyst", "mass", "plaque"), answer=0) for _ in range(10)]
    prior = controls.OptionPrior(training)
    assert prior.predict(item("t", "j", options=("mass", "plaque", "cyst ")))[0] == 2
    known = prior.logprobs(item("t", "j", options=("cyst", "mass", "new")))
    chance = 1 / 3
    expected = [(10 + chance) / 11, chance / 11, chance]
    assert [round(2.718281828459045**value, 6) for value in known] == [round(value, 6) for value in expected]


def test_option_prior_has_no_favourite_position_when_it_knows_nothing() -> None:
    prior = controls.OptionPrior([])
    picks = [prior.predict(item(str(n), "i", options=("a1", "b1", "c1", "d1")))[0] for n in range(400)]
    counts = [picks.count(position) for position in range(4)]
    assert sum(counts) == 400
    assert min(counts) > 70
    assert picks == [prior.predict(item(str(n), "i", options=("a1", "b1", "c1", "d1")))[0] for n in range(400)]


def accuracy(prior: controls.OptionPrior, items: list[Item]) -> float:
    return sum(prior.predict(item)[0] == item.answer_index for item in items) / len(items)


def spelled(count: int, modality: str, right: str, wrong: str, source: str = "train") -> list[Item]:
    """Questions that offer one text in two spellings (or two texts), of which one is always right."""
    return [
        replace(
            item(f"{modality}{n}", "i", modality, n % 2, (right, wrong) if n % 2 == 0 else (wrong, right)),
            source=source,
        )
        for n in range(count)
    ]


def test_the_spelling_of_an_option_gives_it_away() -> None:
    """Right 100 % of the time in lower case, never with a capital; and other spellings of the same in the test."""
    training = spelled(120, "CT", "liver", "Liver")
    assert accuracy(controls.OptionPrior(training), spelled(40, "CT", "liver", "Liver", source="bench")) == 1
    mixed = [*spelled(60, "CT", "Cyst", "MASS"), *spelled(60, "CT", "cyst.", "mass")]
    assert accuracy(controls.OptionPrior(mixed), spelled(40, "CT", "CYST", "Mass", source="bench")) == 1


def test_each_modality_is_guessed_by_itself() -> None:
    training = [*spelled(120, "CT", "cyst", "mass"), *spelled(120, "MRI", "mass", "cyst")]
    prior = controls.OptionPrior(training)
    for modality, right, wrong in (("CT", "cyst", "mass"), ("MRI", "mass", "cyst")):
        assert accuracy(prior, spelled(40, modality, right, wrong, source="bench")) == 1


def test_each_source_is_guessed_by_itself() -> None:
    training = [*spelled(120, "CT", "cyst", "mass", "one"), *spelled(120, "CT", "mass", "cyst", "other")]
    prior = controls.OptionPrior(training)
    assert accuracy(prior, spelled(40, "CT", "cyst", "mass", "one")) == 1
    assert accuracy(prior, spelled(40, "CT", "mass", "cyst", "other")) == 1


def test_a_modality_with_few_questions_is_guessed_by_what_is_known_of_all() -> None:
    prior = controls.OptionPrior([*spelled(120, "CT", "cyst", "mass"), *spelled(6, "OCT", "mass", "cyst")])
    assert accuracy(prior, spelled(40, "OCT", "cyst", "mass")) == 1
    assert accuracy(prior, spelled(40, "Fundus", "cyst", "mass")) == 1


def test_what_nothing_gives_away_stays_at_chance() -> None:
    draw = random.Random(3)
    words = [f"{a}{b}" for a in "abcdefghij" for b in "uvwxyz"]

    def fair(count: int, name: str) -> list[Item]:
        return [
            item(f"{name}{n}", "i", draw.choice(["CT", "MRI"]), draw.randrange(4), tuple(draw.sample(words, 4)))
            for n in range(count)
        ]

    assert 0.2 < accuracy(controls.OptionPrior(fair(3000, "t")), fair(2000, "x")) < 0.3
