"""`medgr2`: the command line. Only typer is imported here; each command imports what it needs when it runs."""

from __future__ import annotations

import os
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from medgr2_api import command_line

from .cluster import cluster
from .command_group import CONTEXT, CommandGroup

app = typer.Typer(
    name="medgr2",
    help="A closed, self-improving training loop for medical vision-language models.",
    no_args_is_help=True,
    cls=CommandGroup,
    context_settings=CONTEXT,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

File = Annotated[Path, typer.Argument(metavar="CYCLE.yaml", help="File with a MedGR2Cycle.")]
Workspace = Annotated[Path, typer.Option("--workspace", "-w", help="Folder that all stages share: the workspace.")]


class TableFormat(StrEnum):
    """Of a comparison."""

    MARKDOWN = "markdown"
    CSV = "csv"
    LATEX = "latex"
    JSON = "json"


def _show_version(asked: bool) -> None:
    if asked:
        version()
        raise typer.Exit


@app.callback()
def options(
    _version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
    debug: Annotated[
        bool,
        typer.Option("--debug", help=f"Show where in the program an error happened; as {command_line.DEBUG_ENV}=1."),
    ] = False,
) -> None:
    """A closed, self-improving training loop for medical vision-language models."""
    if debug:
        os.environ[command_line.DEBUG_ENV] = "1"


@app.command()
def version() -> None:
    """Show the version."""
    from importlib.metadata import version as installed

    typer.echo(f"medgr2 {installed('medgr2')}")


@app.command()
def run(
    files: Annotated[list[Path], typer.Argument(metavar="CYCLE.yaml", help="Files with a MedGR2Cycle each.")],
    workspace: Workspace = Path(".medgr2"),
    restart_from: Annotated[
        str,
        typer.Option("--restart-from", metavar="STAGE@N", help="Run it, and all that depends on it, again."),
    ] = "",
    secrets_dir: Annotated[Path | None, typer.Option(help="Folder with secrets: <secrets-dir>/<name>/<key>.")] = None,
    threads: Annotated[
        int, typer.Option(min=1, help="CPU threads per stage; with 1 results repeat on one kind of processor.")
    ] = 1,
    parallelism: Annotated[
        int, typer.Option(min=0, help="How many stages run at the same time, over all cycles; 0: as many as can.")
    ] = 0,
    plain: Annotated[bool, typer.Option("--plain", help="Plain lines, also on a terminal.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only check it: ask the generator five questions, forecast the cost.")
    ] = False,
) -> None:
    """Run a cycle on this computer, or several side by side: what two of them need is made once.

    Interrupt it at any moment; the same command goes on.
    """
    if dry_run:
        from .jobs_commands import DRY_RUN_QUESTIONS, doctor

        raise typer.Exit(max(doctor(file, workspace, secrets_dir, DRY_RUN_QUESTIONS, False) for file in files))
    from .run import Options, run_cycles

    options = Options(restart_from, secrets_dir, threads, parallelism, plain)
    raise typer.Exit(run_cycles(files, workspace, options))


@app.command()
def validate(file: File) -> None:
    """Check a cycle: fields, values, and what this version supports."""
    from .cycle_file import validate

    raise typer.Exit(validate(file))


@app.command()
def plan(
    file: File,
    workspace: Workspace = Path(".medgr2"),
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    fit: Annotated[
        bool,
        typer.Option("--fit", help="Instead: memory, disk, GPU-hours and time; ends with 78 where it does not fit."),
    ] = False,
    gpu: Annotated[str, typer.Option(help="With --fit: kind of GPU, such as 'H100 80GB'.")] = "",
    gpus: Annotated[int, typer.Option(min=0, help="With --fit: GPUs of this computer, for `medgr2 run`.")] = 0,
    config: Annotated[
        list[str] | None,
        typer.Option(metavar="ROLE=PATH", help="With --fit: a model's config.json, as policy=PATH or reward=PATH."),
    ] = None,
    seed_questions: Annotated[int | None, typer.Option(min=0, help="With --fit: how many the sources have.")] = None,
    images: Annotated[int | None, typer.Option(min=0, help="With --fit: how many there are in all.")] = None,
    benchmark_questions: Annotated[
        int | None, typer.Option(min=0, help="With --fit: how many the benchmarks have.")
    ] = None,
) -> None:
    """Show the resolved parameters and where each came from, the graph, what would run and why, and what is reused.

    With --fit: what the cycle needs, and whether it has it.
    """
    if fit:
        from .fit import FitOptions, show_fit

        options = FitOptions(gpu, gpus, tuple(config or ()), seed_questions, images, benchmark_questions)
        raise typer.Exit(show_fit(file, workspace, options, json))
    if gpu or gpus or config or (seed_questions, images, benchmark_questions) != (None, None, None):
        raise typer.BadParameter("--gpu, --gpus, --config and the numbers of rows go with --fit")
    from .plan import show_plan

    raise typer.Exit(show_plan(file, workspace, json))


@app.command()
def compare(
    cycles: Annotated[list[str], typer.Argument(metavar="CYCLE", help="Names of finished cycles.")],
    workspace: Workspace = Path(".medgr2"),
    final: Annotated[
        bool, typer.Option("--final", help="Only each cycle's last checkpoint, against the first cycle's last.")
    ] = False,
    file_format: Annotated[TableFormat, typer.Option("--format", help="Format of the table.")] = TableFormat.MARKDOWN,
    json: Annotated[bool, typer.Option("--json", help="Print JSON, as --format json.")] = False,
) -> None:
    """Tabulate cycles of one workspace, with paired differences."""
    from .jobs_commands import compare

    raise typer.Exit(compare(cycles, workspace, "json" if json else str(file_format), final))


@app.command()
def doctor(
    file: File,
    workspace: Workspace = Path(".medgr2"),
    secrets_dir: Annotated[Path | None, typer.Option(help="Folder with secrets: <secrets-dir>/<name>/<key>.")] = None,
    questions: Annotated[
        int, typer.Option(min=0, help="Questions to ask the generator, and to pay, to try it and to forecast the cost.")
    ] = 3,
    real_images: Annotated[
        bool,
        typer.Option("--real-images", help="Ask about images of the sources that may be sent, not about a drawn one."),
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the results as JSON.")] = False,
) -> None:
    """Check a cycle before it runs: data, models, capacity, splits, the generator, and what it will cost."""
    from .jobs_commands import doctor

    raise typer.Exit(doctor(file, workspace, secrets_dir, questions, json, real_images))


@app.command()
def prompt(
    paradigm: Annotated[str, typer.Option(help="Direct, StepByStep or MetaCognitive.")] = "MetaCognitive",
    modality: Annotated[str, typer.Option(help="Modality of the image, such as CT.")] = "",
    question_type: Annotated[str, typer.Option(help="Kind of question, such as Diagnosis.")] = "Diagnosis",
    provider: Annotated[
        str, typer.Option(help="Kind of generator, as a cycle names it: each has its own dialect of the schema.")
    ] = "",
    image: Annotated[Path | None, typer.Option(help="A picture file that would go along.")] = None,
) -> None:
    """Show what a generator is sent about one image."""
    from .jobs_commands import prompt

    raise typer.Exit(prompt(paradigm, modality, question_type, provider, image))


@app.command()
def fetch(
    file: File,
    workspace: Workspace = Path(".medgr2"),
    secrets_dir: Annotated[Path | None, typer.Option(help="Folder with secrets: <secrets-dir>/<name>/<key>.")] = None,
) -> None:
    """Fetch the data and models that a cycle names to WORKSPACE/inputs, also for a site without network."""
    from .jobs_commands import fetch

    fetch(file, workspace, secrets_dir)


@app.command()
def whois(
    names: Annotated[
        list[str], typer.Argument(metavar="NAME", help="Such as file-0123456789abcdef, or the id of an item.")
    ],
    workspace: Workspace = Path(".medgr2"),
) -> None:
    """Say which file, origin or record a pseudonym stands for; for the owner of the workspace."""
    from . import jobs_process
    from .cycles import existing

    raise typer.Exit(jobs_process.run("data.whois", *names, "--workspace", str(existing(workspace))))


vllm = typer.Typer(
    name="vllm",
    help="vLLM, in an environment of its own.",
    no_args_is_help=True,
    cls=CommandGroup,
    context_settings=CONTEXT,
)


class VLLMBuild(StrEnum):
    """Of vLLM."""

    CUDA = "cuda"
    CPU = "cpu"


@vllm.command()
def install(
    build: Annotated[
        VLLMBuild | None, typer.Option(help="For which computer; absent: this one, as its GPUs say.")
    ] = None,
) -> None:
    """Make it in the cache folder, unless it is there, and print where: about 6 GB."""
    from .jobs_commands import install_vllm

    raise typer.Exit(install_vllm(str(build) if build else ""))


app.add_typer(vllm)
app.add_typer(cluster)


def main() -> None:
    """Entry point of the `medgr2` command."""
    command_line.end(app)


if __name__ == "__main__":
    main()
