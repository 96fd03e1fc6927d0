"""What the commands on a cluster have in common on the command line. Only typer is imported here, as in `app.py`."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, get_type_hints

import typer

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from .connection import Cluster

Name = Annotated[str, typer.Argument(metavar="CYCLE", help="Name of a MedGR2Cycle.", show_default=False)]
Wait = Annotated[bool, typer.Option("--wait", help="Until the operator has acted on it.")]
Timeout = Annotated[float, typer.Option(min=1, help="Seconds to wait.")]
Force = Annotated[bool, typer.Option("--force", help="Replace what is there.")]
LocalWorkspace = Annotated[
    Path | None,
    typer.Option("--workspace", "-w", help="Look in this folder (`medgr2 run`), not on a cluster.", show_default=False),
]


@dataclass(frozen=True)
class ClusterOptions:
    """Which cluster and namespace; empty: what the kubeconfig says."""

    namespace: Annotated[
        str, typer.Option("--namespace", "-n", help="Default: the kubeconfig's.", show_default=False)
    ] = ""
    context: Annotated[
        str, typer.Option(help="Context of the kubeconfig; default: the current one.", show_default=False)
    ] = ""
    kubeconfig: Annotated[str, typer.Option(help="Default: $KUBECONFIG or ~/.kube/config.", show_default=False)] = ""

    def run(self, command: Callable[[Cluster], Awaitable[int]]) -> NoReturn:
        """Connects and runs; ends with the exit code."""
        try:
            from .connection import run
        except ModuleNotFoundError as error:
            package = (error.name or "").partition(".")[0]
            if package in ("", "medgr2_api", "medgr2_operator"):
                raise
            from .errors import CommandError
            from .installation import install_command

            raise CommandError(f"commands on a cluster need {package}:\n  {install_command('operator')}", 78) from None
        raise typer.Exit(run(self, command))


@dataclass(frozen=True)
class ReaderPodOptions:
    """Of the pod through which a command reads the cycle's volume."""

    image: Annotated[
        str, typer.Option(help="Of the pod that reads the volume; default: the cycle's stages'.", show_default=False)
    ] = ""
    pod_timeout: Annotated[float, typer.Option(min=1, help="Seconds to wait for the pod that reads the volume.")] = 120


def with_options(command: Callable[..., None]) -> Callable[..., None]:
    """A command whose keyword parameters of type ClusterOptions and ReaderPodOptions are one option per field to typer,
    which knows no groups of options."""
    signature = inspect.signature(command, eval_str=True)
    groups = {
        name: parameter.annotation
        for name, parameter in signature.parameters.items()
        if parameter.annotation in (ClusterOptions, ReaderPodOptions)
    }

    def flat(**values: Any) -> None:
        for name, group in groups.items():
            values[name] = group(**{field.name: values.pop(field.name) for field in fields(group)})
        command(**values)

    flat.__name__, flat.__doc__ = command.__name__, command.__doc__
    flat.__annotations__ = {}
    flat.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=[
            flattened
            for name, parameter in signature.parameters.items()
            for flattened in (_of_fields(groups[name]) if name in groups else [parameter])
        ]
    )
    return flat


def _of_fields(group: type[ClusterOptions | ReaderPodOptions]) -> list[inspect.Parameter]:
    hints = get_type_hints(group, include_extras=True)
    return [
        inspect.Parameter(
            field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=hints[field.name]
        )
        for field in fields(group)
    ]


def run_local(command: Callable[[], int]) -> NoReturn:
    """Runs what needs no cluster; ends with the exit code."""
    raise typer.Exit(command())
