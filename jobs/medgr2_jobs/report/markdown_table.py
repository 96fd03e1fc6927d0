"""Tables in Markdown: what stands in a cell is shown, not obeyed."""

from __future__ import annotations

from collections.abc import Sequence

from medgr2_api import printable


class Markup(str):
    """A cell that is Markdown of ours. All others are shown as they are."""


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(_cell, line)) + " |" for line in lines)


def _cell(text: str) -> str:
    return text if isinstance(text, Markup) else printable.markdown(text)
