"""What is imported is declared, what is declared is used, and both are pinned."""

from __future__ import annotations

import ast
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
BASE = "dependencies"
#: Folder → the lists of pyproject.toml that are installed where its code runs.
INSTALLED = {
    "crds": (BASE,),
    "operator": (BASE, "operator"),
    "jobs": (BASE, "jobs", "distributed", "mlflow", "wandb"),
    "tests": (BASE, "operator", "jobs", "mlflow", "wandb", "dev"),
    "bench": (BASE, "operator", "jobs", "dev"),
    "monitoring": (BASE, "operator", "jobs", "dev"),
}
#: List → the folders whose code imports what it names.
USED_BY = {
    BASE: ("crds", "operator"),
    "operator": ("operator",),
    "jobs": ("jobs",),
    "distributed": ("jobs",),
    "mlflow": ("jobs",),
    "wandb": ("jobs",),
    "dev": ("tests", "bench", "monitoring"),
}
#: Declared, and used without an import of ours → who uses it.
NOT_IMPORTED = {
    "accelerate": "transformers' Trainer",
    "import-linter": "make lint",
    "mypy": "make lint",
    "num2words": "transformers' processor of SmolVLM2",
    "pre-commit": ".pre-commit-config.yaml",
    "pyjpegls": "pydicom, to decompress",
    "pylibjpeg": "pydicom, to decompress",
    "pylibjpeg-openjpeg": "pydicom, to decompress",
    "pylibjpeg-rle": "pydicom, to decompress",
    "python-gdcm": "pydicom, to decompress",
    "ruff": "make lint",
    "tensorboard": "torch.utils.tensorboard",
    "torchvision": "transformers' image processors",
    "types-pyyaml": "mypy",
}


def _requirements(name: str) -> list[Requirement]:
    lines = PROJECT[BASE] if name == BASE else PROJECT["optional-dependencies"][name]
    return [Requirement(line) for line in lines]


def _declared(*names: str) -> set[str]:
    return {canonicalize_name(one.name) for name in names for one in _requirements(name)}


def _imports(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module


@cache
def _imported(folder: str) -> dict[str, str]:
    """Top-level modules of other projects → a file that imports them."""
    ours = {"bench", "monitoring", "tests", "medgr2_api", "medgr2_operator", "medgr2_jobs"}
    typing_only = {"_typeshed"}  # type checkers bring it; nothing imports it when it runs
    found: dict[str, str] = {}
    for file in sorted((ROOT / folder).rglob("*.py")):
        for name in _imports(ast.parse(file.read_text())):
            top = name.partition(".")[0]
            if top not in sys.stdlib_module_names | ours | typing_only:
                found.setdefault(top, str(file.relative_to(ROOT)))
    return found


_installers = cache(packages_distributions)  # it reads every installed project's list of files


def _projects(module: str) -> set[str]:
    """The projects that install a module; several where it is a namespace. One that is not installed has its name."""
    return {canonicalize_name(name) for name in _installers().get(module, [module])}


@pytest.mark.parametrize("folder", INSTALLED)
def test_imports_are_declared(folder: str) -> None:
    declared = _declared(*INSTALLED[folder])
    undeclared = {module: file for module, file in _imported(folder).items() if not _projects(module) & declared}
    assert undeclared == {}


@pytest.mark.parametrize("name", USED_BY)
def test_what_is_declared_is_used(name: str) -> None:
    imported = {project for folder in USED_BY[name] for module in _imported(folder) for project in _projects(module)}
    assert _declared(name) - imported - NOT_IMPORTED.keys() == set()


def test_exceptions_are_declared_and_not_imported_after_all() -> None:
    assert NOT_IMPORTED.keys() <= _declared(*USED_BY)
    for name, folders in USED_BY.items():
        imported = {project for folder in folders for module in _imported(folder) for project in _projects(module)}
        assert not _declared(name) & NOT_IMPORTED.keys() & imported


def test_what_is_declared_is_pinned() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line]
    assert not [line for line in lines if "==" not in line or "/" in line]  # a pin each: no option, no address
    pins = [Requirement(line) for line in lines]
    for name in USED_BY:
        for wanted in _requirements(name):
            versions = [
                specifier.version
                for pin in pins
                if canonicalize_name(pin.name) == canonicalize_name(wanted.name)
                for specifier in pin.specifier
            ]
            assert versions, wanted
            assert all(wanted.specifier.contains(version, prereleases=True) for version in versions), wanted
