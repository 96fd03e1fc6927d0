"""Commands on a cluster; also `kubectl medgr2`. Only typer is imported here, as in `app.py`."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medgr2_api import command_line

from .cluster_options import (
    ClusterOptions,
    Force,
    LocalWorkspace,
    Name,
    ReaderPodOptions,
    Timeout,
    Wait,
    run_local,
    with_options,
)
from .command_group import CONTEXT, CommandGroup

if TYPE_CHECKING:
    from .connection import Cluster

cluster = typer.Typer(
    help="Look at and steer MedGR2Cycles on a cluster; kubectl does the rest.",
    no_args_is_help=True,
    cls=CommandGroup,
    context_settings=CONTEXT,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
review = typer.Typer(
    name="review",
    help="Let an expert review kept triplets; what is vetoed is not learnt.",
    no_args_is_help=True,
    cls=CommandGroup,
)
cluster.add_typer(review)

Iteration = Annotated[int, typer.Option(min=1, max=20, help="Whose triplets.", show_default=False)]


class Format(StrEnum):
    """Of the file with the triplets."""

    JSONL = "jsonl"
    CSV = "csv"


@cluster.command()
@with_options
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
    *,
    pod: ReaderPodOptions,
    on: ClusterOptions,
) -> None:
    """Show what a stage prints, of all of its pods."""

    async def command(cluster: Cluster) -> int:
        from .logs import show
        from .volume import files

        async def read(paths: Sequence[str]) -> dict[str, bytes]:
            return await files(cluster, cycle, paths, pod)

        return await show(cluster, cycle, stage, attempt, follow, None if no_volume else read)

    on.run(command)


@cluster.command()
@with_options
def suspend(cycle: Name, wait: Wait = False, timeout: Timeout = 600, *, on: ClusterOptions) -> None:
    """Let running stages write a checkpoint and stop; --wait: until they have."""

    async def command(cluster: Cluster) -> int:
        from .lifecycle import suspend

        return await suspend(cluster, cycle, wait * timeout)

    on.run(command)


@cluster.command()
@with_options
def resume(cycle: Name, wait: Wait = False, timeout: Timeout = 60, *, on: ClusterOptions) -> None:
    """Let a suspended cycle go on from its checkpoints."""

    async def command(cluster: Cluster) -> int:
        from .lifecycle import resume

        return await resume(cluster, cycle, wait * timeout)

    on.run(command)


@cluster.command()
@with_options
def restart(
    cycle: Name,
    stage: Annotated[str, typer.Argument(metavar="STAGE@N", help="Such as grpo@2.", show_default=False)],
    wait: Wait = False,
    timeout: Timeout = 60,
    *,
    on: ClusterOptions,
) -> None:
    """Run a stage, and all that depends on it, again."""

    async def command(cluster: Cluster) -> int:
        from .lifecycle import restart

        return await restart(cluster, cycle, stage, wait * timeout)

    on.run(command)


@cluster.command()
@with_options
def approve(
    cycle: Name,
    stage: Annotated[str, typer.Argument(metavar="STAGE[@N]", help="Default: all that wait.")] = "",
    wait: Wait = False,
    timeout: Timeout = 60,
    *,
    on: ClusterOptions,
) -> None:
    """Let a stage go on that spec.pauseBefore holds back."""

    async def command(cluster: Cluster) -> int:
        from .lifecycle import approve

        return await approve(cluster, cycle, stage, wait * timeout)

    on.run(command)


@cluster.command()
@with_options
def cp(
    source: Annotated[str, typer.Argument(metavar="CYCLE:PATH", help="Relative to the workspace.", show_default=False)],
    target: Annotated[Path, typer.Argument(metavar="TARGET", help="File or folder here.")] = Path("."),
    force: Force = False,
    *,
    pod: ReaderPodOptions,
    on: ClusterOptions,
) -> None:
    """Copy a file or folder of a cycle's workspace to this computer."""

    async def command(cluster: Cluster) -> int:
        from .volume import copy

        return await copy(cluster, source, target, pod, force)

    on.run(command)


@cluster.command()
@with_options
def report(
    cycle: Name,
    target: Annotated[Path, typer.Argument(metavar="TARGET", help="Folder here.")] = Path("."),
    force: Force = False,
    workspace: LocalWorkspace = None,
    *,
    pod: ReaderPodOptions,
    on: ClusterOptions,
) -> None:
    """Fetch a cycle's newest report, and say where it is."""
    if workspace is not None:
        from .lineage import local_report

        run_local(lambda: local_report(workspace, cycle))

    async def command(cluster: Cluster) -> int:
        from .volume import report

        return await report(cluster, cycle, target, pod, force)

    on.run(command)


@cluster.command()
@with_options
def lineage(
    cycle: Name,
    triplet: Annotated[
        str,
        typer.Argument(
            help="Id of a candidate, such as t001-000042-03; without it: all candidates, as JSON lines.",
            show_default=False,
        ),
    ] = "",
    json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
    workspace: LocalWorkspace = None,
    *,
    pod: ReaderPodOptions,
    on: ClusterOptions,
) -> None:
    """Show where a triplet came from and went: image, prompt, generator, score, decision, the policies that saw it."""
    if workspace is not None:
        from .lineage import local_lineage

        run_local(lambda: local_lineage(workspace, cycle, triplet, json))

    async def command(cluster: Cluster) -> int:
        from .volume import lineage

        return await lineage(cluster, cycle, triplet, pod, json)

    on.run(command)


@review.command("export")
@with_options
def export_review(
    cycle: Name,
    iteration: Iteration,
    target: Annotated[Path, typer.Argument(metavar="TARGET", help="Folder here.")] = Path("."),
    file_format: Annotated[Format, typer.Option("--format", help="Of the list.")] = Format.JSONL,
    everything: Annotated[bool, typer.Option("--all", help="Also what was dropped, with the reasons.")] = False,
    force: Force = False,
    workspace: LocalWorkspace = None,
    *,
    pod: ReaderPodOptions,
    on: ClusterOptions,
) -> None:
    """Write what curate kept into a folder: a list with an empty column `veto`, the images, and a page to look at."""
    from .review import ExportRequest, export_from_cluster, export_local

    request = ExportRequest(cycle, iteration, str(file_format), everything, target, force)
    if workspace is not None:
        run_local(lambda: export_local(workspace, request))
    on.run(lambda cluster: export_from_cluster(cluster, request, pod))


@review.command("import")
@with_options
def import_review(
    cycle: Name,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="JSONL or CSV with triplet_id and veto.")],
    iteration: Iteration,
    no_restart: Annotated[
        bool, typer.Option("--no-restart", help="On a cluster: do not let curate run again yet.")
    ] = False,
    wait: Wait = False,
    timeout: Timeout = 60,
    workspace: LocalWorkspace = None,
    *,
    pod: ReaderPodOptions,
    on: ClusterOptions,
) -> None:
    """Check an expert's review and let it count: curate drops what was vetoed."""
    from .review import import_local, import_to_cluster

    if workspace is not None:
        run_local(lambda: import_local(workspace, cycle, iteration, file))
    on.run(
        lambda cluster: import_to_cluster(
            cluster, cycle, iteration, file, pod, restart=not no_restart, wait=wait * timeout
        )
    )


def main() -> None:
    """Entry point of `kubectl-medgr2`, which kubectl finds as `kubectl medgr2`."""
    command_line.end(lambda: cluster(prog_name="kubectl medgr2"))


if __name__ == "__main__":
    main()
