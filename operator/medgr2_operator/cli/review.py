"""`medgr2 decisions export|import`: an expert reviews kept triplets. Only typer is imported here, as in `app.py`."""

from __future__ import annotations

from enum import StrEnum
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

if TYPE_CHECKING:
    from .connection import Cluster

decisions = typer.Typer(
    name="decisions", help="Let an expert review kept triplets; what is vetoed is not learnt.", no_args_is_help=True
)

Iteration = Annotated[int, typer.Option(min=1, max=20, help="Whose triplets.", show_default=False)]


class Format(StrEnum):
    """Of the file with the triplets."""

    JSONL = "jsonl"
    CSV = "csv"


@decisions.command("export")
def export(
    cycle: Name,
    iteration: Iteration,
    target: Annotated[Path, typer.Argument(metavar="TARGET", help="Folder here.")] = Path("."),
    file_format: Annotated[Format, typer.Option("--format", help="Of the list.")] = Format.JSONL,
    everything: Annotated[bool, typer.Option("--all", help="Also what was dropped, with the reasons.")] = False,
    force: Force = False,
    workspace: Local = None,
    image: Image = "",
    pod_timeout: PodTimeout = 120,
    namespace: Namespace = "",
    context: Context = "",
    kubeconfig: Kubeconfig = "",
) -> None:
    """Write what curate kept into a folder: a list with an empty column `veto`, the images, and a page to look at."""
    from .review_local import Wanted

    wanted = Wanted(cycle, iteration, str(file_format), everything, target, force)
    if workspace is not None:
        from .review_local import export_here

        raise typer.Exit(here(lambda: export_here(workspace, wanted)))

    async def command(at: Cluster) -> int:
        from .volume import opened

        place = wanted.place()
        async with opened(at, cycle, image, pod_timeout) as volume:
            told = await volume.unpack("review", *wanted.arguments, target=place, what=cycle, replace=force)
        return wanted.say(place, told)

    on_cluster(command, namespace, context, kubeconfig)


@decisions.command("import")
def import_(
    cycle: Name,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="JSONL or CSV with triplet_id and veto.")],
    iteration: Iteration,
    no_restart: Annotated[
        bool, typer.Option("--no-restart", help="On a cluster: do not let curate run again yet.")
    ] = False,
    wait: Wait = False,
    timeout: Timeout = 60,
    workspace: Local = None,
    image: Image = "",
    pod_timeout: PodTimeout = 120,
    namespace: Namespace = "",
    context: Context = "",
    kubeconfig: Kubeconfig = "",
) -> None:
    """Check an expert's decisions and let them count: curate drops what was vetoed."""
    if workspace is not None:
        from .review_local import import_here

        raise typer.Exit(here(lambda: import_here(workspace, cycle, iteration, file)))

    async def command(at: Cluster) -> int:
        from .lifecycle import review
        from .review_local import FOLDER, Imported, read_file, receiving
        from .volume import opened

        data, pieces = read_file(file), list[bytes]()
        arguments = receiving(cycle, iteration, file, len(data))
        async with opened(at, cycle, image, pod_timeout, FOLDER) as volume:
            await volume.run("review", *arguments, stdout=pieces.append, stdin=data)
        imported = Imported.of(b"".join(pieces))
        print(imported)
        return await review(at, cycle, iteration, imported.sha256, not no_restart, wait * timeout)

    on_cluster(command, namespace, context, kubeconfig)
