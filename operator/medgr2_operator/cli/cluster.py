"""Commands on a cluster; also `kubectl medgr2`. Only typer is imported here, as in `app.py`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .cluster_options import (
    Context,
    Force,
    Image,
    Kubeconfig,
    Local,
    Name,
    Namespace,
    PodTimeout,
    Timeout,
    Wait,
    here,
    on_cluster,
)
from .review import decisions

if TYPE_CHECKING:
    from .connection import Cluster

cluster = typer.Typer(
    help="Look at and steer MedGR2Cycles on a cluster; kubectl does the rest.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@cluster.command()
def logs(
    cycle: Name,
    stage: Annotated[str, typer.Argument(metavar="STAGE[@N]", help="Default: what runs now, else what ran last.")] = "",
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on, over all attempts, to the stage's end.")
    ] = False,
    attempt: Annotated[int, typer.Option(min=0, help="Number of an attempt; 0: the newest.")] = 0,
    no_volume: Annotated[
        bool, typer.Option("--no-volume", help="When the pods are gone, do not look on the volume.")
    ] = False,
    image: Image = "",
    pod_timeout: PodTimeout = 120,
    namespace: Namespace = "",
    context: Context = "",
    kubeconfig: Kubeconfig = "",
) -> None:
    """Show what a stage prints, of all of its pods."""

    async def command(at: Cluster) -> int:
        from .logs import show
        from .volume import files

        async def read(paths: Sequence[str]) -> dict[str, bytes]:
            return await files(at, cycle, paths, image, pod_timeout)

        return await show(at, cycle, stage, attempt, follow, None if no_volume else read)

    on_cluster(command, namespace, context, kubeconfig)


@cluster.command()
def suspend(
    cycle: Name,
    wait: Wait = False,
    timeout: Timeout = 600,
    namespace: Namespace = "",
    context: Context = "",
    kubeconfig: Kubeconfig = "",
) -> None:
    """Let running stages write a checkpoint and stop; --wait: until they have."""

    async def command(at: Cluster) -> int:
        from .lifecycle import suspend

        return await suspend(at, cycle, wait * timeout)

    on_cluster(command, namespace, context, kubeconfig)


@cluster.command()
def resume(
    cycle: Name,
    wait: Wait = False,
    timeout: Timeout = 60,
    namespace: Namespace = "",
    context: Context = "",
    kubeconfig: Kubeconfig = "",
) -> None:
    """Let a suspended cycle go on from its checkpoints."""

    async def command(at: Cluster) -> int:
        from .lifecycle import resume

        return await resume(at, cycle, wait * timeout)

    on_cluster(command, namespace, context, kubeconfig)


@cluster.command()
def restart(
    cycle: Name,
    stage: Annotated[str, typer.Argument(metavar="STAGE@N", help="Such as grpo@2.", show_default=False)],
    wait: Wait = False,
    timeout: Timeout = 60,
    namespace: Namespace = "",
    context: Context = "",
    kubeconfig: Kubeconfig = "",
) -> None:
    """Run a stage, and all that depends on it, again."""

    async def command(at: Cluster) -> int:
        from .lifecycle import restart

        return await restart(at, cycle, stage, wait * timeout)

    on_cluster(command, namespace, context, kubeconfig)


@cluster.command()
def approve(
    cycle: Name,
    stage: Annotated[str, typer.Argument(metavar="STAGE[@N]", help="Default: all that wait.")] = "",
    wait: Wait = False,
    timeout: Timeout = 60,
    namespace: Namespace = "",
    context: Context = "",
    kubeconfig: Kubeconfig = "",
) -> None:
    """Let a stage go on that spec.pauseBefore holds back."""

    async def command(at: Cluster) -> int:
        from .lifecycle import approve

        return await approve(at, cycle, stage, wait * timeout)

    on_cluster(command, namespace, context, kubeconfig)


@cluster.command()
def cp(
    source: Annotated[str, typer.Argument(metavar="CYCLE:PATH", help="Relative to the workspace.", show_default=False)],
    target: Annotated[Path, typer.Argument(metavar="TARGET", help="File or folder here.")] = Path("."),
    force: Force = False,
    image: Image = "",
    pod_timeout: PodTimeout = 120,
    namespace: Namespace = "",
    context: Context = "",
    kubeconfig: Kubeconfig = "",
) -> None:
    """Copy a file or folder of a cycle's workspace to this computer."""

    async def command(at: Cluster) -> int:
        from .volume import copy

        return await copy(at, source, target, image, pod_timeout, force)

    on_cluster(command, namespace, context, kubeconfig)


@cluster.command()
def report(
    cycle: Name,
    target: Annotated[Path, typer.Argument(metavar="TARGET", help="Folder here.")] = Path("."),
    force: Force = False,
    workspace: Local = None,
    image: Image = "",
    pod_timeout: PodTimeout = 120,
    namespace: Namespace = "",
    context: Context = "",
    kubeconfig: Kubeconfig = "",
) -> None:
    """Fetch a cycle's newest report, and say where it is."""
    if workspace is not None:
        from .lineage import local_report

        raise typer.Exit(here(lambda: local_report(workspace, cycle)))

    async def command(at: Cluster) -> int:
        from .volume import report

        return await report(at, cycle, target, image, pod_timeout, force)

    on_cluster(command, namespace, context, kubeconfig)


@cluster.command()
def lineage(
    cycle: Name,
    triplet: Annotated[str, typer.Argument(help="Id of a candidate, such as t001-000042-03.", show_default=False)],
    json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
    workspace: Local = None,
    image: Image = "",
    pod_timeout: PodTimeout = 120,
    namespace: Namespace = "",
    context: Context = "",
    kubeconfig: Kubeconfig = "",
) -> None:
    """Tell a triplet's story: its image, prompt, generator, score, decision, and which policies saw it."""
    if workspace is not None:
        from .lineage import local_story, print_story

        raise typer.Exit(here(lambda: print_story(local_story(workspace, cycle, triplet), json)))

    async def command(at: Cluster) -> int:
        from .lineage import print_story
        from .volume import story

        return print_story(await story(at, cycle, triplet, image, pod_timeout), json)

    on_cluster(command, namespace, context, kubeconfig)


cluster.add_typer(decisions)


def main() -> None:
    """Entry point of `kubectl-medgr2`, which kubectl finds as `kubectl medgr2`."""
    cluster(prog_name="kubectl medgr2")


if __name__ == "__main__":
    main()
