"""`python -m medgr2_jobs.review export|import CYCLE --iteration N`: the jobs' half of `medgr2 review`. No torch.

export: the folder for the expert as a tar archive on stdout; the last line of stderr is JSON, as with
`medgr2_jobs.store.tar`. import: the decisions from stdin into the workspace; prints JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from pydantic import TypeAdapter

from medgr2_api import command_line
from medgr2_api.data import Benchmark, ResolvedSource
from medgr2_api.stage_contract import WORKSPACE_ENV, ExitCode

from ..errors import ConfigError, DataError, StageError
from ..report.cycle_artifacts import CycleArtifacts
from ..store.rows.candidates import Candidate
from . import export_review, import_review


def receive(
    root: Path, cycle: str, iteration: int, data: bytes, name: str, *, replace: bool = False
) -> dict[str, int | str]:
    """Checks decisions and puts them into the workspace, beside those that were imported before.

    Args:
        root: the workspace.
        cycle: name of the cycle.
        iteration: whose triplets were looked at.
        data: the file.
        name: what it is called, for its format and for messages.
        replace: what was imported before does not count any more.

    Returns:
        sha256, and how many triplets were decided, vetoed, given another answer, and generated; `earlier`: how many
        decisions of imports before count as well.

    Raises:
        ConfigError: nothing was generated in this iteration.
        DataError: a line is not right; nothing is written.
        NotThere: no such cycle.
    """
    artifacts, role = CycleArtifacts(root, cycle), f"generate-{iteration}"
    if not artifacts.has_input(role):
        raise ConfigError(f"cycle {cycle!r}: generate@{iteration} has not finished: there is nothing to decide on")
    candidates = artifacts.input(role).rows(Candidate)
    decisions = import_review.check(import_review.parse(data, name), candidates, name)
    if not decisions:
        raise DataError(
            f"{name}: no triplet is decided: fill in veto (true or false), or right (the right option), for those that "
            "you looked at"
        )
    before = [] if replace else import_review.earlier(root, cycle, iteration, candidates)
    everything = import_review.merged(before, decisions)
    sha256 = import_review.save(root, everything)
    import_review.remember(root, cycle, iteration, sha256)
    counts = import_review.by_triplet(everything)
    return {
        "sha256": sha256,
        "decided": len(counts),
        "vetoed": sum(decision.veto for decision in counts.values()),
        "corrected": sum(decision.corrects for decision in counts.values()),
        "candidates": len(candidates),
        "earlier": len(everything) - len(decisions),
    }


def _sources(text: str) -> list[ResolvedSource]:
    return TypeAdapter(list[ResolvedSource]).validate_json(text)


def _benchmarks(text: str) -> list[Benchmark]:
    return TypeAdapter(list[Benchmark]).validate_json(text)


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="medgr2 review")
    parser.add_argument("command", choices=("export", "import"))
    parser.add_argument("cycle")
    parser.add_argument("--iteration", type=int, required=True)
    parser.add_argument("--format", choices=export_review.FORMATS, default="jsonl")
    parser.add_argument("--all", action="store_true")
    parser.add_argument("--sample", type=int, default=0, help="export: at most so many, doubtful ones first; 0: all")
    parser.add_argument("--replace", action="store_true", help="import: forget what was imported before")
    parser.add_argument("--on-site", action="store_true", help="also what may not leave the site")
    parser.add_argument("--sources", type=_sources, help="data.sources of the spec of now, as JSON")
    parser.add_argument("--benchmarks", type=_benchmarks, default=[], help="data.benchmarks, likewise")
    parser.add_argument("--name", default="stdin.jsonl", help="of the file on stdin")
    parser.add_argument("--bytes", type=int, default=-1, help="of the file on stdin; -1: to its end")
    parser.add_argument("--workspace", type=Path, default=Path(os.environ.get(WORKSPACE_ENV, "/workspace")))
    options = parser.parse_args(arguments)
    try:
        if "/" in options.cycle or options.cycle in ("", ".", ".."):
            raise ConfigError(f"{options.cycle!r} is not the name of a cycle")
        if options.command == "import":
            data = sys.stdin.buffer.read(options.bytes)
            if 0 <= options.bytes != len(data):
                raise DataError(f"{options.name}: {len(data)} of {options.bytes} bytes arrived; try again")
            print(
                json.dumps(
                    receive(
                        options.workspace, options.cycle, options.iteration, data, options.name, replace=options.replace
                    )
                )
            )
            return int(ExitCode.OK)
        rows = export_review.triplets(
            options.workspace, options.cycle, options.iteration, options.all, doubtful=bool(options.sample)
        )
        inputs = None if options.sources is None else [*options.sources, *options.benchmarks]
        gate = export_review.gate(options.workspace, options.cycle, inputs, on_site=options.on_site)
        private: frozenset[str] = frozenset()
        if not options.on_site:
            private = export_review.of_private_students(options.workspace, options.cycle, options.iteration, inputs)
        allowed = [row for row in rows if gate.allows(Path(row.image).stem) and row.triplet_id not in private]
        withheld = len(rows) - len(allowed)
        if rows and not allowed:
            raise ConfigError(
                f"none of the {len(rows)} triplets may leave the site: each is about an image that may not, or by "
                "a student that has seen one (allowExternal); for an expert on site: --on-site"
            )
        if options.sample:
            allowed = export_review.sample(options.workspace, options.cycle, options.iteration, allowed, options.sample)
        title = f"{options.cycle}, iteration {options.iteration}"
        exported = export_review.write(gate, allowed, options.format, title, sys.stdout.buffer)
    except StageError as error:
        print(error, file=sys.stderr)
        return int(error.exit_code)
    print(
        json.dumps({**asdict(exported), "triplets": len(allowed), "withheld": withheld}),
        file=sys.stderr,
    )
    return int(ExitCode.OK)


if __name__ == "__main__":
    command_line.end(main)
