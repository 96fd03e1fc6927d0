"""Guessable items, caps and letters: what they drop, what they leave, and that k stays k."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.curate_fixtures import CurateWorkspace, candidate, triplet

from medgr2_api.curation import Balance, ResolvedCuration
from medgr2_api.training_spec import AnswerFormat
from medgr2_jobs.curate import balance, option_prior_filter, option_shuffle
from medgr2_jobs.curate.selection import CandidateBatch, SelectionResult, choose
from medgr2_jobs.curate.training_set import Origin, TrainingRow, dealt_row
from medgr2_jobs.prompts import answers
from medgr2_jobs.store.rows.candidates import Decision, Triplet

Rows = dict[str, Triplet]
FINDINGS = [f"finding {number}" for number in range(12)]


def batch(count: int, biased: float, seed: int = 1) -> Rows:
    """Questions about an image each; in a share `biased` of them "pneumonia" is an option, and nearly always right."""
    pick = random.Random(seed)
    rows = {}
    for number in range(count):
        options = pick.sample(FINDINGS, 4)
        index = pick.randrange(4)
        if pick.random() < biased:
            options[index if pick.random() < 0.95 else (index + 1) % 4] = "Pneumonia"
        rows[f"t{number:04d}"] = triplet(
            f"t{number:04d}", f"i{number}", "Which?", options=tuple(options), answer_index=index,
            modality=pick.choice(["CT", "CT", "CT", "MRI", "OCT"]), question_type="finding",
        )  # fmt: skip
    return rows


def chosen(rows: Rows, selection: dict[str, Any], **curation: Any) -> SelectionResult:
    scores = {name: float(number % 97) for number, name in enumerate(rows)}
    asked = ResolvedCuration.model_validate({"correct": False, "selection": selection, **curation})
    return choose(asked, CandidateBatch(list(rows), scores, None, 1), set(rows), rows)


TOP = {"strategy": "TopK", "k": 200}


# -- guessable ---------------------------------------------------------------------------------------------------------


def test_what_the_options_alone_give_away_is_dropped_worst_first() -> None:
    rows = batch(400, biased=0.5)
    found = chosen(rows, {"strategy": "All"}, rejectGuessable=True)
    dropped = [name for name, reasons in found.reasons.items() if reasons]
    assert {reason for name in dropped for reason in found.reasons[name]} == {"guessable"}
    assert all("Pneumonia" in rows[name].options for name in dropped)
    assert len(dropped) > 80
    assert found.counters["option_prior_before"] > found.counters["option_prior_after"] + 0.1
    prior = option_prior_filter.CrossFittedPrior(rows[name] for name in found.kept)
    assert not any(prior.answers_alone(name) for name in found.kept)
    left = [name for name in found.kept if rows[name].options[rows[name].answer_index] == "Pneumonia"]
    offered = [name for name in found.kept if "Pneumonia" in rows[name].options]
    assert 0.5 < len(left) / len(offered) < 0.85, "dropping all of them would give as much away: hardly ever right"
    scores = {name: number % 97 for number, name in enumerate(rows)}
    assert sum(scores[n] for n in left) / len(left) > sum(scores[n] for n in dropped) / len(dropped)


def test_the_spelling_of_an_option_and_its_modality_give_it_away() -> None:
    def rows(right: str, wrong: str, modality: str) -> Rows:
        said = [(right, wrong, "plaque", "nodule") if n % 2 else (wrong, right, "plaque", "nodule") for n in range(100)]
        return {
            f"{modality}{n}": triplet(f"{modality}{n}", f"{modality}{n}", f"Which? {n}", modality=modality,
                                      options=options, answer_index=options.index(right))
            for n, options in enumerate(said)
        }  # fmt: skip

    for batch_ in (
        rows("liver", "Liver", "CT"),
        {**rows("cyst", "mass", "CT"), **rows("mass", "cyst", "MRI")},
    ):
        found = chosen(batch_, {"strategy": "All"}, rejectGuessable=True)
        assert found.counters["option_prior_before"] > 0.95
        assert len(found.kept) < 0.6 * len(batch_)


def test_fair_options_are_left_alone() -> None:
    for seed in range(5):
        found = chosen(batch(400, biased=0.0, seed=seed), {"strategy": "All"}, rejectGuessable=True)
        assert len(found.kept) == 400
        assert found.counters["option_prior_before"] == found.counters["option_prior_after"]


def test_an_item_has_no_vote_on_itself_or_its_image() -> None:
    """All questions are about one image: nothing is known of it from elsewhere."""
    rows = {name: replace(row, image_sha256="one") for name, row in batch(200, biased=1.0).items()}
    assert len(chosen(rows, {"strategy": "All"}, rejectGuessable=True).kept) == 200


def test_it_takes_four_agreeing_questions() -> None:
    def asked(count: int) -> option_prior_filter.CrossFittedPrior:
        images = [
            name
            for name in map(str, range(1000))
            if option_prior_filter._fold(name) != option_prior_filter._fold("mine")
        ]
        rows = [triplet(f"t{n}", images[n], options=tuple("abcd")) for n in range(count)]
        return option_prior_filter.CrossFittedPrior([*rows, triplet("mine", "mine", options=tuple("abcd"))])

    assert not asked(3).answers_alone("mine")
    assert asked(4).answers_alone("mine")


# -- k -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", ["TopK", "RandomK"])
def test_the_next_in_line_takes_the_place_of_what_is_dropped(strategy: str) -> None:
    rows = batch(1000, biased=0.4)
    selection = {"strategy": strategy, "k": 200}
    found = chosen(rows, selection, rejectGuessable=True, balance={"by": ["modality"], "maxShare": 0.4})
    assert len(found.kept) == 200
    assert max(Counter(rows[name].modality for name in found.kept).values()) <= 80
    reasons = Counter(reason for row in found.reasons.values() for reason in row)
    assert set(reasons) == {"guessable", "balance", f"not_in_{'top' if strategy == 'TopK' else 'random'}_k"}
    assert all(not found.reasons[name] for name in found.kept)
    assert sum(not row for row in found.reasons.values()) == 200
    few = chosen(batch(150, biased=0.4), selection, rejectGuessable=True)
    assert 0 < len(few.kept) < 150


def test_only_what_is_eligible_counts_for_k() -> None:
    rows = batch(10, biased=0)
    scores = {name: float(-number) for number, name in enumerate(rows)}
    names = list(rows)
    asked = ResolvedCuration.model_validate({"correct": False, "selection": {"strategy": "TopK", "k": 3}})
    found = choose(asked, CandidateBatch(names, scores, None, 1), set(names[2:]), rows)
    assert found.kept == names[2:5]
    assert found.counters == {"lowest_kept_score": -4.0}
    assert [name for name in names if found.reasons[name] == ["not_in_top_k"]] == names[5:]
    nothing = choose(ResolvedCuration.model_validate({"correct": False, "selection": {"strategy": "TopK", "k": 0}}),
                     CandidateBatch(names, scores, None, 1), set(names), rows)  # fmt: skip
    assert (nothing.kept, set(map(tuple, nothing.reasons.values()))) == ([], {("not_in_top_k",)})


# -- balance -----------------------------------------------------------------------------------------------------------


def test_the_best_of_a_group_stay() -> None:
    names = [*("a0", "a1", "a2", "a3", "a4", "a5"), *("b0", "b1", "c0")]
    found = balance.take(names, None, lambda name: name[0], 0.5)
    assert found.kept == ["a0", "a1", "a2", "b0", "b1", "c0"]
    assert found.capped == ["a3", "a4", "a5"]


def test_too_few_groups_for_the_share_means_equal_groups() -> None:
    found = balance.take(["a0", "a1", "a2", "b0"], None, lambda name: name[0], 0.4)
    assert (found.kept, found.share) == (["a0", "b0"], 0.5)
    assert balance.take(["a0", "a1"], None, lambda name: name[0], 0.1).kept == ["a0", "a1"]
    assert balance.take([], None, lambda name: name[0], 0.1).kept == []


@given(st.lists(st.sampled_from("abcde"), max_size=60), st.floats(0.05, 1), st.none() | st.integers(0, 60))
def test_no_group_exceeds_its_share_and_nothing_more_could_be_taken(
    groups: list[str], share: float, limit: int | None
) -> None:
    names = [f"{group}{number}" for number, group in enumerate(groups)]
    found = balance.take(names, limit, lambda name: name[0], share)
    total, counts = len(found.kept), Counter(name[0] for name in found.kept)
    effective = max(share, 1 / max(1, len(set(groups))))
    assert total <= (len(names) if limit is None else limit)
    assert all(count <= max(1, effective * total + 1e-6) for count in counts.values())
    sizes = Counter(groups)
    for larger in range(total + 1, (len(names) if limit is None else min(limit, len(names))) + 1):
        cap = max(1, int(effective * larger + 1e-9))
        assert sum(min(size, cap) for size in sizes.values()) < larger
    assert found.kept == [name for name in names if name in set(found.kept)]
    if limit is None or total < limit:
        assert sorted(found.kept + found.capped) == sorted(names)


def test_balance_of_the_spec(tmp_path: Path) -> None:
    made = CurateWorkspace(tmp_path)
    kinds = ["CT/a", "CT/a", "CT/a", "CT/b", "MRI/a", "MRI/b"]
    candidates = [candidate(f"t{n}", made.free[n], modality=kind.split("/")[0], question_type=kind.split("/")[1])
                  for n, kind in enumerate(kinds)]  # fmt: skip
    scores = {f"t{n}": float(n) for n in range(6)}
    asked = {"selection": {"strategy": "Threshold", "threshold": -1.0}}
    both = made.reasons(candidates, scores, balance={"by": ["modality", "questionType"], "maxShare": 0.4}, **asked)
    assert [name for name, reasons in both.items() if reasons == ["balance"]] == ["t0"]
    by_modality = made.reasons(candidates, scores, balance={"by": ["modality"], "maxShare": 0.5}, **asked)
    assert [name for name, reasons in by_modality.items() if reasons == ["balance"]] == ["t0", "t1"]
    assert not any(made.reasons(candidates, scores, balance={}, **asked).values())
    asked_for = triplet("t", "i", modality="CT", question_type="finding")
    assert balance.group_of(asked_for, Balance(by=["questionType"])) == ("finding",)


# -- letters -----------------------------------------------------------------------------------------------------------


LESIONS = ("cyst", "mass", "nodule", "plaque")


def dealt(format_: AnswerFormat, count: int = 400, **changes: Any) -> list[tuple[Triplet, TrainingRow]]:
    """Triplets whose right option is always the first, and what becomes of them."""
    response = answers.response("It is round.", 0, LESIONS, format_)
    said = {"rationale": "It is round.", "options": LESIONS, "response": response, **changes}
    rows = [triplet(f"t{number}", "i", **{"question": "Which?", **said}) for number in range(count)]
    return [(row, dealt_row(row, option_shuffle.option_order(row, format_, 1), format_)) for row in rows]


@pytest.mark.parametrize("format_", list(AnswerFormat))
def test_every_letter_is_right_about_equally_often(format_: AnswerFormat) -> None:
    counts: Counter[int] = Counter()
    for row, new in dealt(format_):
        assert sorted(new.options) == sorted(row.options)
        assert new.options[new.answer_index] == "cyst"
        assert answers.extract(new.response, new.options, format_) == new.answer_index
        assert new.response == answers.response("It is round.", new.answer_index, new.options, format_)
        counts[new.answer_index] += 1
    assert all(70 <= counts[index] <= 130 for index in range(4)), counts
    assert dealt(format_) == dealt(format_)


@pytest.mark.parametrize(
    "changes",
    [
        {"rationale": "Option B is too small."},
        {"rationale": "The answer is (C)."},
        {"rationale": "A is wrong, B fits."},
        {"rationale": "The second option fits."},
        {"rationale": "Of the options above one fits."},
        {"options": ("cyst", "mass", "both A and B", "plaque")},
        {"options": ("cyst", "mass", "nodule", "All of the above")},
        {"question": "Does A or B fit?"},
        {"response": "cyst, I think"},
    ],
)
def test_a_row_whose_words_depend_on_the_order_stays_as_it_is(changes: dict[str, Any]) -> None:
    if "response" not in changes:
        options, rationale = changes.get("options", LESIONS), changes.get("rationale", "It.")
        changes = {"rationale": rationale, **changes}
        changes["response"] = answers.response(rationale, 0, options, AnswerFormat.LETTER)
    for row, new in dealt(AnswerFormat.LETTER, 8, **changes):
        assert (new.options, new.answer_index, new.response) == (row.options, row.answer_index, row.response)


@pytest.mark.parametrize(
    "text",
    ["A nodule is seen on the chest X-ray.", "T2 is bright; B-mode shows it.", "Below the diaphragm, above the liver.",
     "The other options do not fit."],
)  # fmt: skip
def test_medical_words_are_not_taken_for_letters(text: str) -> None:
    assert not option_shuffle.speaks_of_order("Which?", text, ["cyst", "mass"])


def test_the_training_set_has_the_dealt_options_and_nothing_else_changes(tmp_path: Path) -> None:
    made = CurateWorkspace(tmp_path)
    candidates = [
        candidate(
            f"t{n}",
            image,
            answer_index=n % 4,
            response=f"<think>It looks like it.</think><answer>{'ABCD'[n % 4]}</answer>",
        )
        for n, image in enumerate(made.free)
    ]
    code, found = made.curate(candidates, selection={"strategy": "All"}, rejectGuessable=True)
    assert code == 0
    rows = {row.row_id: row for row in made.training() if row.origin is Origin.GENERATED}
    assert len(rows) == len(candidates)
    assert any(rows[row.triplet_id].options != row.options for row in candidates)
    for row in candidates:
        new = rows[row.triplet_id]
        assert new.options[new.answer_index] == row.options[row.answer_index]
        assert answers.extract(new.response, new.options, AnswerFormat.LETTER) == new.answer_index
    seed = [row for row in made.training() if row.origin is Origin.SEED]
    assert [row.options for row in seed] == [row.options for row in made.seed]
    moved = sum(rows[row.triplet_id].options != row.options for row in candidates)
    assert found.manifest.counters["letters_dealt"] == moved
    _, plain = made.curate(candidates, selection={"strategy": "All"})
    assert {row.option_order for row in plain.rows(Decision)} == {None}
    assert [row.options for row in made.training()[6:]] == [row.options for row in candidates]
