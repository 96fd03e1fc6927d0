"""One name, one thing: no two public classes of the three packages are called alike."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parents[3]
PACKAGES = ("crds/medgr2_api", "operator/medgr2_operator", "jobs/medgr2_jobs")


def public_classes(root: Path) -> dict[str, list[str]]:
    """Modules in which each public class of a module's top level is defined, by its name."""
    modules: dict[str, list[str]] = defaultdict(list)
    for package in PACKAGES:
        for path in sorted((root / package).rglob("*.py")):
            for node in ast.parse(path.read_text(encoding="utf-8")).body:
                if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                    modules[node.name].append(str(path.relative_to(root)))
    return modules


def test_public_class_names_are_unique() -> None:
    classes = public_classes(ROOT)
    assert {"StageContext", "SpendLedger", "StatusDraft"} <= classes.keys(), "the packages were looked through"
    shared = {name: modules for name, modules in classes.items() if len(modules) > 1}
    assert shared == {}, "rename the lesser one: a name in a message, a search or a review must mean one thing"


def test_a_second_class_of_a_name_is_found(tmp_path: Path) -> None:
    texts = ("class Outcome: ...", "class _Outcome: ...", "class Outcome: ...")
    for package, text in zip(PACKAGES, texts, strict=True):
        (tmp_path / package).mkdir(parents=True)
        (tmp_path / package / "module.py").write_text(text + "\n")
    assert public_classes(tmp_path) == {"Outcome": ["crds/medgr2_api/module.py", "jobs/medgr2_jobs/module.py"]}
