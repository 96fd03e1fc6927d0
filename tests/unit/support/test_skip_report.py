"""What the computer could not run is said at the end, and can be made a failure."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
TESTS = """
import pytest

def test_runs(): pass

@pytest.mark.parametrize("n", [1, 2])
def test_does_not(n): pytest.skip("a node needs root")
"""


@pytest.mark.parametrize("processes", ["0", "2"])
@pytest.mark.parametrize(("strict", "code"), [("", 0), ("1", 1)])
def test_left_out(tmp_path: Path, strict: str, code: int, processes: str) -> None:
    (tmp_path / "test_some.py").write_text(TESTS)
    options = ("-p", "xdist", "-p", "tests.support.skip_report", "-p", "no:cacheprovider", "-n", processes)
    environment = {
        **os.environ,
        "MEDGR2_NOTHING_LEFT_OUT": strict,
        "PYTHONPATH": str(ROOT),
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        "PYTEST_ADDOPTS": "",  # of whoever runs these tests: their lines would come last
    }
    command = [sys.executable, "-m", "pytest", *options, "test_some.py"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == code, done.stdout + done.stderr
    *_, before, last = done.stdout.strip().splitlines()
    assert before == "left out: 2 tests, because a node needs root"
    assert "1 passed, 2 skipped" in last
