"""pytest plugin: writes down what each test costs the processor, where MEDGR2_TEST_CPU names a folder for it.

Wall-clock times say little where five processes share two cores. `python -m tests.support.cpu_report FOLDER` prints the
files and the tests that cost most, and what each process was doing at the end, when there is nothing left to share.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

FOLDER_ENV = "MEDGR2_TEST_CPU"
TICKS = os.sysconf("SC_CLK_TCK")


def _stat(entry: Path) -> tuple[int, int] | None:
    """(parent, ticks of the process and of the children that it has waited for); None: it is gone."""
    try:
        fields = (entry / "stat").read_text().rpartition(")")[2].split()
    except (OSError, UnicodeDecodeError):
        return None
    return int(fields[1]), sum(int(ticks) for ticks in fields[11:15])


def processor_seconds(pid: int) -> float:
    """What a process and all that it started have used. What nobody waited for is lost when it ends."""
    found = {int(entry.name): _stat(entry) for entry in Path("/proc").iterdir() if entry.name.isdigit()}
    children: dict[int, list[int]] = {}
    for each, stat in found.items():
        if stat:
            children.setdefault(stat[0], []).append(each)
    ticks, family = 0, [pid]
    while family:
        each = family.pop()
        stat = found.get(each)
        ticks += stat[1] if stat else 0
        family += children.get(each, [])
    return ticks / TICKS


class _Recorder:
    """One line of JSON per test and step: its id, the step, its processor and wall-clock seconds, and its end."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._file = (folder / f"{os.environ.get('PYTEST_XDIST_WORKER', 'main')}.jsonl").open("a", buffering=1)
        self._wall, self._cpu = time.time(), 0.0
        self._line("", "collect")

    def _line(self, test: str, step: str) -> None:
        began = time.process_time()
        wall, cpu = time.time(), processor_seconds(os.getpid())
        line = {"test": test, "step": step, "cpu": cpu - self._cpu, "wall": wall - self._wall, "end": wall}
        print(json.dumps(line), file=self._file)
        self._wall, self._cpu = wall, cpu + time.process_time() - began  # looking costs, too

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        self._line("", "between")
        return (yield)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._line(report.nodeid, report.when or "")


def pytest_collection_finish(session: pytest.Session) -> None:
    """Only who runs tests collects; with xdist that are its workers."""
    if folder := os.environ.get(FOLDER_ENV):
        session.config.pluginmanager.register(_Recorder(Path(folder)))


def _table(title: str, seconds: Counter[str], of: Counter[str], most: int) -> None:
    print(f"{title} (processor seconds, wall-clock seconds)")
    for name, value in seconds.most_common(most):
        print(f"{value:8.1f} {of[name]:8.1f}  {name}")


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--most", type=int, default=40, help="rows of a table")
    options = parser.parse_args()
    files = {kind: Counter[str]() for kind in ("cpu", "wall")}
    tests = {kind: Counter[str]() for kind in ("cpu", "wall")}
    ends: dict[str, list[dict[str, Any]]] = {}
    for path in sorted(options.folder.glob("*.jsonl")):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        ends[path.stem] = [line for line in lines if line["step"] == "call"]
        for line in lines:
            name = line["test"] or f"({line['step']})"
            step = f" {line['step']}" if line["step"] in ("setup", "teardown") else ""
            for kind in ("cpu", "wall"):
                files[kind][name.partition("::")[0]] += line[kind]
                tests[kind][name + step] += line[kind]
    print(f"all: {files['cpu'].total():.0f} processor seconds in {files['wall'].total():.0f} seconds of all processes")
    _table("files", files["cpu"], files["wall"], options.most)
    _table("tests", tests["cpu"], tests["wall"], options.most)
    last = max(lines[-1]["end"] for lines in ends.values())
    print("the last tests of each process, and how many seconds before the end of the last one they ended")
    for process, lines in ends.items():
        for line in lines[-3:]:
            print(f"{process:>8} {last - line['end']:8.1f}  {line['test']}")


if __name__ == "__main__":
    main()
