"""What two threads a stage are worth, alone and with another stage of two threads beside it.

    make bench NAME=threads         # some minutes on two cores

Seconds a training step of the quickstart's model takes (wall, median of the steps): with one and with two threads, in
one process and in two at the same time; two threads both as OpenMP would have it and as `medgr2 run` sets it.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from medgr2_operator.local.processes import SPIN

STEPS = 12
_DEFAULT = dict.fromkeys(SPIN)


def worker(threads: int) -> None:
    """Prints the seconds of a step."""
    import torch

    from bench.training import pictures, step
    from medgr2_jobs.vlm import Row

    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as root:
        model, encoder, names = pictures(Path(root), "tiny", 32)
        batch = encoder.batch([Row(name, "What does the image show?", "a cyst here") for name in names])
        step(model, batch)
        print("ready", flush=True)
        sys.stdin.readline()
        seconds = []
        for _ in range(STEPS):
            began = time.perf_counter()
            step(model, batch)
            seconds.append(time.perf_counter() - began)
    print(statistics.median(seconds))


def measured(processes: int, threads: int, settings: dict[str, str | None]) -> float:
    """Seconds of a step in so many processes at the same time: the mean over them."""
    given = {**os.environ, "OMP_NUM_THREADS": "1", **settings}
    environment = {name: value for name, value in given.items() if value is not None}
    command = [sys.executable, "-m", "bench.threads", str(threads)]
    started = [
        subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(processes)
    ]
    for process in started:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in started:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    return statistics.mean(float(process.communicate()[0]) for process in started)


def main() -> None:
    figures = {}
    for title, processes, threads, settings in (
        ("one thread", 1, 1, SPIN),
        ("two threads", 1, 2, SPIN),
        ("two threads, OpenMP's default", 1, 2, _DEFAULT),
        ("two stages of one thread", 2, 1, SPIN),
        ("two stages of two threads", 2, 2, SPIN),
        ("two stages of two threads, OpenMP's default", 2, 2, _DEFAULT),
    ):
        figures[title] = round(measured(processes, threads, dict(settings)), 3)
        print(f"{title}: {figures[title]} s a step")
    print(json.dumps({"name": "threads", "figures": figures, "n": STEPS, "cores": os.cpu_count()}))


if __name__ == "__main__":
    if len(sys.argv) > 1:
        worker(int(sys.argv[1]))
    else:
        main()
