"""Heavy imports leave the collector as it was, and give it nothing more to look at."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from medgr2_jobs.runner import process_tuning

#: While it is imported it says whether the collector runs; it makes a thousand objects that stay.
MODULE = "import gc\ncollected = gc.isenabled()\nkept = [[] for _ in range(1000)]\n"


@pytest.fixture(autouse=True)
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "takes_long.py").write_text(MODULE)
    (tmp_path / "breaks.py").write_text("import no_such_module\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("takes_long", None)


@pytest.mark.parametrize("enabled", [True, False])
def test_nothing_is_collected_meanwhile(enabled: bool) -> None:
    (gc.enable if enabled else gc.disable)()
    try:
        assert process_tuning.load("takes_long").collected is False
        assert gc.isenabled() is enabled
    finally:
        gc.enable()


def test_what_was_imported_is_never_looked_at() -> None:
    frozen = gc.get_freeze_count()
    process_tuning.load("takes_long")
    assert gc.get_freeze_count() >= frozen + 1000


def test_what_is_there_already_costs_nothing() -> None:
    process_tuning.load("takes_long")
    frozen, mine = gc.get_freeze_count(), [[]]
    assert process_tuning.load("takes_long") is sys.modules["takes_long"]
    assert gc.get_freeze_count() <= frozen, mine


def test_a_module_that_is_missing_leaves_the_collector_on() -> None:
    with pytest.raises(ImportError, match="no_such_module"):
        process_tuning.load("breaks")
    assert gc.isenabled()
