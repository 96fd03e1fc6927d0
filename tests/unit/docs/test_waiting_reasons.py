"""docs/cluster.md has the reasons of the code, and nothing in the code reads sentences."""

from __future__ import annotations

from pathlib import Path

from medgr2_api import waiting

ROOT = Path(__file__).parents[3]


def test_the_page_has_every_reason_as_the_code_says_it() -> None:
    page = (ROOT / "docs" / "cluster.md").read_text()
    assert waiting.table() in page, "take the rows from medgr2_api.waiting.table()"
