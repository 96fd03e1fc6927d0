"""answers.extract: never random, never fuzzy (docs/decisions.md, 5)."""

from __future__ import annotations

import re
import time
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medgr2_api.training_spec import AnswerFormat
from medgr2_jobs.prompts import answer_forms, answers

OPTIONS = ["solid mass", "mass", "cyst", "No finding"]
FORMATS = list(AnswerFormat)
LETTER, TEXT = AnswerFormat.LETTER, AnswerFormat.OPTION_TEXT

plain = st.text(alphabet=st.characters(blacklist_characters="<>", blacklist_categories=["Cs"]), max_size=30)
word = st.text(alphabet="bcdfghklmnprstvw", min_size=3, max_size=8)
option_lists = st.lists(word, min_size=2, max_size=6, unique=True).filter(
    lambda options: not any(a != b and a in b for a in options for b in options)
)


def block(text: str) -> str:
    return f"<think>because</think><answer>{text}</answer>"


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("B", 1),
        ("(b)", 1),
        (" c. ", 2),
        ("D:", 3),
        ("E", None),  # there is no fifth option
        ("cyst", 2),
        ("  CYST. ", 2),
        ("ｃｙｓｔ", 2),  # full width
        ("no  finding", 3),
        ("mass", 1),  # exact, though also contained in the first
        ("it is a cyst", 2),
        ("it is a solid mass", 0),  # the longer one
        ("a mass beside a solid mass", None),  # holds two options
        ("cyst or no finding", None),
        ("cysts", None),  # nearly is not enough
        ("", None),
        ("A B", None),
        ("1", None),
    ],
)
@pytest.mark.parametrize("answer_format", FORMATS)
def test_reads_letter_then_exact_text_then_the_only_contained_option(
    answer: str, expected: int | None, answer_format: AnswerFormat
) -> None:
    assert answers.extract(block(answer), OPTIONS, answer_format) == expected


def documented() -> list[tuple[AnswerFormat, list[str], str, str]]:
    """The rows of the table in docs/answers.md, one for each format."""
    page = Path(__file__).parents[4] / "docs" / "answers.md"
    rows = re.findall(r"^\| (both|Letter|OptionText) \| (.*?) \| `(.*)` \| (.*?) \|$", page.read_text(), re.MULTILINE)
    assert len(rows) == page.read_text().count("\n| ") - 1, "each row of the table is read"
    return [
        (answer_format, options.split("; "), answer, read_as)
        for which, options, answer, read_as in rows
        for answer_format in (FORMATS if which == "both" else [AnswerFormat(which)])
    ]


@pytest.mark.parametrize(("answer_format", "options", "answer", "read_as"), documented())
def test_the_documented_forms(answer_format: AnswerFormat, options: list[str], answer: str, read_as: str) -> None:
    expected = None if read_as == "–" else options.index(read_as)
    assert answers.extract(block(answer), options, answer_format) == expected


@pytest.mark.parametrize("answer_format", FORMATS)
@pytest.mark.parametrize(
    "text", ["", "B", "cyst", "The answer is B", "<answer>B", "B</answer>", "<answer></answer>", "<think>B</think>"]
)
def test_without_a_complete_block_nothing_is_read(text: str, answer_format: AnswerFormat) -> None:
    assert answers.extract(text, OPTIONS, answer_format) is None


def test_the_last_block_wins_even_when_it_cannot_be_read() -> None:
    assert answers.extract("<answer>A</answer> no, <answer>C</answer>", OPTIONS, LETTER) == 2
    assert answers.extract("<answer>A</answer><answer>perhaps</answer>", OPTIONS, LETTER) is None


def test_an_answer_tag_that_is_only_mentioned_does_not_swallow_the_real_one() -> None:
    said = "<think>inside <answer> I write it</think><answer>cyst</answer>"
    assert answers.extract(said, OPTIONS, TEXT) == 2


@pytest.mark.parametrize("answer_format", FORMATS)
def test_an_option_of_punctuation_alone_is_not_matched_by_silence(answer_format: AnswerFormat) -> None:
    assert answers.extract("<answer></answer>", ["?", "cyst"], answer_format) is None


def test_options_that_read_alike_are_told_apart_by_their_spelling_alone() -> None:
    options = ["cyst", "Cyst.", "mass"]
    assert [answers.extract(block(text), options, TEXT) for text in ("cyst", "Cyst.", "cyst;", "it is a cyst")] == [
        0, 1, None, None,
    ]  # fmt: skip
    assert answers.extract(block("cyst"), ["cyst", "cyst", "mass"], TEXT) is None


@given(option_lists, st.data(), plain)
def test_every_written_answer_is_read_back(options: list[str], data: st.DataObject, rationale: str) -> None:
    index = data.draw(st.integers(0, len(options) - 1))
    for answer_format in AnswerFormat:
        written = answers.response(rationale, index, options, answer_format)
        assert answers.extract(written, options, answer_format) == index
        assert answers.extract("<answer>A</answer>" + written, options, answer_format) == index
        assert answers.extract(written.upper(), options, answer_format) == index


#: Texts that look like letters, numbers, parts of one another, denials, markup, or are in scripts of another kind.
awkward = st.one_of(
    st.sampled_from([
        "A", "B", "C", "D", "a", "b", "(A)", "B.", "C)", "Option A", "option b", "The answer is B", "A or B",
        "A and B", "A. Cyst", "B. Mass", "Cyst", "cyst", "CYST", "Cyst.", "a cyst", "no cyst", "not a cyst",
        "No", "Yes", "no", "None", "None of the above", "All of the above", "1", "2", "3", "1.0", "1.5", "-1",
        "+1", "10", "100", "1/2", "½", "m²", "m2", "pneumonia", "viral pneumonia", "no pneumonia",
        "without pneumonia", "absence of pneumonia", "non-small cell", "small cell", "$x$", "$x^2$",
        "\\boxed{A}", "\\text{B}", "\\alpha", "$\\frac{1}{2}$", "**A**", "*A*", "_b_", "`C`", "# A", "- A",
        "> A", "'A'", "\"A\"", "“A”", "[A]", "{A}", "肺炎", "肺结核", "没有肺炎", "选A", "答案：B", "Ａ", "ｂ",
        "（Ｃ）", "التهاب رئوي", "لا يوجد التهاب", '\u200fأ\u200f', "דלקת ריאות", "폐렴", "はい", "いいえ",
        "निमोनिया", "👍", "👍🏽", '👩\u200d⚕\ufe0f', "❤", '❤\ufe0f', "?", "!", "...", "+", "-", "++",
        "p < 0.05", "p > 0.05", "<b>A</b>", "<i>", "A|B", "A\\B", "it is A", "B is correct", "é", "é", "ﬁ",
        "fi", "ß", "ss", "İ", "i", "E. coli", "C. difficile", "B cell", "T cell", "vitamin D", "hepatitis B",
    ]),
    st.text(st.characters(blacklist_characters="<>", blacklist_categories=["Cs", "Cc"]), min_size=1, max_size=12),
).filter(lambda text: bool(text.strip()))  # fmt: skip
awkward_lists = st.lists(awkward, min_size=2, max_size=9, unique=True)


@settings(max_examples=1000)
@given(awkward_lists)
def test_what_is_taught_is_read_back_whatever_the_options_are(options: list[str]) -> None:
    for answer_format in AnswerFormat:
        for index in range(len(options)):
            written = answers.response("Because.", index, options, answer_format)
            assert answers.extract(written, options, answer_format) == index


@settings(max_examples=500)
@given(
    awkward_lists,
    st.sampled_from(["**{}**", "({})", "{}.", " {} \n", r"\boxed{{{}}}", "$\\text{{{}}}$", "`{}`", "“{}”", "答案：{}"]),
)
def test_a_wrapped_letter_is_that_letter_whatever_the_options_are(options: list[str], wrapper: str) -> None:
    for index in range(len(options)):
        wrapped = wrapper.format(answers.LETTERS[index])
        if wrapped not in options:  # it is then called so
            found = answers.extract(block(wrapped), options, LETTER)
            called = [option for option in options if answer_forms.typed(option) == answer_forms.typed(wrapped)]
            assert found == index or (found is None and called)


@pytest.mark.parametrize("answer_format", FORMATS)
@pytest.mark.parametrize(
    "denial",
    [
        "{}? No.", "Is it {}? No", "{} is improbable", "{} is very doubtful", "{} is less likely", "{} seems wrong",
        "{} would be wrong", "{} - wrong", "{} = no", "{}: negative", "{} not present", "{}, not seen",
        "{} does not fit", "{} doesn't fit", "{} doesn’t fit", "{} doesnt fit", "{} is nowhere to be seen",
        "{} ✗", "❌ {}", "against {}", "The image fails to show {}",
        "anything other than {}", "all but {}", "everything but {}", "hardly {}", "r/o {}", "dont choose {}",
        "The wrong answer is {}", "{}: nein", "{}: non", "{}：无", "{}: нет", "{}: لا",
        "{} could have been there but {} is not the answer",
    ],
)  # fmt: skip
def test_a_denied_option_is_not_read(denial: str, answer_format: AnswerFormat) -> None:
    for option in ("pneumonia", "肺炎", "viral pneumonia", "non-small cell carcinoma"):
        options = [option, "effusion", "nodule"]
        assert answers.extract(block(denial.replace("{}", option)), options, answer_format) is None


@pytest.mark.parametrize("answer_format", FORMATS)
@pytest.mark.parametrize("bound", ["<{}", "≥ {}", "less than {}", "at most {}", "over {}", ".{}", "-{}", "±{}", "1.{}"])
def test_a_bound_of_an_amount_is_not_that_amount(bound: str, answer_format: AnswerFormat) -> None:
    assert answers.extract(block(bound.replace("{}", "5 cm")), ["5 cm", "7 cm", "9 cm"], answer_format) is None
    assert answers.extract(block(bound.replace("{}", "5")), ["5", "7", "9"], answer_format) is None
    assert answers.extract(block("about 5 cm."), ["5 cm", "7 cm"], answer_format) == 0


@pytest.mark.parametrize("answer_format", FORMATS)
@pytest.mark.parametrize(
    ("answer", "options", "expected"),
    [
        ("Down’s syndrome", ["syndrome", "Down's syndrome"], 1),
        ("It is Down's syndrome", ["syndrome", "Down’s syndrome"], 1),
        ("T2 weighted", ["T2", "T2-weighted"], 1),
        ("a T2‑weighted image", ["T2", "T2-weighted"], 1),
        ("a T2–weighted image", ["T2", "T2 weighted"], 1),
        ("non malignant", ["malignant", "non-malignant"], 1),
        (r"\alpha", [r"$\beta$", r"$\alpha$"], 1),
        (r"\boxed{x^2}", [r"$x$", r"\(x^2\)"], 1),
        (".5", ["5", "0.5"], None),
        ("3-5", ["3", "3 5"], None),
        ("−5", ["5", "-5"], 1),
    ],
)
def test_signs_that_print_has_several_of_are_the_same(
    answer: str, options: list[str], expected: int | None, answer_format: AnswerFormat
) -> None:
    assert answers.extract(block(answer), options, answer_format) == expected


@pytest.mark.parametrize("answer_format", FORMATS)
def test_letters_on_several_lines_contradict_each_other(answer_format: AnswerFormat) -> None:
    for answer in ("A\nB", "A.\n**B.**", "A\n\nThe answer is B", "A\nB\nC"):
        assert answers.extract(block(answer), OPTIONS, answer_format) is None, answer
    assert answers.extract(block("B\nThe answer is B\nIt is dense."), OPTIONS, answer_format) == 1


@pytest.mark.parametrize("answer_format", FORMATS)
def test_a_letter_with_another_options_text_is_not_read(answer_format: AnswerFormat) -> None:
    words = ["lobar pneumonia", "pleural effusion", "rib fracture", "lung nodule"]
    for place, letter in enumerate("ABCD"):
        for at, text in enumerate(words):
            for form in (
                f"{letter}. {text}",
                f"**{letter}**: {text}",
                f"{text} ({letter})",
                f"Option {letter} ({text})",
            ):
                expected = place if place == at else None
                assert answers.extract(block(form), words, answer_format) == expected, form


@given(st.text(max_size=80), option_lists)
def test_the_same_text_always_gives_the_same_and_a_valid_result(text: str, options: list[str]) -> None:
    wrapped = block(text)
    for answer_format in AnswerFormat:
        found = answers.extract(wrapped, options, answer_format)
        assert found == answers.extract(wrapped, options, answer_format)
        assert found is None or 0 <= found < len(options)


@given(plain, option_lists)
def test_what_names_no_option_and_is_no_letter_is_none(text: str, options: list[str]) -> None:
    folded = answers.normalise(text)
    alone = re.findall(r"(?<![^\W_])[a-z](?![^\W_])", unicodedata.normalize("NFKC", text).casefold())
    if alone or any(option in folded for option in options):
        return
    for answer_format in AnswerFormat:
        assert answers.extract(block(text), options, answer_format) is None


@given(option_lists, st.data())
def test_the_order_of_options_only_moves_the_index(options: list[str], data: st.DataObject) -> None:
    shuffled = data.draw(st.permutations(options))
    answer = data.draw(st.sampled_from(options))
    for answer_format in AnswerFormat:
        found = answers.extract(block(f"it shows {answer}"), shuffled, answer_format)
        assert found is not None
        assert shuffled[found] == answer


def test_a_right_answer_is_well_formed_also_where_an_option_has_a_sign_of_less_in_it() -> None:
    assert answers.well_formed(answers.response("p is small", 0, ["p < 0.05", "p > 0.05"], TEXT))
    assert not answers.well_formed("<think>x</think><answer>A<answer>B</answer>")


@pytest.mark.parametrize(
    "text", ["(" * 1999, "final " * 330, "答案" * 900, " x" * 900, "." * 1990 + "a", "mass " * 390]
)
def test_odd_answers_take_no_time(text: str) -> None:
    began = time.process_time()
    answers.extract(block(text), OPTIONS, LETTER)
    assert time.process_time() - began < 60  # of what backtracking would take for ever
