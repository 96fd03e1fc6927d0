"""What damaged input does to all that reads what others wrote: cycles, records, pictures, DICOM, providers' bodies,
termination messages, kubeconfigs, states and manifests.

make bench NAME=fuzz
python -m bench.fuzz --cases 2000 --seed 7              # fewer, others
python -m bench.fuzz --target DICOM --case 4711         # one again, with its traceback

Each target runs in a process of its own: its death is counted, and the next case goes on. A case that takes longer
than a minute counts as a death. Cases follow from seed, target and number. Exit code 1: a traceback or a death.
"""

from __future__ import annotations

import argparse
import faulthandler
import importlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from tests.support.fuzz_target import Target
from tests.support.fuzz_targets import TARGETS

CASES = 50_000
#: All targets together stop after this, whatever is left.
SECONDS = 3000.0
#: Of one case, before it counts as a death.
CASE_SECONDS = 60
_SHOWN = 5


@dataclass
class Outcome:
    """How a target's cases ended."""

    ended: Counter[str] = field(default_factory=Counter)
    """Cases by the word they ended in."""
    faults: list[str] = field(default_factory=list)
    """Tracebacks and deaths, each with its case."""
    peak_mib: float = 0.0
    """Resident memory at its most: of the target's process, or of one that it started."""
    seconds: float = 0.0

    @property
    def cases(self) -> int:
        """How many ended, well or not."""
        return sum(self.ended.values())


def target(name: str) -> Target:
    """A target by its name, or one of another module: `package.module:NAME`."""
    if name in TARGETS:
        return TARGETS[name]
    module, _, attribute = name.partition(":")
    other: Target = getattr(importlib.import_module(module), attribute)
    return other


def run_cases(name: str, seed: int, first: int, last: int, seconds: float, tell: Path) -> None:
    """Runs cases of one target in this process, and writes down after each how it ended."""
    faulthandler.enable()
    ends = time.monotonic() + seconds
    with tempfile.TemporaryDirectory() as folder, tell.open("a") as stream:
        case = target(name).prepare(Path(folder))
        for number in range(first, last):
            if time.monotonic() > ends:
                return
            print(json.dumps({"case": number}), file=stream, flush=True)
            faulthandler.dump_traceback_later(CASE_SECONDS, exit=True)
            try:
                ended, fault = case(random.Random(f"{seed}/{name}/{number}")), ""
            except Exception:
                ended, fault = "traceback", traceback.format_exc()
            faulthandler.cancel_dump_traceback_later()
            print(json.dumps({"ended": ended, "fault": fault, "peak_mib": _peak_mib()}), file=stream, flush=True)


def _peak_mib() -> float:
    """Resident memory at its most, of this process and of each that it started.

    Not getrusage: it counts what the parent had when it forked, too.
    """
    peaks = []
    for process in (os.getpid(), *(child.pid for child in psutil.Process().children())):
        with suppress(OSError):  # it ended meanwhile
            status = Path(f"/proc/{process}/status").read_text()
            peaks += [int(kib) / 1024 for kib in re.findall(r"VmHWM:\s+(\d+)", status)]
    return max(peaks)


def fuzz(name: str, seed: int, cases: int, seconds: float) -> Outcome:
    """Runs cases of one target in processes of its own: a new one after each death."""
    outcome, number, started = Outcome(), 0, time.monotonic()
    while number < cases and (left := seconds - (time.monotonic() - started)) > 0:
        with (
            tempfile.NamedTemporaryFile("r", suffix=".jsonl") as tell,
            tempfile.TemporaryFile("w+", errors="replace") as stderr,
        ):
            command = [sys.executable, "-m", "bench.fuzz", "--target", name, "--seed", str(seed)]
            command += ["--from", str(number), "--to", str(cases), "--seconds", str(left), "--tell", tell.name]
            worker = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=stderr, check=False)
            stderr.seek(0)
            errors = stderr.read()
            began = None
            for line in map(json.loads, tell):
                began = line.get("case", began)
                if "ended" in line:
                    outcome.peak_mib = max(outcome.peak_mib, line["peak_mib"])
                    outcome.ended[line["ended"]] += 1
                    if line["fault"]:
                        outcome.faults.append(f"{name}, case {began}: {line['fault']}")
                    number, began = (began or 0) + 1, None
            if worker.returncode == 0:
                break
            if began is None:
                raise RuntimeError(f"{name}: the process ended with {worker.returncode} between two cases: {errors}")
            outcome.ended["death"] += 1
            outcome.faults.append(f"{name}, case {began}: {_how(worker.returncode)}\n{errors[-3000:]}")
            number = began + 1
    outcome.seconds = time.monotonic() - started
    return outcome


def _how(code: int) -> str:
    return f"died of {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"


def fuzz_all(seed: int, cases: int, seconds: float, names: list[str]) -> dict[str, Outcome]:
    """Runs the targets one after another, each with its share of the cases and of the time."""
    whole = sum(TARGETS[name].share for name in names)
    return {
        name: fuzz(name, seed, max(1, round(cases * share)), seconds * share)
        for name, share in ((name, TARGETS[name].share / whole) for name in names)
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=CASES)
    parser.add_argument("--seconds", type=float, default=SECONDS)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--target", action="append", help=f"of {', '.join(TARGETS)}")
    parser.add_argument("--case", type=int, help="only this one, of one --target, in this process")
    for option in ("--from", "--to"):
        parser.add_argument(option, type=int, help=argparse.SUPPRESS)
    parser.add_argument("--tell", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    names = args.target or list(TARGETS)
    if args.tell:
        run_cases(names[0], args.seed, getattr(args, "from"), args.to, args.seconds, args.tell)
        return 0
    if args.case is not None:
        with tempfile.TemporaryDirectory() as folder:
            print(target(names[0]).prepare(Path(folder))(random.Random(f"{args.seed}/{names[0]}/{args.case}")))
        return 0
    outcomes = fuzz_all(args.seed, args.cases, args.seconds, names)
    print(f"| seed {args.seed} | cases | tracebacks | deaths | peak MiB | s | ended |\n|---|---|---|---|---|---|---|")
    for name, outcome in outcomes.items():
        words = ", ".join(f"{word} {count}" for word, count in outcome.ended.most_common())
        counts = f"{outcome.cases} | {outcome.ended['traceback']} | {outcome.ended['death']}"
        print(f"| {name} | {counts} | {outcome.peak_mib:.0f} | {outcome.seconds:.0f} | {words} |")
    faults = [fault for outcome in outcomes.values() for fault in outcome.faults]
    for fault in faults[:_SHOWN]:
        print(f"\n{fault}", file=sys.stderr)
    print(f"\n{sum(outcome.cases for outcome in outcomes.values()):,} cases, {len(faults)} faults")
    return int(bool(faults))


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
