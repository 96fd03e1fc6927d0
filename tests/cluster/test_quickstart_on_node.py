"""What README promises: Helm installs the operator, kubectl applies the quickstart, and the bytes are a laptop's."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from tests.cluster.lab import Lab
from tests.e2e.loop_world import Loop

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

QUICKSTART = Path(__file__).parents[2] / "examples" / "quickstart-cluster.yaml"


@pytest.mark.lab("lab-quickstart")
def test_the_quickstart(lab: Lab, tmp_path: Path) -> None:
    document = yaml.safe_load(QUICKSTART.read_text())
    loop = Loop(tmp_path, document)
    here = loop.start()
    lab.kubectl("apply", "-f", str(QUICKSTART))
    lab.wait("quickstart", "Complete", 1800)
    output, _ = here.communicate(timeout=1800)
    assert here.returncode == 0, output
    assert lab.digests("quickstart") == loop.digests()
