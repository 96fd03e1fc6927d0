"""What pseudonyms stand for: `python -m medgr2_jobs.data.whois NAME…` prints a line of JSON for each that is known.

It reads what prepare has left in the workspace for its owner (`pseudonyms.py`), and nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from medgr2_api import command_line, paths
from medgr2_api.stage_contract import WORKSPACE_ENV, ExitCode


def find(root: Path, names: Collection[str]) -> Iterator[dict[str, str]]:
    """What is known of these: `file-…`, `group-…`, or the id of an item (`source/000012`).

    Yields:
        pseudonym, source, name, and the artifact of prepare (its inputHash) that has the pseudonym; an id of an item
        may stand for another record in another artifact.
    """
    wanted = set(names)
    for file in sorted((root / paths.NAMES).glob("*.jsonl"), key=lambda path: path.stat().st_mtime):
        with file.open(encoding="ascii") as lines:
            for line in lines:
                found: dict[str, str] = json.loads(line)
                if found["pseudonym"] in wanted:
                    yield found | {"inputHash": file.stem}


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="medgr2 whois", description="What pseudonyms stand for.")
    parser.add_argument("names", nargs="+")
    parser.add_argument("--workspace", type=Path, default=Path(os.environ.get(WORKSPACE_ENV, "/workspace")))
    options = parser.parse_args(arguments)
    known = set()
    try:
        for found in find(options.workspace, options.names):
            known.add(found["pseudonym"])
            print(json.dumps(found, ensure_ascii=False))
    except PermissionError as error:
        print(f"{error.filename}: {error.strerror}; only the owner of the volume may look it up", file=sys.stderr)
        return ExitCode.ERROR
    unknown = [name for name in options.names if name not in known]
    if unknown:
        folder = options.workspace / paths.NAMES
        print(
            f"nothing is known of {', '.join(unknown)}: {folder} says what file-…, group-… and ids of items stand for; "
            "of patients nothing is kept",
            file=sys.stderr,
        )
    return ExitCode.ERROR if unknown else ExitCode.OK


if __name__ == "__main__":
    command_line.end(main)
