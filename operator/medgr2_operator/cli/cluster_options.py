"""What the commands on cycles have in common on the command line. Only typer is imported here, as in `app.py`."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from .connection import Cluster
    from .cycles import Cycles

Name = Annotated[str, typer.Argument(metavar="CYCLE", help="Name of a MedGR2Cycle.", show_default=False)]
Wait = Annotated[bool, typer.Option("--wait", help="Wait until it has happened.")]
Timeout = Annotated[float, typer.Option(min=1, help="Seconds to wait.")]
Force = Annotated[bool, typer.Option("--force", help="Replace what is there.")]


@dataclass(frozen=True)
class WhereOptions:
    """Where the cycle is: a workspace of this computer, or a cluster and namespace; empty: what the kubeconfig says."""

    workspace: Annotated[
        Path | None,
        typer.Option(
            "--workspace",
            "-w",
            help="Folder of `medgr2 run` on this computer; default: .medgr2 if it has the cycle, else a cluster.",
            show_default=False,
        ),
    ] = None

    namespace: Annotated[
        str,
        typer.Option(
            "--namespace", "-n", help="Namespace on the cluster; default: the kubeconfig's.", show_default=False
        ),
    ] = ""
    context: Annotated[
        str, typer.Option(help="Context of the kubeconfig; default: the current one.", show_default=False)
    ] = ""
    kubeconfig: Annotated[
        str, typer.Option(help="Kubeconfig file; default: $KUBECONFIG or ~/.kube/config.", show_default=False)
    ] = ""

    def at(self, cycle: str, pod: ReaderPodOptions | None = None) -> Cycles:
        """The place where a cycle is."""
        from .cycles import place_of

        return place_of(cycle, self, pod)

    def cluster_words(self) -> list[str]:
        """The options that name the cluster, as the user gave them."""
        given = (("--namespace", self.namespace), ("--context", self.context), ("--kubeconfig", self.kubeconfig))
        return [word for option, value in given if value for word in (option, value)]

    def run(self, command: Callable[[Cluster], Awaitable[int]]) -> int:
        """Connects to the cluster and runs; returns the exit code."""
        try:
            from .connection import run
        except ModuleNotFoundError as error:
            package = (error.name or "").partition(".")[0]
            if package in ("", "medgr2_api", "medgr2_operator"):
                raise
            from .errors import CommandError
            from .installation import install_command

            raise CommandError(f"commands on a cluster need {package}:\n  {install_command('operator')}", 78) from None
        return run(self, command)


@dataclass(frozen=True)
class ReaderPodOptions:
    """Of the pod through which a command reads the cycle's volume."""

    image: Annotated[
        str,
        typer.Option(
            help="Image of the pod that reads the volume; default: that of the cycle's stages.", show_default=False
        ),
    ] = ""
    pod_timeout: Annotated[float, typer.Option(min=1, help="Seconds to wait for the pod that reads the volume.")] = 120


def with_options(command: Callable[..., None]) -> Callable[..., None]:
    """A command whose keyword parameters of type WhereOptions and ReaderPodOptions are one option per field to typer,
    which knows no groups of options."""
    signature = inspect.signature(command, eval_str=True)
    groups = {
        name: parameter.annotation
        for name, parameter in signature.parameters.items()
        if parameter.annotation in (WhereOptions, ReaderPodOptions)
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


def _of_fields(group: type[WhereOptions | ReaderPodOptions]) -> list[inspect.Parameter]:
    hints = get_type_hints(group, include_extras=True)
    return [
        inspect.Parameter(
            field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=hints[field.name]
        )
        for field in fields(group)
    ]
