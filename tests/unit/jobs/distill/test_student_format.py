"""What a student is taught can be read back; what it gets wrong has the outcome that it has with every generator."""

from __future__ import annotations

import pytest

from medgr2_api.training_spec import AnswerFormat
from medgr2_jobs.curate.training_set import Origin, TrainingRow
from medgr2_jobs.distill import student_format
from medgr2_jobs.distill.student_format import Answer
from medgr2_jobs.generate.sampling_plan import Task
from medgr2_jobs.prompts import answers
from medgr2_jobs.store.rows.candidates import CandidateOutcome

TASK = Task("t001-000000-00", "f" * 64, "CT", "finding")
OPTIONS = ("a cyst", "a mass,  or two", "a plaque", "none of these")
LETTER, TEXT = AnswerFormat.LETTER, AnswerFormat.OPTION_TEXT
GOOD = "What is\nshown?\na\nb\nc\nd\n<think>It is c.</think><answer>c</answer>".replace("is\nshown", "is shown")


def row(rationale: str = "It looks\nlike a mass.", options: tuple[str, ...] = OPTIONS, **changes: str) -> TrainingRow:
    question = changes.get("question", "What is\n shown?")
    response = answers.response(rationale, 1, options, LETTER)
    return TrainingRow("r", Origin.GENERATED, 1, "f" * 64, "CT", "finding", question, options, 1, response)


@pytest.mark.parametrize("opened", ["", "<think></think>"])
def test_what_is_taught_is_read_back(opened: str) -> None:
    """Also where the chat template opens the thinking; every text on one line of its own."""
    text = student_format.taught(row())
    assert text is not None
    assert text.splitlines()[:5] == ["What is shown?", "a cyst", "a mass, or two", "a plaque", "none of these"]
    assert student_format.read(opened + text, TASK, 2) == Answer(
        TASK.triplet_id, CandidateOutcome.OK, 2, "What is shown?", ("a cyst", "a mass, or two", "a plaque",
        "none of these"), 1, "It looks like a mass.",
    )  # fmt: skip
    assert text.startswith(student_format.asked(row())), "the gold probe puts the question into its mouth"


@pytest.mark.parametrize(
    "untold",
    [
        row(options=OPTIONS[:3]),
        row(rationale="Option B fits."),
        row(rationale=" "),
        row(options=("a cyst", "a mass", "a plaque", "all of the above")),
    ],
)
def test_what_depends_on_the_options_order_or_number_is_not_taught(untold: TrainingRow) -> None:
    assert student_format.taught(untold) is None


@pytest.mark.parametrize(
    ("text", "outcome"),
    [
        (GOOD, CandidateOutcome.OK),
        ("", CandidateOutcome.EMPTY),
        ("What is shown?\na\nb\nc\nd", CandidateOutcome.SCHEMA),
        ("<think>It is c.</think><answer>c</answer>", CandidateOutcome.SCHEMA),
        (GOOD + GOOD, CandidateOutcome.SCHEMA),
        (GOOD.replace("\nd\n", "\n"), CandidateOutcome.WRONG_OPTION_COUNT),
        (GOOD.replace("\nd\n", "\nA.\n"), CandidateOutcome.DUPLICATE_OPTIONS),
        (GOOD.replace(">c<", ">e<"), CandidateOutcome.ANSWER_NOT_IN_OPTIONS),
    ],
)
def test_outcomes(text: str, outcome: CandidateOutcome) -> None:
    answer = student_format.read(text, TASK, 1)
    assert answer.outcome is outcome
    assert (answer.answer_index is None) is (outcome is not CandidateOutcome.OK)
    made = student_format.candidate(answer, TASK, "distill@1:abc", 2, LETTER, 7)
    assert (made.outcome, made.generator, made.iteration) == (outcome, "distill@1:abc", 2)
    assert bool(made.options) is (outcome is CandidateOutcome.OK)


def test_letters_are_dealt_by_code() -> None:
    """The student always puts the right one third; over many tasks it stands everywhere about equally often."""
    places = [0] * 4
    for number in range(400):
        task = Task(f"t001-{number:06d}-00", "f" * 64, "CT", "finding")
        said = student_format.triplet(student_format.read(GOOD, task, 1), task, 1, LETTER, 7)
        assert said is not None
        assert said.options[said.answer_index] == "c"
        assert said.response == f"<think>It is c.</think><answer>{'ABCD'[said.answer_index]}</answer>"
        places[said.answer_index] += 1
    assert min(places) > 70


def test_the_prompt_says_the_task_only_where_a_model_can_be_told() -> None:
    assert student_format.prompt("finding", "CT", TEXT) == "Ask: finding"
    told = student_format.prompt("finding", "CT", LETTER)
    assert "kind finding" in told
    assert "(CT)" in told
    assert student_format.template_sha256(TEXT) != student_format.template_sha256(LETTER)
