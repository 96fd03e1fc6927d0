"""For stages that run in the process of their test."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from medgr2_jobs.data import wordnet
from medgr2_jobs.data.wordnet import Lexicon

_find = wordnet.find


@pytest.fixture(scope="session")
def lexicon(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Lexicon | None]:
    """WordNet, found when it is first asked for: that copies 26 MB and reads them for two seconds."""
    return cache(lambda: _find(tmp_path_factory.mktemp("wordnet")))


@pytest.fixture(autouse=True)
def one_wordnet_for_all_workspaces(lexicon: Callable[[], Lexicon | None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Stages that are processes of their own find it in their workspace, as `test_prepare.py` has one."""

    def find(cache: Path, debian: Path = wordnet.DEBIAN) -> Lexicon | None:
        return lexicon()

    monkeypatch.setattr(wordnet, "find", find)
