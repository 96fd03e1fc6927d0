"""A cluster for developers, kept until `down`.

python -m tests.cluster up [--level control-plane|kwok]
python -m tests.cluster down
"""

from __future__ import annotations

import argparse
import sys
import time

from tests.cluster import tools
from tests.cluster.processes import ProcessError
from tests.cluster.shared import KeptCluster

LEVELS = ("control-plane", "kwok")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.cluster", description="A Kubernetes cluster on loopback.")
    commands = parser.add_subparsers(dest="command", required=True)
    up = commands.add_parser("up", help="start a cluster, or say where it is")
    up.add_argument("--level", choices=LEVELS, default="kwok")
    commands.add_parser("down", help="stop it and remove everything it left")
    asked = parser.parse_args(arguments)
    cluster = KeptCluster()
    if asked.command == "down":
        print("stopped" if cluster.down() else "there was none")
        return 0
    try:
        tools.ensure(tools.LEVELS[asked.level], _report)
        started = time.monotonic()
        control_plane = cluster.up(asked.level)
    except (tools.ToolError, ProcessError) as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{time.monotonic() - started:6.1f} s  {control_plane.server}", file=sys.stderr)
    print(f"export KUBECONFIG={control_plane.kubeconfig}")
    print(f"export PATH={tools.path_of('kubectl').parent}:$PATH")
    return 0


def _report(built: str, seconds: float) -> None:
    print(f"{seconds:6.1f} s  built {built}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
