"""One `medgr2 run` of several cycles, killed as well. The stages are fakes, everything else is real."""

from __future__ import annotations

import json
import re
from collections import Counter

import pytest
import yaml

from tests.support.run_fixtures import CYCLE, Workspace


@pytest.fixture
def other(space: Workspace) -> str:
    """The file of a second cycle, equal up to GRPO."""
    document = json.loads(json.dumps(CYCLE))
    document["metadata"]["name"] = "other"
    document["spec"]["policy"]["grpo"] = {"klCoefficient": 0.5}
    path = space.root / "other.yaml"
    path.write_text(yaml.safe_dump(document))
    return str(path)


def test_two_cycles_side_by_side_make_what_both_need_once(space: Workspace, undisturbed: Workspace, other: str) -> None:
    code, output = space.run(other)
    assert code == 0, output
    assert space.digests() == undisturbed.digests()
    counts = Counter(entry["stage"] for entry in space.ledger("start"))
    shared = {"prepare@0", "reward@0", "evaluate@0", "generate@1", "score@1", "curate@1", "sft@1", "generate@2"}
    assert {name for name, count in counts.items() if count == (2 if name.startswith("generate") else 1)} == shared
    assert {status for name in ("loop", "other") if (status := space.state(name)["status"]["phase"])} == {"Complete"}
    assert space.state("other")["status"]["usage"]["reusedStages"] == len(shared)
    assert re.search(r"^\d:\d\d  loop  Started: grpo@1", output, re.M)
    assert re.search(r"^\d:\d\d  other  Started: grpo@1", output, re.M)


def test_kill_9_of_a_run_of_two_cycles_loses_nothing(space: Workspace, undisturbed: Workspace, other: str) -> None:
    kills = space.kill_often(7, other)
    code, output = space.run(other)
    assert code == 0, output
    assert kills >= 3
    assert space.digests() == undisturbed.digests()
    assert space.state("other")["status"]["phase"] == "Complete"
    assert "Resource temporarily unavailable" not in space.logs(), "two writers of one stage at the same time"


def test_a_run_of_two_cycles_ends_as_the_worse_of_them(space: Workspace, other: str) -> None:
    folder = space.root / "ws" / "test"
    folder.mkdir(parents=True)
    (folder / "fail-report@2").write_text("row 7 is empty")
    loop = json.loads(json.dumps(CYCLE))
    loop["spec"]["iterations"] = 1
    space.write(loop)
    code, output = space.run(other)
    assert code == 65, output
    assert "other: Failed" in output
    assert "row 7 is empty" in output
    assert space.state()["status"]["phase"] == "Complete"


def test_cycles_that_cannot_be_told_apart_are_refused(space: Workspace, other: str) -> None:
    code, output = space.run(str(space.file))
    assert code == 2
    assert "metadata.name: 'loop' is also the name of the cycle in" in output
    code, output = space.run(other, "--restart-from", "sft@2")
    assert code == 2
    assert "of which cycle?" in output
    assert not (space.root / "ws").exists()
