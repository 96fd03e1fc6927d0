"""`medgr2 review export|import`: an expert's review of kept triplets, through a workspace on this computer or a cycle's
volume on a cluster. The jobs read and write it: they know parquet."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medgr2_api import paths
from medgr2_api.cycle import CycleSpec
from medgr2_api.presets import resolve
from medgr2_api.stage_contract import ExitCode

from ..local.state import StateError, StateFile
from . import jobs_process
from .errors import CommandError
from .hints import typed
from .unpack import final_place

if TYPE_CHECKING:  # the client's packages are not needed without a cluster
    from .cluster_options import ReaderPodOptions
    from .connection import Cluster

#: Folder of the workspace that a review is written to.
FOLDER = paths.review("").parent.name
_MAX_BYTES = 64 << 20  # of a file with a review: a hundred thousand triplets with long reasons


@dataclass(frozen=True)
class ExportRequest:
    """What is to be exported, and where to."""

    cycle: str
    iteration: int
    file_format: str
    everything: bool
    target: Path
    force: bool
    on_site: bool = False
    """The folder does not leave the site: it may have images that may not."""
    sample: int = 0
    """At most so many triplets; 0: all."""

    def arguments(self, spec: CycleSpec | None) -> list[str]:
        """Of `medgr2_jobs.review`.

        Args:
            spec: of now; None: there is none but what stage prepare was asked.
        """
        every = [*["--all"] * self.everything, *["--on-site"] * self.on_site]
        every += ["--sample", str(self.sample)] if self.sample else []
        if spec is not None:
            data = resolve(spec).data
            every += ["--sources", json.dumps([source.dump() for source in data.sources])]
            every += ["--benchmarks", json.dumps([benchmark.dump() for benchmark in data.benchmarks])]
        return ["export", self.cycle, "--iteration", str(self.iteration), "--format", self.file_format, *every]

    def folder(self) -> Path:
        """The folder that is made.

        Raises:
            CommandError: it exists already.
        """
        return final_place(self.target, f"{self.cycle}-i{self.iteration:03d}-triplets", self.force)

    def print_next_steps(self, folder: Path, summary: dict[str, Any], where: Sequence[object]) -> None:
        """Says what is where, and what to do with it; `where`: the options that name the place of the cycle."""
        file = folder / f"triplets.{self.file_format}"
        print(f"{file}: {summary['triplets']} triplets of curate@{self.iteration}; {folder / 'index.html'} shows them")
        if self.on_site:
            print("it is for experts on site: it may hold images that may not leave, so keep the folder there")
        elif summary["withheld"]:
            print(
                f"left out: {summary['withheld']} triplets that may not leave the site, for their image or for what a "
                "student has learnt from; --on-site has them"
            )
        print("where you have decided fill in veto (true or false) or right (the right option), or use the page; then")
        print(f"  {typed('review', 'import', self.cycle, file, '--iteration', self.iteration, *where)}")


@dataclass(frozen=True)
class ImportedReview:
    """What the jobs say of a review that they took."""

    sha256: str
    decided: int
    vetoed: int
    corrected: int
    candidates: int
    earlier: int

    @classmethod
    def from_json(cls, document: bytes) -> ImportedReview:
        """From what `medgr2_jobs.review import` prints."""
        return cls(**json.loads(document))

    def __str__(self) -> str:
        confirmed = self.decided - self.vetoed - self.corrected
        answered = f", {self.corrected} answered otherwise" if self.corrected else ""
        counts = f"{self.vetoed} vetoed, {confirmed} confirmed{answered}, of {self.candidates} candidates"
        added = f"; {self.earlier} decisions of earlier imports count as well (--replace forgets them)"
        return f"{paths.review(self.sha256)}: {counts}{added if self.earlier else ''}"


def export_local(workspace: Path, request: ExportRequest) -> int:
    """Exports from a workspace on this computer.

    Raises:
        CommandError: nothing to review, or the target exists already.
    """
    folder = request.folder()
    jobs_process.require("review")
    summary = jobs_process.unpacked(
        "review",
        *request.arguments(_stored_spec(workspace, request.cycle)),
        workspace=workspace,
        target=folder,
        what=str(folder),
        replace=request.force,
    )
    request.print_next_steps(folder, summary, ("-w", workspace))
    return ExitCode.OK


async def export_from_cluster(
    cluster: Cluster, request: ExportRequest, pod: ReaderPodOptions, where: Sequence[str]
) -> int:
    """Exports from a cycle's volume."""
    from .connection import parsed
    from .volume import opened

    folder, spec = request.folder(), parsed(await cluster.cycle(request.cycle)).spec
    async with opened(cluster, request.cycle, pod) as volume:
        summary = await volume.unpack(
            "review", *request.arguments(spec), target=folder, what=request.cycle, replace=request.force
        )
    request.print_next_steps(folder, summary, where)
    return ExitCode.OK


def import_local(workspace: Path, cycle: str, iteration: int, file: Path, *, replace: bool) -> int:
    """Takes a review into a workspace on this computer, and says what to put into the spec.

    Raises:
        CommandError: the file is not right; the message names its line.
    """
    data = _read(file)
    arguments = [*_import_arguments(cycle, iteration, file, data, replace), "--workspace", str(workspace)]
    jobs_process.require("review")
    imported = ImportedReview.from_json(jobs_process.output("review", *arguments, stdin=data))
    print(imported)
    print(f"put this into the spec of {cycle} (another review of iteration {iteration} goes):")
    print(f"  reviews: [{{iteration: {iteration}, sha256: {imported.sha256}}}]")
    print("then let curate take notice:")
    print(f"  medgr2 run CYCLE.yaml {shlex.join(['-w', str(workspace), '--restart-from', f'curate@{iteration}'])}")
    return ExitCode.OK


async def import_to_cluster(
    cluster: Cluster,
    cycle: str,
    iteration: int,
    file: Path,
    pod: ReaderPodOptions,
    *,
    replace: bool,
    restart: bool,
    wait: float,
) -> int:
    """Takes a review onto a cycle's volume and names it in the spec.

    Args:
        cluster: where.
        cycle: its name.
        iteration: whose triplets.
        file: JSONL or CSV.
        pod: through which it is written.
        replace: what was imported before does not count any more.
        restart: let curate run again.
        wait: seconds to wait until the operator has begun; 0: do not.

    Raises:
        CommandError: the file is not right; the message names its line.
    """
    from .lifecycle import name_review
    from .volume import opened

    data, chunks = _read(file), list[bytes]()
    async with opened(cluster, cycle, pod, FOLDER) as volume:
        arguments = _import_arguments(cycle, iteration, file, data, replace)
        await volume.run("review", *arguments, stdout=chunks.append, stdin=data)
    imported = ImportedReview.from_json(b"".join(chunks))
    print(imported)
    return await name_review(cluster, cycle, iteration, imported.sha256, restart, wait)


def _import_arguments(cycle: str, iteration: int, file: Path, data: bytes, replace: bool) -> list[str]:
    """Of `medgr2_jobs.review`, which reads the file from stdin."""
    words = ["import", cycle, "--iteration", str(iteration), "--name", file.name, "--bytes", str(len(data))]
    return [*words, *(["--replace"] if replace else [])]


def _read(file: Path) -> bytes:
    """The file with the review.

    Raises:
        CommandError: it cannot be read, or is none.
    """
    try:
        with file.open("rb") as stream:
            data = stream.read(_MAX_BYTES + 1)
    except OSError as error:
        raise CommandError(f"{file}: {error.strerror}") from None
    if not data.strip():
        raise CommandError(f"{file}: is empty", ExitCode.DATA_ERROR)
    if len(data) > _MAX_BYTES:
        raise CommandError(f"{file}: more than {_MAX_BYTES >> 20} MiB: not a list of triplets", ExitCode.DATA_ERROR)
    return data


def _stored_spec(workspace: Path, cycle: str) -> CycleSpec | None:
    """The spec by which the cycle last ran here.

    Raises:
        CommandError: the stored state cannot be read.
    """
    try:
        stored = StateFile(workspace, cycle).load()
    except StateError as error:
        raise CommandError(str(error)) from None
    return stored.spec if stored else None
