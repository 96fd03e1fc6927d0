"""What the commands on a cluster have in common on the command line. Only typer is imported here, as in `app.py`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from .connection import Cluster

Name = Annotated[str, typer.Argument(metavar="CYCLE", help="Name of a MedGR2Cycle.", show_default=False)]
Namespace = Annotated[str, typer.Option("--namespace", "-n", help="Default: the kubeconfig's.", show_default=False)]
Context = Annotated[str, typer.Option(help="Context of the kubeconfig; default: the current one.", show_default=False)]
Kubeconfig = Annotated[str, typer.Option(help="Default: $KUBECONFIG or ~/.kube/config.", show_default=False)]
Wait = Annotated[bool, typer.Option("--wait", help="Until the operator has acted on it.")]
Timeout = Annotated[float, typer.Option(min=1, help="Seconds to wait.")]
Image = Annotated[
    str, typer.Option(help="Of the pod that reads the volume; default: the cycle's stages'.", show_default=False)
]
PodTimeout = Annotated[float, typer.Option(min=1, help="Seconds to wait for the pod that reads the volume.")]
Force = Annotated[bool, typer.Option("--force", help="Replace what is there.")]
Local = Annotated[
    Path | None,
    typer.Option("--workspace", "-w", help="Look in this folder (`medgr2 run`), not on a cluster.", show_default=False),
]


def on_cluster(command: Callable[[Cluster], Awaitable[int]], namespace: str, context: str, kubeconfig: str) -> None:
    """Connects and runs; ends with the exit code."""
    try:
        from .connection import Where, run
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in ("", "medgr2_api", "medgr2_operator"):
            raise
        typer.echo(f"commands on a cluster need {package}: pip install 'medgr2[operator]'", err=True)
        raise typer.Exit(2) from None
    raise typer.Exit(run(Where(namespace, context, kubeconfig), command))


def here(command: Callable[[], int]) -> int:
    """Runs what needs no cluster."""
    from .errors import CommandError

    try:
        return command()
    except CommandError as error:
        typer.echo(str(error), err=True)
        return error.code
