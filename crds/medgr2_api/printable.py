"""Texts of others (models, data, servers) made fit for where they are shown: a terminal, a log, a line, a table."""

from __future__ import annotations

import re

#: What a terminal or a viewer obeys instead of showing it: C0 but tab and line break, DEL, C1, bidirectional overrides,
#: line separators, invisible tags; and lone surrogates, which no stream takes.
_CONTROL = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u2028\u2029\u202a-\u202e\u2066-\u2069\ufff9-\ufffb\U000e0000-\U000e007f\ud800-\udfff]"
)
_BREAKS = str.maketrans({"\n": r"\n", "\t": r"\t"})


def shown(text: str) -> str:
    """A text for a terminal or a log: control characters as `\\u001b`; line breaks and tabs stay."""
    return _CONTROL.sub(_escaped, text)


def one_line(text: str) -> str:
    """A text for one line: line breaks and tabs as `\\n` and `\\t`, too."""
    return shown(text).translate(_BREAKS)


def _escaped(match: re.Match[str]) -> str:
    code = ord(match[0])
    if code < 0x10000:
        return f"\\u{code:04x}"
    high, low = 0xD800 + (code - 0x10000 >> 10), 0xDC00 + (code - 0x10000 & 0x3FF)
    return f"\\u{high:04x}\\u{low:04x}"  # as JSON writes it, so that JSON stays JSON


#: What begins a formula, after whatever a spreadsheet passes over; also in full width.
_FORMULA = re.compile("[\t\r\n]|[\\s\x00-\x1f\u200b\ufeff'\"]*[=+\\-@\uff1d\uff0b\uff0d\uff20]")
_HTML = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;", "|": "&#124;"})
_MARKUP = re.compile(r"([\\`*\[\]~])|(?<!\w)(_)|(_)(?!\w)")


def markdown(text: str) -> str:
    """A text as Markdown that shows it, in one line and in a cell of a table: no markup, no HTML, no link."""
    line = " ".join(shown(text).split())
    escaped = _MARKUP.sub(lambda match: f"\\{match[0]}", line).translate(_HTML)
    return escaped.replace("://", "&#58;//").replace("www.", "www&#46;")


def csv_cell(text: str) -> str:
    """A cell of a CSV file that no spreadsheet takes for a formula: one that would be gets a quote in front.

    Line breaks become a line feed, which is always quoted: a carriage return on its own ends a row for some readers.
    """
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    return f"'{text}" if _FORMULA.match(text) else text


def from_csv_cell(text: str) -> str:
    """What `csv_cell` was given."""
    return text[1:] if text.startswith("'") and _FORMULA.match(text[1:]) else text
