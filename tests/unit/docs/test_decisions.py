"""Code cites docs/decisions.md by number; what it cites is there."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[3]
#: `docs/decisions.md, 5` and, for several, `docs/decisions.md, 6, 20`
CITATION = re.compile(r"docs/decisions\.md, (\d+(?:, \d+)*)")


def test_every_cited_decision_is_there() -> None:
    decisions = {int(number) for number in re.findall(r"^## (\d+)\. ", (ROOT / "docs/decisions.md").read_text(), re.M)}
    files = subprocess.run(
        ["git", "ls-files", "crds", "operator", "jobs", "tests", "bench"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    cited: dict[int, list[str]] = {}
    for name in files.stdout.split():
        if name.endswith(".py") and name != "tests/unit/docs/test_decisions.py":
            for numbers in CITATION.findall((ROOT / name).read_text()):
                for number in numbers.split(", "):
                    cited.setdefault(int(number), []).append(name)
    assert cited, "no citation was found: has their form changed?"
    missing = {number: names for number, names in cited.items() if number not in decisions}
    assert not missing
