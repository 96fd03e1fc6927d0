"""The scripted generator errs at its rates, systematically, and the same way each time."""

from __future__ import annotations

from collections import Counter, defaultdict

import pytest

from medgr2_api.generator import ResolvedScripted, ScriptedErrors
from medgr2_api.training_spec import AnswerFormat
from medgr2_jobs.data import synthetic_images
from medgr2_jobs.generate import scripted_generator
from medgr2_jobs.generate.scripted_generator import Proposal
from medgr2_jobs.prompts import answers

FORMAT = AnswerFormat.OPTION_TEXT
RATES = ResolvedScripted(error_rate=0.45, blind_spots=0.0, irrelevant_rate=0.08, incoherent_rate=0.07)


def run(rates: ResolvedScripted, count: int = 800) -> list[tuple[synthetic_images.Attributes, str, Proposal]]:
    """What a phantom shows, which kind of question was asked, and what was proposed."""
    made = []
    for index in range(count):
        shown = synthetic_images.attributes(1, index)
        for kind in synthetic_images.KINDS:
            made.append(
                (
                    shown,
                    kind,
                    scripted_generator.propose(
                        shown, kind, scripted_generator.rng_for(0, f"{index:064x}", kind), rates, FORMAT
                    ),
                )
            )
    return made


def test_rates_and_truth() -> None:
    made = run(RATES)
    kinds = Counter(row.kind for _, _, row in made)
    assert kinds["irrelevant"] / len(made) == pytest.approx(0.08, abs=0.02)
    assert kinds["incoherent"] / len(made) == pytest.approx(0.07, abs=0.02)
    by_place: dict[int, list[bool]] = defaultdict(list)
    for shown, kind, row in made:
        truth = shown.value(kind)
        assert row.correct == (row.options[row.answer_index] == truth) == (row.kind == "good")
        assert answers.extract(row.response, row.options, FORMAT) == row.answer_index
        by_place[synthetic_images.VALUES[kind].index(truth) % 2].append(row.kind == "hallucinated")
    assert sum(by_place[0]) / len(by_place[0]) == pytest.approx(0.45, abs=0.03)
    assert sum(by_place[1]) / len(by_place[1]) == pytest.approx(0.10, abs=0.03)


def test_confusions_are_systematic() -> None:
    for shown, kind, row in run(RATES, 200):
        values = synthetic_images.VALUES[kind]
        believed = values[(values.index(shown.value(kind)) + 1) % len(values)]
        if row.kind == "hallucinated" and believed in row.options:
            assert row.options[row.answer_index] == believed
            assert believed in row.rationale


@pytest.mark.parametrize("share", [1 / 3, 0.5, 1.0])
def test_blind_spots_are_never_right(share: float) -> None:
    rates = RATES.model_copy(update={"blind_spots": share, "error_rate": 0.1})
    right = Counter[tuple[str, str]]()
    for shown, kind, row in run(rates, 300):
        right[kind, shown.value(kind)] += row.correct
    every = round(1 / share)
    for kind, values in synthetic_images.VALUES.items():
        for index, value in enumerate(values):
            assert scripted_generator.is_blind(kind, value, share) == (index % every == 0)
            assert (right[kind, value] == 0) == (index % every == 0)


@pytest.mark.parametrize(("blind_spots", "error_rate"), [(0.34, 0.1), (0.0, 0.95)])
def test_uniform_errors_are_as_many_and_tell_nothing(blind_spots: float, error_rate: float) -> None:
    by_value = RATES.model_copy(update={"blind_spots": blind_spots, "error_rate": error_rate})
    uniform = by_value.model_copy(update={"errors": ScriptedErrors.UNIFORM})
    for kind, values in synthetic_images.VALUES.items():
        of_values = [scripted_generator.error_shares(kind, value, by_value) for value in values]
        of_kind = {scripted_generator.error_shares(kind, value, uniform) for value in values}
        assert len(of_kind) == 1, "no value is worse than another"
        for at, share in enumerate(of_kind.pop()):
            assert share <= 1
            assert share == pytest.approx(sum(shares[at] for shares in of_values) / len(of_values))

    made = run(uniform, 2000)
    of_each = {name: Counter(row.kind for _, _, row in run(rates, 2000)) for name, rates in
               (("by value", by_value), ("uniform", uniform))}  # fmt: skip
    for what in ("good", "hallucinated", "irrelevant", "incoherent"):
        assert of_each["uniform"][what] / len(made) == pytest.approx(of_each["by value"][what] / len(made), abs=0.02)
    for kind, values in synthetic_images.VALUES.items():
        right = {value: [row.correct for shown, asked, row in made if (asked, shown.value(kind)) == (kind, value)]
                 for value in values}  # fmt: skip
        mean = sum(map(sum, right.values())) / sum(map(len, right.values()))
        believed = Counter[tuple[str, str]]()
        for shown, asked, row in made:
            if asked == kind and row.kind == "hallucinated":
                believed[shown.value(kind), row.options[row.answer_index]] += 1
        for value in values:
            assert sum(right[value]) / len(right[value]) == pytest.approx(mean, abs=0.12), (kind, value)
            others = [believed[value, other] for other in values if other != value]
            assert max(others) < 2 * sum(others) / len(others), "a value is not always taken for the same other one"


def test_rates_of_zero_make_no_error() -> None:
    never = ResolvedScripted(error_rate=0, blind_spots=0, irrelevant_rate=0, incoherent_rate=0)
    assert all(row.correct for _, _, row in run(never, 50))


def test_deterministic() -> None:
    shown = synthetic_images.attributes(1, 0)
    made = [
        scripted_generator.propose(shown, "count", scripted_generator.rng_for(3, "0" * 64, "count"), RATES, FORMAT)
        for _ in range(2)
    ]
    assert made[0] == made[1]


def test_unknown_kind() -> None:
    with pytest.raises(ValueError, match=r"'Diagnosis': the scripted generator asks for modality, finding"):
        scripted_generator.propose(
            synthetic_images.attributes(1, 0), "Diagnosis", scripted_generator.rng_for(0, "a", "b"), RATES, FORMAT
        )
