"""What README promises: Helm installs the operator, kubectl applies the quickstart, and the bytes are a laptop's."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cluster.lab import Lab
from tests.e2e.loop_world import CYCLE, Loop

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

QUICKSTART = Path(__file__).parents[2] / "examples" / "quickstart-cluster.yaml"
#: Runs the file as it is: twice the work of `make demo`, too long for every day.
FULL_SIZE = os.environ.get("MEDGR2_TEST_FULL_SIZE") == "1"


@pytest.mark.lab("lab-quickstart")
def test_the_quickstart(lab: Lab, tmp_path: Path) -> None:
    document = yaml.safe_load(QUICKSTART.read_text())
    loop = Loop(tmp_path, document if FULL_SIZE else smaller(document))
    here = loop.start()
    lab.kubectl("apply", "-f", str(loop.file))
    lab.wait("quickstart", "Complete", 900)
    output, _ = here.communicate(timeout=3600)
    assert here.returncode == 0, output
    assert lab.status("quickstart")["finishedIterations"] == 2
    assert lab.digests("quickstart") == loop.digests()


def smaller(document: dict[str, Any]) -> dict[str, Any]:
    """The same cycle with fewer images and steps; its stages, their resources and its volume are the file's."""
    spec, small = document["spec"], CYCLE["spec"]
    for item in (*spec["data"]["sources"], *spec["data"]["benchmarks"]):
        item["phantom"]["images"] = 16
    spec["generator"] |= {"candidates": 48, "questionsPerImage": 3}
    spec["curation"] = small["curation"]
    for name in ("rewardModel", "policy"):
        spec[name] |= small[name]
    return document
