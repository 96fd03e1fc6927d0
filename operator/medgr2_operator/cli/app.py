"""`medgr2`: the command line. Only typer is imported here; each command imports what it needs when it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .cluster import cluster

app = typer.Typer(
    name="medgr2",
    help="A closed, self-improving training loop for medical vision-language models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

File = Annotated[Path, typer.Argument(metavar="CYCLE.yaml", help="A MedGR2Cycle.")]
Workspace = Annotated[Path, typer.Option("--workspace", "-w", help="Folder that all stages share.")]


@app.command()
def run(
    file: File,
    workspace: Workspace = Path(".medgr2"),
    restart_from: Annotated[
        str,
        typer.Option("--restart-from", metavar="STAGE@N", help="Run it, and all that depends on it, again."),
    ] = "",
    secrets_dir: Annotated[Path | None, typer.Option(help="Folder with secrets: <secrets-dir>/<name>/<key>.")] = None,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads per stage; 1 gives the same bytes every time.")] = 1,
    plain: Annotated[bool, typer.Option("--plain", help="Plain lines, also on a terminal.")] = False,
) -> None:
    """Run a cycle on this computer. Interrupt it at any moment; the same command goes on."""
    from .run import run_cycle

    raise typer.Exit(run_cycle(file, workspace, restart_from, secrets_dir, threads, plain))


@app.command()
def validate(file: File) -> None:
    """Check a cycle: fields, values, and what this version supports."""
    from .inspect import validate_file

    raise typer.Exit(validate_file(file))


@app.command()
def plan(file: File, workspace: Workspace = Path(".medgr2")) -> None:
    """Show the resolved parameters and where each came from, the graph, what would run and why, and what is reused."""
    from .inspect import show_plan

    raise typer.Exit(show_plan(file, workspace))


@app.command()
def compare(
    cycles: Annotated[list[str], typer.Argument(metavar="CYCLE...", help="Names of finished cycles.")],
    workspace: Workspace = Path(".medgr2"),
    json: Annotated[bool, typer.Option("--json", help="Rows as JSON.")] = False,
) -> None:
    """Tabulate cycles of one workspace, with paired differences."""
    from .inspect import compare_cycles

    raise typer.Exit(compare_cycles(cycles, workspace, json))


@app.command()
def version() -> None:
    """Show the version."""
    from importlib.metadata import version as installed

    typer.echo(f"medgr2 {installed('medgr2')}")


app.add_typer(cluster)


def main() -> None:
    """Entry point of the `medgr2` command."""
    app()


if __name__ == "__main__":
    main()
