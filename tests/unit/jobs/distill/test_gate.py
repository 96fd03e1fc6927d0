"""The gate: a student that R likes is refused when it has narrowed, and every bound can refuse on its own."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest

from medgr2_api.distillation import StudentPromotion
from medgr2_jobs.distill import gate
from medgr2_jobs.distill.gate import Gold, ProbeAnswer, StudentGate
from medgr2_jobs.store.rows.candidates import Triplet

VALUES = ("cyst", "mass", "plaque", "nodule", "fissure", "deposit")
TASKS, PER_IMAGE = 1200, 4
GOLD = Gold(200, 0.8, 0.85, "finding", 0.9)


def answer(number: int, value: str, rng: random.Random, **changes: Any) -> ProbeAnswer:
    """A triplet whose answer is `value`, with any other options."""
    options = [*rng.sample([other for other in VALUES if other != value], 3), value]
    rng.shuffle(options)
    triplet = Triplet(
        f"t{number}", 1, f"image{number // PER_IMAGE}", "CT", "finding", f"Question {rng.randrange(30)}?",
        tuple(options), options.index(value), "", "",
    )  # fmt: skip
    return replace(ProbeAnswer(triplet, 4.0, True), **changes)


def generator(values: tuple[str, ...], accepted: float, *, agreed: float = 0.7) -> dict[str, ProbeAnswer]:
    """A generator that says these values equally often."""
    rng, judges = random.Random(str(values)), random.Random(f"{accepted}{agreed}")
    made = {}
    for number in range(TASKS):
        made[f"t{number}"] = answer(
            number,
            rng.choice(values),
            rng,
            score=4.0 if judges.random() < accepted else -2.0,
            agreed=judges.random() < agreed,
        )
    return made


IMAGES = {f"t{number}": f"image{number // PER_IMAGE}" for number in range(TASKS)}
FIRST = generator(VALUES, 0.45)
GOOD = generator(VALUES, 0.7, agreed=0.8)
#: The same, every fifth task without a triplet.
TORN = {name: made if int(name[1:]) % 5 else ProbeAnswer(None, None, None) for name, made in GOOD.items()}
#: The first generator itself, but that R accepts 30 tasks less.
WORSE = {name: replace(made, score=-2.0) if int(name[1:]) < 60 else made for name, made in FIRST.items()}
_ACCEPTED = [name for name, made in FIRST.items() if made.score == 4.0]
_REJECTED = [name for name, made in FIRST.items() if made.score != 4.0]
#: The first generator itself, but that R accepts 4 tasks more: 44 others, and not 40 of those before.
HARDLY = {
    **FIRST,
    **{name: replace(FIRST[name], score=4.0) for name in _REJECTED[:44]},
    **{name: replace(FIRST[name], score=-2.0) for name in _ACCEPTED[:40]},
}


def decide(
    student: dict[str, ProbeAnswer],
    first: dict[str, ProbeAnswer] = FIRST,
    gold: Gold | None = GOLD,
    in_force: tuple[float, float] | None = None,
    **bounds: float,
) -> StudentGate:
    return gate.decide(
        gate.compared(student, first, 2.0),
        gate.acceptance_gain(student, first, IMAGES, 2.0, 7),
        gold,
        in_force,
        StudentPromotion(**bounds),
        2.0,
    )


def failed(decision: StudentGate) -> list[str]:
    return [check.name for check in decision.checks if not check.passed]


def test_a_student_as_diverse_as_its_teacher_passes() -> None:
    decision = decide(GOOD)
    assert decision.passed, decision.reason
    assert decision.gain is not None
    assert 0.2 < decision.gain.low < decision.gain.value < decision.gain.high < 0.3
    assert decision.student.parsed == 1.0
    assert decision.dump()["gain"]["value"] == decision.gain.value


def test_one_that_has_narrowed_is_refused_though_r_accepts_more_of_it() -> None:
    """It says two values of six: its options give the answer away, and its answers are less even."""
    narrow = generator(VALUES[:2], 0.9, agreed=0.9)
    decision = decide(narrow)
    assert decision.gain is not None
    assert decision.gain.low > 0.3
    assert {"entropy of its answers", "answered by the options alone"} <= set(failed(decision))
    assert "entropy of its answers" in decision.reason


def test_one_that_repeats_itself_is_refused() -> None:
    triplet = GOOD["t0"].triplet
    repeated = {name: replace(made, triplet=triplet) if int(name[1:]) % 2 else made for name, made in GOOD.items()}
    assert "distinct questions" in failed(decide(repeated))


@pytest.mark.parametrize(
    ("student", "change", "name"),
    [
        (TORN, {}, "parsed"),
        (WORSE, {}, "lower end of the gain in accepted tasks"),
        (HARDLY, {}, "lower end of the gain in accepted tasks"),
        (generator(VALUES, 0.7, agreed=0.4), {}, "agreement of the policy"),
        (GOOD, {"gold": replace(GOLD, student=0.55)}, "right about validation questions"),
        (GOOD, {"gold": replace(GOLD, weakest=0.4)}, "right about those of kind finding, against the mean"),
        (GOOD, {"in_force": (0.7, 0.71)}, "accepted tasks, of those that the student before was asked"),
        (GOOD, {"min_tasks": 1201}, "tasks of the probe"),
    ],
)
def test_each_bound_refuses_alone(student: dict[str, ProbeAnswer], change: dict[str, Any], name: str) -> None:
    assert failed(decide(student, **change)) == [name]


def test_nothing_in_common_is_no_pass() -> None:
    silent = {name: ProbeAnswer(None, None, None) for name in FIRST}
    decision = decide(silent)
    assert not decision.passed
    assert decision.student.entropy is None
    assert "entropy of its answers: not measured" in decision.reason
    empty = gate.decide(gate.compared({}, {}, 2.0), None, None, None, StudentPromotion(), 2.0)
    assert not empty.passed


def test_figures_are_of_the_tasks_that_both_could_do() -> None:
    """A student that leaves out the half that it finds hard is not compared with its teacher's whole."""
    first = {name: replace(made) for name, made in FIRST.items()}
    student = {name: made if int(name[1:]) < 600 else ProbeAnswer(None, None, None) for name, made in GOOD.items()}
    mine, theirs = gate.compared(student, first, 2.0)
    assert (mine.parsed, theirs.parsed) == (0.5, 1.0)
    half = gate.compared(
        {name: GOOD[name] for name in [*GOOD][:600]}, {name: FIRST[name] for name in [*GOOD][:600]}, 2.0
    )
    assert (mine.entropy, theirs.entropy) == (half[0].entropy, half[1].entropy)


def test_entropy_is_one_where_all_answers_come_equally_often() -> None:
    rng = random.Random(0)
    even = {f"t{number}": answer(number, VALUES[number % 6], rng) for number in range(120)}
    one = {f"t{number}": answer(number, VALUES[0], rng) for number in range(120)}
    mine, theirs = gate.compared(even, one, 2.0)
    assert mine.entropy == pytest.approx(1.0)
    assert theirs.entropy == pytest.approx(0.0)
    assert theirs.option_prior == pytest.approx(1.0)


def test_the_weakest_kind_is_found() -> None:
    known = gate.gold(["a"] * 20 + ["b"] * 20 + ["rare"], [True] * 20 + [True] * 5 + [False] * 16, [True] * 41)
    assert known is not None
    assert (known.weakest_kind, known.policy) == ("b", 1.0)
    assert known.weakest == pytest.approx(0.25 / 0.625)
    assert gate.gold([], [], []) is None
