"""The planner against very many random schedules: crashes, lost Jobs, lagging caches, edits, restarts, clocks.

make bench NAME=schedules
python -m bench.schedules --seeded 100000 --first 10000     # more, others

What must hold is in `tests/support/planner_invariants.py`. `make test` runs the first seeds and a tenth of what
Hypothesis looks for here. Exit code 1: an invariant broke; the message names the schedule, and `run_schedule` of its
seed is it again.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time

from tests.support.event_schedules import SEEDS, run_schedule
from tests.support.planner_invariants import InvariantBroken
from tests.support.searched_schedules import explore


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeded", type=int, default=9000, help="random schedules from seeds")
    parser.add_argument("--first", type=int, default=SEEDS, help="the first seed")
    parser.add_argument("--searched", type=int, default=1000, help="schedules that Hypothesis chooses, and shrinks")
    args = parser.parse_args()
    began = time.process_time()
    try:
        for seed in range(args.first, args.first + args.seeded):
            run_schedule(seed)
        if args.searched:
            explore(args.searched)
    except InvariantBroken as broken:
        print(broken, file=sys.stderr)
        return 1
    seconds = round(time.process_time() - began, 1)
    figures = {"name": "schedules", "cpu_seconds": seconds, "n": args.seeded + args.searched, "cores": os.cpu_count()}
    print(json.dumps(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
