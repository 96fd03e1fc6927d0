"""`python -m medgr2_jobs.engine install`: makes vLLM's environment unless it is there, and prints its folder."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from medgr2_api import command_line

from . import environment


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="medgr2 vllm", description="vLLM in an environment of its own.")
    commands = parser.add_subparsers(dest="command", required=True)
    install = commands.add_parser("install", help="make it, unless it is there, and print its folder")
    install.add_argument("--build", type=environment.Build, choices=tuple(environment.Build))
    asked = parser.parse_args(arguments)
    wanted = environment.here(asked.build)
    print(environment.ensure(wanted, lambda line: print(line, file=sys.stderr, flush=True)))
    return 0


if __name__ == "__main__":
    command_line.end(main)
