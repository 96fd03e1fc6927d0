from __future__ import annotations

import pytest
from tests.support.rows import row_of

from medgr2_api.training_spec import AnswerFormat
from medgr2_jobs.curate.training_set import Origin, TrainingRow
from medgr2_jobs.errors import DataError
from medgr2_jobs.stages.preferences import Asked, choose_prompts, contradicts, grade
from medgr2_jobs.store.rows import Split
from medgr2_jobs.store.rows.prepared import Item

OPTIONS = ["upper left", "lower left", "cyst", "mass"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<think>The marks look like cyst.</think><answer>cyst</answer>", "original"),
        ("<think>A dark ring.</think><answer>C</answer>", "original"),
        ("<think>The marks look like mass.</think><answer>cyst</answer>", "perturbed"),
        ("<think>Not mass but cyst.</think><answer>cyst</answer>", "original"),
        ("<answer>cyst</answer>", "perturbed"),
        ("<think>x</think><answer>cyst</answer> and more", "perturbed"),
        ("cyst", "incoherent"),
        ("<think>x</think><answer>cyst or mass</answer>", "incoherent"),
        ("", "incoherent"),
        ("<think>The marks look like cyst.</think><answer>mass</answer>", "irrelevant"),
        ("<answer>mass</answer>", "irrelevant"),
    ],
)
def test_grade(text: str, expected: str) -> None:
    assert grade(text, OPTIONS, 2, AnswerFormat.OPTION_TEXT) == expected


def test_a_rationale_that_names_no_option_contradicts_nothing() -> None:
    assert not contradicts("<think>Massive cysts.</think><answer>upper left</answer>", OPTIONS, 0)
    assert contradicts("<think>They lie in the lower left.</think><answer>upper left</answer>", OPTIONS, 0)


def learnt(count: int, origin: Origin = Origin.SEED) -> list[TrainingRow]:
    return [
        TrainingRow(f"{origin}{n}", origin, 0, f"{origin}{n}", "CT", "location", "Where?", tuple(OPTIONS), n % 4, "")
        for n in range(count)
    ]


def items(count: int, split: Split) -> list[Item]:
    return [
        row_of(Item, split=split, image_sha256=f"{split}{n}", question="Where?", options=OPTIONS, answer_index=n % 4)
        for n in range(count)
    ]


def shares(prompts: list[Asked]) -> tuple[int, int, int]:
    """Gold and kept of the training part, and held out."""
    train = [prompt for prompt in prompts if prompt.split is Split.TRAIN]
    gold = sum(prompt.gold for prompt in train)
    return gold, len(train) - gold, len(prompts) - len(train)


@pytest.mark.parametrize(
    ("seeds", "kept", "validation", "fraction", "expected"),
    [
        (100, 100, 100, 0.5, (28, 28, 8)),
        (100, 100, 0, 0.5, (32, 32, 0)),  # nothing held out: all for training
        (100, 10, 100, 0.5, (46, 10, 8)),  # few kept: gold fills up
        (10, 100, 100, 0.5, (10, 10, 8)),  # few gold: fewer prompts, not a larger share of the filter's opinion
        (100, 100, 100, 1.0, (56, 0, 8)),
        (100, 100, 100, 0.0, (0, 56, 8)),
        (0, 100, 0, 0.0, (0, 64, 0)),
    ],
)
def test_gold_has_its_share(
    seeds: int, kept: int, validation: int, fraction: float, expected: tuple[int, int, int]
) -> None:
    training = learnt(seeds) + learnt(kept, Origin.GENERATED)
    prepared = items(validation, Split.VALIDATION) + items(5, Split.TEST)
    prompts = choose_prompts(training, prepared, 64, fraction, seed=0)
    assert shares(prompts) == expected
    assert all(prompt.gold for prompt in prompts if prompt.split is Split.HELDOUT)
    assert not any(prompt.question.image_sha256.startswith("test") for prompt in prompts)
    assert prompts == choose_prompts(training, prepared, 64, fraction, seed=0)
    if len(prompts) < seeds + kept + validation:
        assert prompts != choose_prompts(training, prepared, 64, fraction, seed=1)


def test_a_question_is_asked_once() -> None:
    training = learnt(6) + learnt(6)
    assert shares(choose_prompts(training, [], 64, 0.5, seed=0))[0] == 6


def test_nothing_to_ask_is_refused() -> None:
    with pytest.raises(DataError, match="no question to ask"):
        choose_prompts([], items(5, Split.TEST), 8, 0.5, seed=0)
