"""docs/cluster.md has the reasons of the code, and nothing in the code reads sentences."""

from __future__ import annotations

from pathlib import Path

import yaml

from medgr2_api import waiting

ROOT = Path(__file__).parents[3]


def test_the_page_has_every_reason_as_the_code_says_it() -> None:
    page = (ROOT / "docs" / "cluster.md").read_text()
    assert waiting.table() in page, "take the rows from medgr2_api.waiting.table()"


def test_the_page_on_gitops_has_the_expressions_of_the_chart() -> None:
    page = (ROOT / "docs" / "gitops.md").read_text()
    block = next(part.split("```")[0] for part in page.split("```yaml\n")[1:])
    shipped = (ROOT / "charts" / "medgr2-operator" / "files" / "gitops" / "flux-health.yaml").read_text()
    assert yaml.safe_load(block)["spec"]["healthCheckExprs"] == yaml.safe_load(shipped)
