"""`python -m medgr2_jobs.export.bundle CYCLE CHECKPOINT`: what `export` and `ask` need of a workspace, as a tar.

For a cycle on a cluster: the pod that reads its volume has not the memory for a model, so the parts come here, and the
work is done here. The archive is as that of `medgr2_jobs.store.tar`, and in it a workspace: folders where there are
links, and of each artifact the manifest and the parts that are needed. Imports no torch.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from medgr2_api import command_line, paths
from medgr2_api.stage_contract import WORKSPACE_ENV, ExitCode
from medgr2_api.stages import PREPARE

from ..errors import CorruptArtifact, StageError
from ..report.cycle_artifacts import CycleArtifacts
from ..store.artifact import ArtifactReader
from ..store.tar import ROOT, CountingWriter, ExportSummary
from .checkpoint_name import BASE, parse

Wanted = Callable[[str], bool]


def write(root: Path, cycle: str, name: str, stream: BinaryIO) -> ExportSummary:
    """Writes the archive.

    Args:
        root: the workspace.
        cycle: its name.
        name: of the checkpoint.
        stream: where to write.

    Raises:
        StageError: no such cycle or checkpoint.
    """
    artifacts = CycleArtifacts(root, cycle)
    files = dict(_files(artifacts, cycle, name))
    counted, summary = CountingWriter(stream), ExportSummary()
    with tarfile.open(fileobj=counted, mode="w|", format=tarfile.PAX_FORMAT) as archive:  # type: ignore[call-overload]
        folders = {parent for path in files for parent in path.parents if parent != PurePosixPath(".")}
        for folder in (PurePosixPath(ROOT), *sorted(PurePosixPath(ROOT) / folder for folder in folders)):
            member = tarfile.TarInfo(str(folder))
            member.type = tarfile.DIRTYPE
            archive.addfile(member)
        for path, source in sorted(files.items()):
            member = tarfile.TarInfo(str(PurePosixPath(ROOT) / path))
            with source.open("rb") as content:
                member.size = os.fstat(content.fileno()).st_size
                archive.addfile(member, content)
            summary.files += 1
    stream.flush()
    summary.sha256, summary.bytes = counted.sha256.hexdigest(), counted.bytes
    return summary


def _files(artifacts: CycleArtifacts, cycle: str, name: str) -> Iterator[tuple[PurePosixPath, Path]]:
    """Path in the workspace that the archive holds, and file."""
    stage, iteration = parse(artifacts, cycle, name)
    adapters = False
    if name != BASE:
        made = artifacts.input(f"{stage}-{iteration}")
        adapters = made.has(paths.ADAPTER_BASE)
        yield from _of(made, cycle, stage, iteration, lambda part: part.startswith("model/"))
        for role in made.manifest.inputs:  # whether it is of the data of now is told by these
            maker, _, number = role.rpartition("-")
            if maker in ("curate", "relabel"):
                yield from _of(artifacts.input(role), cycle, maker, int(number), lambda part: False)
    whole = adapters or name == BASE
    yield from _of(
        artifacts.input(PREPARE.name),
        cycle,
        PREPARE.name,
        0,
        lambda part: part == "inputs.json" or (whole and part.startswith("models/policy/")),
    )
    for measured_in in sorted({0, iteration}):
        if artifacts.has_input(f"measure-{measured_in}"):
            measured = artifacts.input(f"measure-{measured_in}")
            yield from _of(measured, cycle, measured.ref.stage, measured_in, lambda part: part == "results.json")


def _of(
    reader: ArtifactReader, cycle: str, stage: str, iteration: int, wanted: Wanted
) -> Iterator[tuple[PurePosixPath, Path]]:
    folder = paths.iteration_link(cycle, iteration, stage)
    for source, shard in reader.shards:
        place = folder / source.relative_to(reader.folder)
        yield place / paths.MANIFEST, source / paths.MANIFEST
        for part in shard.parts:
            if wanted(part.name):
                yield place / part.path, source / part.path


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="medgr2 export", description="Parts of a workspace as a tar archive.")
    parser.add_argument("cycle")
    parser.add_argument("checkpoint")
    parser.add_argument("--workspace", type=Path, default=Path(os.environ.get(WORKSPACE_ENV, "/workspace")))
    options = parser.parse_args(arguments)
    try:
        summary = write(options.workspace, options.cycle, options.checkpoint, sys.stdout.buffer)
    except StageError as error:
        print(error, file=sys.stderr)
        return int(error.exit_code)
    except FileNotFoundError as error:
        print(CorruptArtifact(f"{error.filename}: is not there any more"), file=sys.stderr)
        return int(ExitCode.DATA_ERROR)
    print(json.dumps(asdict(summary)), file=sys.stderr)
    return int(ExitCode.OK)


if __name__ == "__main__":
    command_line.end(main)
