"""How long a person waits for the command line, and a run for its forkserver.

make bench NAME=startup
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time

REPEATS = 7


def seconds(*command: str) -> float:
    """Wall seconds of a command."""
    started = time.monotonic()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - started


def forkserver_seconds() -> float:
    """Wall seconds until the forkserver has imported everything a stage may need."""
    started = time.monotonic()
    command = [sys.executable, "-m", "medgr2_jobs.runner.forkserver"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdout.readline()
        ready = time.monotonic() - started
        process.stdin.close()
    return ready


def main() -> int:
    """Prints the line of JSON: medians."""
    helped = [seconds(sys.executable, "-m", "medgr2_operator.cli.app", "--help") for _ in range(REPEATS)]
    servers = [forkserver_seconds() for _ in range(2)]  # the first one also fills the disk cache
    figures = {
        "medgr2 --help, median seconds": round(statistics.median(helped), 3),
        "forkserver ready, seconds": round(servers[-1], 1),
    }
    print(json.dumps({"name": "startup", "figures": figures, "n": REPEATS, "cores": os.cpu_count()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
