"""Commands on cycles, on this computer or on a cluster; also `kubectl medgr2`. Only typer is imported."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from medgr2_api import command_line

from .cluster_options import (
    Force,
    Name,
    ReaderPodOptions,
    Timeout,
    Wait,
    WhereOptions,
    with_options,
)
from .command_group import CONTEXT, CommandGroup

cluster = typer.Typer(
    help="Look at and steer MedGR2Cycles; kubectl does the rest.",
    no_args_is_help=True,
    cls=CommandGroup,
    context_settings=CONTEXT,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
review = typer.Typer(
    name="review",
    help="Let an expert review triplets: what is vetoed is not learnt, what is answered is learnt so.",
    no_args_is_help=True,
    cls=CommandGroup,
)
cluster.add_typer(review)

Iteration = Annotated[
    int, typer.Option(min=1, max=20, help="Iteration whose triplets are reviewed.", show_default=False)
]


class Format(StrEnum):
    """Of the file with the triplets."""

    JSONL = "jsonl"
    CSV = "csv"


@cluster.command("list")
@with_options
def list_cycles(*, on: WhereOptions) -> None:
    """List the cycles of a workspace or namespace."""
    raise typer.Exit(on.at("").show_all())


@cluster.command()
@with_options
def status(cycle: Name, *, on: WhereOptions) -> None:
    """Show a cycle's conditions and stages, and what was made with other parameters than its spec has now."""
    raise typer.Exit(on.at(cycle).show(cycle))


@cluster.command()
@with_options
def model(cycle: Name, *, on: WhereOptions) -> None:
    """Say where a cycle's trained models are, which one to take and why, and how to load and ask it."""
    raise typer.Exit(on.at(cycle).model(cycle))


Checkpoint = Annotated[
    str,
    typer.Option(
        "--checkpoint",
        metavar="STAGE@N",
        help="Checkpoint to take: sft@N, grpo@N, or base; default: the best on validation.",
        show_default=False,
    ),
]


@cluster.command()
@with_options
def export(
    cycle: Name,
    target: Annotated[
        Path, typer.Argument(metavar="DIR", help="Folder to make on this computer; it may be there, but empty.")
    ],
    checkpoint: Checkpoint = "",
    *,
    pod: ReaderPodOptions,
    on: WhereOptions,
) -> None:
    """Write a trained model into a folder that any loader reads: bfloat16 safetensors, adapters, processor, model
    card."""
    raise typer.Exit(on.at(cycle, pod).export(cycle, target, checkpoint))


@cluster.command()
@with_options
def ask(
    cycle: Name,
    picture: Annotated[Path, typer.Argument(metavar="IMAGE", help="Picture file, also DICOM, on this computer.")],
    question: Annotated[str, typer.Argument(metavar="QUESTION", help="What to ask about it.", show_default=False)],
    option: Annotated[
        list[str] | None,
        typer.Option("--option", help="An answer to offer; once for each. The model was trained on such questions."),
    ] = None,
    checkpoint: Checkpoint = "",
    *,
    pod: ReaderPodOptions,
    on: WhereOptions,
) -> None:
    """Ask a trained model about a picture, and say which checkpoint answered. Not a medical device."""
    from .models import PictureQuestion

    asked = PictureQuestion(picture, question, tuple(option or ()), checkpoint)
    raise typer.Exit(on.at(cycle, pod).ask(cycle, asked))


@cluster.command()
@with_options
def logs(
    cycle: Name,
    stage: Annotated[
        str, typer.Argument(metavar="STAGE[@N]", help="Stage to show; default: what runs now, else what ran last.")
    ] = "",
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on, over all attempts, to the stage's end.")
    ] = False,
    attempt: Annotated[int, typer.Option(min=0, help="Number of an attempt; 0: the newest.")] = 0,
    no_volume: Annotated[
        bool, typer.Option("--no-volume", help="When the pods are gone, do not look on the volume.")
    ] = False,
    *,
    pod: ReaderPodOptions,
    on: WhereOptions,
) -> None:
    """Show what a stage prints, of all of its pods."""
    raise typer.Exit(on.at(cycle, pod).logs(cycle, stage, attempt, follow, volume=not no_volume))


@cluster.command()
@with_options
def suspend(cycle: Name, wait: Wait = False, timeout: Timeout = 600, *, on: WhereOptions) -> None:
    """Let running stages write a checkpoint and stop."""
    raise typer.Exit(on.at(cycle).suspend(cycle, wait * timeout))


@cluster.command()
@with_options
def resume(cycle: Name, wait: Wait = False, timeout: Timeout = 60, *, on: WhereOptions) -> None:
    """Let a suspended cycle go on from its checkpoints; on this computer it runs in this terminal."""
    raise typer.Exit(on.at(cycle).resume(cycle, wait * timeout))


@cluster.command()
@with_options
def restart(
    cycle: Name,
    stage: Annotated[
        str,
        typer.Argument(
            metavar="STAGE@N", help="Stage and iteration to begin with, such as grpo@2.", show_default=False
        ),
    ],
    wait: Wait = False,
    timeout: Timeout = 60,
    *,
    on: WhereOptions,
) -> None:
    """Run a stage, and all that depends on it, again; on this computer in this terminal."""
    raise typer.Exit(on.at(cycle).restart(cycle, stage, wait * timeout))


@cluster.command()
@with_options
def approve(
    cycle: Name,
    stage: Annotated[str, typer.Argument(metavar="STAGE[@N]", help="Stage to approve; default: all that wait.")] = "",
    wait: Wait = False,
    timeout: Timeout = 60,
    *,
    on: WhereOptions,
) -> None:
    """Let a stage go on that spec.pauseBefore holds back."""
    raise typer.Exit(on.at(cycle).approve(cycle, stage, wait * timeout))


@cluster.command()
@with_options
def cp(
    source: Annotated[
        str,
        typer.Argument(metavar="CYCLE:PATH", help="Cycle, and a path relative to its workspace.", show_default=False),
    ],
    target: Annotated[
        Path, typer.Argument(metavar="TARGET", help="File or folder on this computer to copy to.")
    ] = Path("."),
    force: Force = False,
    *,
    pod: ReaderPodOptions,
    on: WhereOptions,
) -> None:
    """Copy a file or folder from a cycle's workspace."""
    cycle, colon, path = source.partition(":")
    if not colon or not cycle:
        raise typer.BadParameter(f"{source!r}: expected CYCLE:PATH, such as loop:cycles/loop/report")
    raise typer.Exit(on.at(cycle, pod).copy(cycle, path, target, force))


@cluster.command()
@with_options
def report(
    cycle: Name,
    target: Annotated[
        Path | None,
        typer.Argument(metavar="TARGET", help="Folder on this computer to copy to; from a cluster: by default `.`."),
    ] = None,
    force: Force = False,
    *,
    pod: ReaderPodOptions,
    on: WhereOptions,
) -> None:
    """Say where a cycle's newest report is, and copy it; one on a cluster is always copied."""
    raise typer.Exit(on.at(cycle, pod).report(cycle, target, force))


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
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    *,
    pod: ReaderPodOptions,
    on: WhereOptions,
) -> None:
    """Show where a triplet came from and went: image, prompt, generator, score, decision, the policies that saw it."""
    raise typer.Exit(on.at(cycle, pod).lineage(cycle, triplet, json))


@review.command("export")
@with_options
def export_review(
    cycle: Name,
    iteration: Iteration,
    target: Annotated[Path, typer.Argument(metavar="TARGET", help="Folder on this computer to copy to.")] = Path("."),
    file_format: Annotated[Format, typer.Option("--format", help="Format of the list of triplets.")] = Format.JSONL,
    everything: Annotated[bool, typer.Option("--all", help="Include what was dropped, with the reasons.")] = False,
    sample: Annotated[
        int, typer.Option(min=0, help="At most so many, those first whose answer nobody is sure of; 0: all.")
    ] = 0,
    on_site: Annotated[
        bool, typer.Option("--on-site", help="Also what may not leave the site: the folder stays on it.")
    ] = False,
    force: Force = False,
    *,
    pod: ReaderPodOptions,
    on: WhereOptions,
) -> None:
    """Write what curate kept into a folder: a list with an empty column `veto`, the images, and a page to look at."""
    from .review import ExportRequest

    request = ExportRequest(cycle, iteration, str(file_format), everything, target, force, on_site, sample)
    raise typer.Exit(on.at(cycle, pod).export_review(request))


@review.command("import")
@with_options
def import_review(
    cycle: Name,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="JSONL or CSV with triplet_id and veto.")],
    iteration: Iteration,
    replace: Annotated[
        bool, typer.Option("--replace", help="What was imported before does not count any more.")
    ] = False,
    no_restart: Annotated[
        bool, typer.Option("--no-restart", help="On a cluster: do not let curate run again yet.")
    ] = False,
    wait: Wait = False,
    timeout: Timeout = 60,
    *,
    pod: ReaderPodOptions,
    on: WhereOptions,
) -> None:
    """Check an expert's review and let it count: curate drops what was vetoed, relabel takes right answers as gold."""
    place = on.at(cycle, pod)
    raise typer.Exit(
        place.import_review(cycle, iteration, file, replace=replace, restart=not no_restart, wait=wait * timeout)
    )


def main() -> None:
    """Entry point of `kubectl-medgr2`, which kubectl finds as `kubectl medgr2`."""
    command_line.end(lambda: cluster(prog_name="kubectl medgr2"))


if __name__ == "__main__":
    main()
