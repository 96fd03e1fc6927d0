"""Texts of a model, of data and of servers: shown in Markdown and CSV, and obeyed by nothing."""

from __future__ import annotations

import csv
import io
import random

import pytest

from medgr2_api import printable


@pytest.mark.parametrize(
    "text",
    [
        "=1+1", "+1", "-1", "@SUM(A1)", " =1", "\t=1", "\r=1", "\n=1", "  \t -cmd", "\ufeff=1", "\u200b@x", "\x00=1",
        "\xa0=HYPERLINK()", "'=1", '"=1"', "＝1", "\tx", "\rx",
    ],
)  # fmt: skip
def test_no_cell_is_a_formula(text: str) -> None:
    cell = printable.csv_cell(text)
    plain = text.replace("\r", "\n")
    assert cell == f"'{plain}"
    assert printable.from_csv_cell(cell) == plain


@pytest.mark.parametrize("text", ["", "cyst", "a=b", "1-2", "x @ y", "'quoted'", "it's", " plain"])
def test_what_is_none_stays_as_it_is(text: str) -> None:
    assert printable.csv_cell(text) == text
    assert printable.from_csv_cell(text) == text


def test_every_text_comes_back_from_a_csv_file() -> None:
    rng = random.Random(3)
    for _ in range(2000):
        text = "".join(rng.choice("'\"=+-@ \t\n\rab,;") for _ in range(rng.randrange(6)))
        plain = text.replace("\r\n", "\n").replace("\r", "\n")
        stream = io.StringIO()
        csv.writer(stream, lineterminator="\n").writerow([printable.csv_cell(text), "x"])
        (row,) = csv.reader(io.StringIO(stream.getvalue(), newline=""))
        # a text that already looks like a guarded cell cannot be told from one
        guarded = plain.startswith("'") and printable.csv_cell(plain) == plain
        assert guarded or printable.from_csv_cell(row[0]) == plain


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a | b", "a &#124; b"),
        ("a\n| b |\r\nc", "a &#124; b &#124;\\\\u000d c"),
        ("<script>alert(1)</script>", "&lt;script&gt;alert(1)&lt;/script&gt;"),
        ("<!-- x -->", "&lt;!-- x --&gt;"),
        ("&lt;b&gt;", "&amp;lt;b&amp;gt;"),
        ("![x](http://h/y.png)", "!\\[x\\](http&#58;//h/y.png)"),
        ("see www.example.org", "see www&#46;example.org"),
        ("**bold** _it_ ~~no~~ `code`", "\\*\\*bold\\*\\* \\_it\\_ \\~\\~no\\~\\~ \\`code\\`"),
        ("low_score 3", "low_score 3"),
        ("a\\|b", "a\\\\&#124;b"),
        ("\x1b[31mred", "\\\\u001b\\[31mred"),
    ],
)
def test_markdown_shows_a_text(text: str, shown: str) -> None:
    assert printable.markdown(text) == shown
    assert "\n" not in printable.markdown(text)
