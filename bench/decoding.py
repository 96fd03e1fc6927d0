"""What it costs per picture that files are decoded in a process of their own.

make bench NAME=decoding

The same files are taken in twice, in pairs, the order by lot: decoded, stored and hashed in this process, and through
the decoder process, as stage prepare does it. Processor time counts both processes.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
from PIL import Image

from medgr2_jobs.data.decoder import client, limits, pictures
from medgr2_jobs.duplicates.phash_index import phash
from medgr2_jobs.store.images import ImageStore, encode

MAX_PIXELS = 401_408
FILES = 16  # of each size, half PNG and half JPEG


def draw(folder: Path, side: int) -> list[Path]:
    """Pictures with shapes and a little noise, as a scanner's."""
    rng, paths = np.random.default_rng(side), []
    for number in range(FILES):
        coarse = Image.fromarray(rng.integers(0, 255, (16, 16), np.uint8)).resize(
            (side, side), Image.Resampling.BICUBIC
        )
        noisy = np.asarray(coarse, np.int16) + rng.normal(0, 4, (side, side)).astype(np.int16)
        paths.append(folder / f"{side}-{number}.{'png' if number % 2 else 'jpg'}")
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).convert("RGB").save(paths[-1])
    return paths


def spent() -> float:
    """Seconds of processor time of this process and the decoder, so far."""
    processes = [psutil.Process(), *psutil.Process().children()]
    return sum(sum(process.cpu_times()[:2]) for process in processes)


def measure(store: ImageStore, paths: list[Path], rounds: int) -> dict[str, float]:
    """Milliseconds of processor time per picture both ways, and the median ratio on the clock."""

    def here(path: Path) -> str:
        stored = store.put(encode(pictures.decoded(limits.read_file(str(path))), MAX_PIXELS))
        return phash(store.load(stored.sha256))

    def apart(path: Path) -> str:
        return store.put(client.picture(path, MAX_PIXELS)).phash

    ways: tuple[Callable[[Path], str], ...] = (here, apart)
    processor = dict.fromkeys(ways, 0.0)
    ratios = []
    for path in paths:
        assert here(path) == apart(path)
    for _ in range(rounds):
        for way in random.sample(ways, 2):  # in blocks: the kernel counts processor time in hundredths of a second
            before = spent()
            for path in paths:
                way(path)
            processor[way] += spent() - before
        for path in paths:
            clock = {}
            for way in random.sample(ways, 2):
                started = time.perf_counter()
                way(path)
                clock[way] = time.perf_counter() - started
            ratios.append(clock[apart] / clock[here])
    count = rounds * len(paths)
    return {
        "here ms": round(1000 * processor[here] / count, 2),
        "apart ms": round(1000 * processor[apart] / count, 2),
        "processor time": round(processor[apart] / processor[here], 3),
        "clock": round(statistics.median(ratios), 3),
    }


def main() -> int:
    """Prints the line of JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--sides", type=int, nargs="+", default=[128, 224, 512, 1024])
    parser.add_argument("--rounds", type=int, default=4)
    asked = parser.parse_args()
    random.seed(1)
    figures = {}
    with tempfile.TemporaryDirectory(prefix="medgr2-bench-") as folder:
        store = ImageStore(Path(folder))
        for side in asked.sides:
            figures[f"{side} pixels"] = measure(store, draw(Path(folder), side), asked.rounds)
            print(f"{side} pixels: {figures[f'{side} pixels']}", file=sys.stderr, flush=True)
    count = len(asked.sides) * asked.rounds * FILES
    print(json.dumps({"name": "decoding", "figures": figures, "n": count, "cores": os.cpu_count()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
