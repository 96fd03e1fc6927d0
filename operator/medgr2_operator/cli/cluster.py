"""Commands on a cluster; also `kubectl medgr2`. Only typer is imported here, as in `app.py`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from .connection import Cluster

cluster = typer.Typer(
    help="Look at and steer MedGR2Cycles on a cluster; kubectl does the rest.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

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


def _run(command: Callable[[Cluster], Awaitable[int]], namespace: str, context: str, kubeconfig: str) -> None:
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

    _run(command, namespace, context, kubeconfig)


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
        from .steer import suspend

        return await suspend(at, cycle, wait * timeout)

    _run(command, namespace, context, kubeconfig)


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
        from .steer import resume

        return await resume(at, cycle, wait * timeout)

    _run(command, namespace, context, kubeconfig)


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
        from .steer import restart

        return await restart(at, cycle, stage, wait * timeout)

    _run(command, namespace, context, kubeconfig)


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
        from .steer import approve

        return await approve(at, cycle, stage, wait * timeout)

    _run(command, namespace, context, kubeconfig)


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

    _run(command, namespace, context, kubeconfig)


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
        from .stories import local_report

        raise typer.Exit(_here(lambda: local_report(workspace, cycle)))

    async def command(at: Cluster) -> int:
        from .volume import report

        return await report(at, cycle, target, image, pod_timeout, force)

    _run(command, namespace, context, kubeconfig)


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
        from .stories import local_story, print_story

        raise typer.Exit(_here(lambda: print_story(local_story(workspace, cycle, triplet), json)))

    async def command(at: Cluster) -> int:
        from .stories import print_story
        from .volume import story

        return print_story(await story(at, cycle, triplet, image, pod_timeout), json)

    _run(command, namespace, context, kubeconfig)


def _here(command: Callable[[], int]) -> int:
    """Runs what needs no cluster."""
    from .errors import CommandError

    try:
        return command()
    except CommandError as error:
        typer.echo(str(error), err=True)
        return error.code


def main() -> None:
    """Entry point of `kubectl-medgr2`, which kubectl finds as `kubectl medgr2`."""
    cluster(prog_name="kubectl medgr2")


if __name__ == "__main__":
    main()
