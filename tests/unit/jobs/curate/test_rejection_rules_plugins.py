"""Curation rules of other packages: their reasons stand beside ours, and what they drop stands for nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.support.curate_fixtures import CurateWorkspace, candidate, phash, reasons_of
from tests.support.plugin_fixtures import install, plugin

from medgr2_jobs import plugins

ALL = {"strategy": "All"}
SHORT = plugin("short-questions", words=4)


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CurateWorkspace:
    install(monkeypatch)
    return CurateWorkspace(tmp_path)


def test_its_reasons_are_written_down_and_counted(made: CurateWorkspace) -> None:
    candidates = [
        candidate("short", made.free[0], "What is it?"),
        candidate("long", made.free[1], "Which of these is it?"),
        candidate("short-and-held", made.image("test"), "What?"),
        candidate("broken", made.free[2], outcome="invalid_json"),
    ]
    code, found = made.curate(candidates, {}, selection=ALL, rules=[SHORT])
    assert code == 0
    assert reasons_of(found) == {
        "short": ["short-questions:fewer_than_4_words"],
        "long": [],
        "short-and-held": ["benchmark_image", "short-questions:fewer_than_4_words"],
        "broken": ["outcome:invalid_json"],
    }
    assert found.manifest.counters["dropped_short-questions"] == 2
    assert found.manifest.counters["kept"] == 1


def test_what_it_drops_stands_for_nothing_near_it(made: CurateWorkspace) -> None:
    made.prepare_again(phashes=dict.fromkeys(made.free[:2], phash()))
    question = "Which finding does this image of the chest show best"
    candidates = [candidate("first", made.free[0], question), candidate("second", made.free[1], f"{question} here")]
    near = {"imageHamming": 4, "textJaccard": 0.5}
    scores = {"first": 9.0, "second": 8.0}
    _, without = made.curate(candidates, scores, selection=ALL, nearDuplicates=near)
    assert list(reasons_of(without).values()) == [[], ["near_duplicate"]]
    _, found = made.curate(
        candidates, scores, selection=ALL, nearDuplicates=near, rules=[plugin("short-questions", words=11)]
    )
    assert list(reasons_of(found).values()) == [["short-questions:fewer_than_11_words"], []]


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        (plugin("short-questions", "1.1"), "curation.rules[short-questions].version: asks for 1.1"),
        (plugin("short-answers"), "no installed package has an entry point 'short-answers'"),
    ],
)
def test_a_plugin_that_is_not_there_ends_the_stage(
    made: CurateWorkspace, rule: dict[str, object], said: str, capfd: pytest.CaptureFixture[str]
) -> None:
    code, _ = made.curate([candidate("a", made.free[0])], {}, selection=ALL, rules=[rule])
    assert code == 78
    assert said in capfd.readouterr().err


def test_a_rule_may_only_reject_candidates(
    made: CurateWorkspace, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(plugins, "load", lambda *_: lambda facts, reasons: [("nobody", "why")])
    code, _ = made.curate([candidate("a", made.free[0])], {}, selection=ALL, rules=[SHORT])
    assert code == 78
    assert (
        "curation.rules[short-questions]: rejects 'nobody', which is the id of no candidate" in capfd.readouterr().err
    )
