"""What a test cost the processor, its child processes included, is written down and can be read."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
BURN = "import time\nwhile time.process_time() < 0.6: pass\n"
TESTS = f"""
import subprocess, sys

def test_computes(): subprocess.run([sys.executable, "-c", {BURN!r}])

def test_leaves_it_running():
    global left
    left = subprocess.Popen([sys.executable, "-c", {BURN!r} + "print(1, flush=True); input()"], stdin=-1, stdout=-1)
    left.stdout.readline()

def test_does_nothing(): left.communicate(b"x")
"""


@pytest.mark.parametrize("processes", ["0", "1"])
def test_processor_time_counts_where_it_was_used(tmp_path: Path, processes: str) -> None:
    (tmp_path / "test_some.py").write_text(TESTS)
    options = ("-p", "xdist", "-p", "tests.support.cpu_report", "-p", "no:cacheprovider", "-n", processes)
    environment = {
        **{name: value for name, value in os.environ.items() if name != "PYTEST_XDIST_WORKER"},
        "MEDGR2_TEST_CPU": str(tmp_path / "cpu"),
        "PYTHONPATH": str(ROOT),
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        "PYTEST_ADDOPTS": "",
    }
    command = [sys.executable, "-m", "pytest", *options, "test_some.py"]
    subprocess.run(command, cwd=tmp_path, env=environment, check=True)
    assert [path.stem for path in (tmp_path / "cpu").iterdir()] == ["gw0" if processes == "1" else "main"]

    read = [sys.executable, "-m", "tests.support.cpu_report", str(tmp_path / "cpu")]
    done = subprocess.run(read, cwd=ROOT, capture_output=True, text=True, check=True)
    files, tests = done.stdout.partition("the last tests")[0].split("tests (")
    assert "  test_some.py\n" in files
    rows = [line.split(maxsplit=2) for line in tests.splitlines() if line.endswith(("computes", "running", "nothing"))]
    cost = {name.partition("::")[2]: float(seconds) for seconds, _, name in rows}
    assert cost["test_computes"] >= 0.5
    assert cost["test_leaves_it_running"] >= 0.5, "what still runs counts, too"
    assert cost["test_does_nothing"] < 0.5, "and not again"
