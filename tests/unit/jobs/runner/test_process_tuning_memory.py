"""What a process that trains does with memory that it frees."""

from __future__ import annotations

import subprocess
import sys

import pytest

#: Frees and takes 128 MiB again and again; prints how many page faults that was, once it is used to it.
PROGRAM = """
import resource, sys
import numpy
from medgr2_jobs.runner import process_tuning
if sys.argv[1] == "keep":
    process_tuning.keep_freed_memory()
for turn in range(6):
    if turn == 2:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    held = [numpy.ones(2**20) for _ in range(16)]
    del held
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.parametrize("way", ["keep", "give back"])
def test_what_a_step_frees_is_there_for_the_next(way: str) -> None:
    faults = int(subprocess.run([sys.executable, "-c", PROGRAM, way], capture_output=True, check=True).stdout)
    pages = 4 * 16 * 8 * 2**20 // 4096  # of the turns that count
    if way == "keep":
        assert faults < pages / 20
    else:  # or the test would show nothing
        assert faults > pages / 4
