"""A cluster for developers, kept until `down`.

python -m tests.cluster build [--level …]     # what the tests of this level need, built beforehand
python -m tests.cluster up [--level control-plane|kwok|node]
python -m tests.cluster down
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

from tests.cluster import images, system, tools
from tests.cluster.cluster_lock import KeptCluster
from tests.cluster.processes import ProcessError

LEVELS = ("control-plane", "kwok", "node")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.cluster", description="A Kubernetes cluster on loopback.")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, description in (("up", "start a cluster, or say where it is"), ("build", "build what tests need")):
        commands.add_parser(name, help=description).add_argument("--level", choices=LEVELS, default="kwok")
    commands.add_parser("down", help="stop it and remove everything it left")
    asked = parser.parse_args(arguments)
    if asked.command != "down":
        os.environ[system.LEVEL_ENV] = asked.level
    cluster = KeptCluster()
    if asked.command == "down":
        print("stopped" if cluster.down() else "there was none")
        return 0
    if asked.command == "build":
        return _build(asked.level)
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


def _build(level: str) -> int:
    """Programs and images at the same time: the ones need the processor, the others the network."""
    programs = tools.LEVELS["all"] if level == "node" else tools.WITHOUT_NODE
    for line in announcement(level, programs):
        print(line, file=sys.stderr, flush=True)
    try:
        with ThreadPoolExecutor(1) as beside:
            others = beside.submit(_build_images) if level == "node" else None
            tools.ensure(programs, _report)
            if others:
                others.result()
    except (tools.ToolError, ProcessError, RuntimeError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def announcement(level: str, programs: Iterable[str]) -> list[str]:
    """What is going to be built and installed, where, and how large it is; nothing where all of it is there."""
    lines = []
    if absent := tools.missing(programs):
        lines.append(f"builds {len(absent)} programs of the test cluster in {tools.cache()}/tools (about 1 GB)")
    if level == "node":
        if packages := system.missing():
            lines.append(f"installs on this computer, from Debian: {', '.join(packages)}")
        lines.append(f"keeps images and containers in {tools.cache()} (up to 30 GB)")
    return lines


def _build_images() -> None:
    if obstacle := system.obstacle():
        raise tools.ToolError(obstacle)
    if installed := system.install():
        print(f"installed {', '.join(installed)}", file=sys.stderr, flush=True)
    for image in images.ALL:
        started = time.monotonic()
        reference = images.build(image)
        _report(f"{reference} ({images.size(reference)})", time.monotonic() - started)


def _report(built: str, seconds: float) -> None:
    print(f"{seconds:6.1f} s  built {built}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
