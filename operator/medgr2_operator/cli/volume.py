"""Reading a cycle's volume on a cluster, through a pod that lives as long as the command: `medgr2 cp` and `report`."""

from __future__ import annotations

import secrets
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medgr2_api import paths
from medgr2_api.cycle import Cycle
from medgr2_api.stage_contract import ExitCode

from ..kube.client import JOBS, ApiError, Client, Manifest
from ..kube.ephemeral_pod import PodNotRunningError, is_gone, running
from ..kube.logs_exec import BrokenStreamError, execute
from ..render import labels
from ..render.pod import MAIN
from ..render.render_context import RenderSettings
from ..render.volume_reader_pod import READER, reader_pod
from .cluster_options import ReaderPodOptions
from .connection import Cluster, parsed
from .errors import CommandError
from .lineage import print_lineage
from .models import named
from .unpack import UNPACKING, Unpacker, final_place, print_copied, refusal, workspace_path

#: Longest life of the pod, in seconds: the end of a copy that takes longer, or of one whose command was killed.
LIFETIME = 6 * 3600
_NAME_LENGTH = 50  # of a cycle, within the pod's name


@dataclass(frozen=True)
class Volume:
    """A cycle's workspace, through a pod that has it mounted."""

    client: Client
    namespace: str
    pod: str
    image: str

    async def run(self, module: str, *arguments: str, stdout: Callable[[bytes], object], stdin: bytes = b"") -> str:
        """Runs a module of medgr2_jobs; returns what it wrote to stderr.

        Raises:
            CommandError: it failed; the message is its own. Or the pod was taken away (exit 75).
            ApiError: the connection broke.
        """
        command = ["python", "-m", f"medgr2_jobs.{module}", *arguments]
        try:
            ended = await execute(self.client, self.pod, self.namespace, READER, command, stdout, stdin)
        except BrokenStreamError:
            raise
        except ApiError as error:  # it did not start: is it the image, or is there no pod any more?
            if await is_gone(self.client, self.pod, self.namespace):
                raise CommandError(f"pod {self.pod} was taken away: {error}", ExitCode.TEMPORARY) from error
            raise
        if ended.exit_code == 0:
            return ended.stderr
        reason = (ended.stderr.strip().splitlines() or [f"exit code {ended.exit_code}"])[-1]
        if "No module named" in reason:
            reason = f"image {self.image} is not one of this version's stages ({reason}); give another with --image"
        known = ended.exit_code in set(ExitCode)
        killed = ended.exit_code > 128  # with its pod: nothing is wrong with the request
        raise CommandError(reason, ExitCode.TEMPORARY if killed else ended.exit_code if known else ExitCode.ERROR)

    async def fetch(self, path: str, target: Path, *, replace: bool = False) -> dict[str, Any]:
        """Copies a file or folder; it is there as a whole, or not at all.

        Args:
            path: relative to the workspace.
            target: what it will be called.
            replace: what is there already.

        Returns:
            what was copied: `bytes`, `files`, `left_out`, `left_out_count`.

        Raises:
            CommandError: it is not there, or may not be copied.
            ApiError: the connection broke.
        """
        return await self.unpack("store.tar", path, target=target, what=path, replace=replace)

    async def unpack(self, module: str, *arguments: str, target: Path, what: str, replace: bool) -> dict[str, Any]:
        """Unpacks the archive that a module prints (as `store.tar` does); it is there as a whole, or not at all.

        Args:
            module: of medgr2_jobs.
            arguments: its.
            target: what the folder or file will be called.
            what: names it in messages.
            replace: what is there already.

        Returns:
            The summary that the module gives.

        Raises:
            CommandError: it failed, or its archive is damaged.
            ApiError: the connection broke.
        """
        try:
            with Unpacker(target) as unpacker:
                stderr = await self.run(module, *arguments, stdout=unpacker.write)
                return unpacker.end(stderr, replace=replace)
        except UNPACKING as error:
            raise refusal(what, error) from error


@asynccontextmanager
async def opened(cluster: Cluster, name: str, options: ReaderPodOptions, writable: str = "") -> AsyncIterator[Volume]:
    """The volume of a cycle, for as long as the block lasts.

    Args:
        cluster: where.
        name: of the cycle.
        options: of the pod.
        writable: folder of the workspace that may be written to; empty: none.

    Raises:
        CommandError: no such cycle, or the pod does not start.
        ApiError: the API server refuses the pod.
    """
    stored = await cluster.cycle(name)
    cycle = parsed(stored)
    image = options.image or cycle.spec.template.image or await _image_of_stages(cluster, stored)
    pod_name = f"{name[:_NAME_LENGTH].rstrip('-')}-read-{secrets.token_hex(4)}"
    manifest = reader_pod(cycle, pod_name, image, LIFETIME, RenderSettings(image=image), writable)
    try:
        async with running(cluster.client, manifest, options.pod_timeout) as pod:
            yield Volume(cluster.client, cluster.namespace, pod, image)
    except PodNotRunningError as error:
        raise CommandError(str(error), ExitCode.TEMPORARY) from error


async def _image_of_stages(cluster: Cluster, stored: Manifest) -> str:
    """Of the newest Job: the operator's default is only known to the operator."""
    selector = f"{labels.CYCLE_UID}={stored['metadata']['uid']}"
    jobs = await cluster.client.list(JOBS, cluster.namespace, labels=selector)
    if not jobs:
        raise CommandError(f"{stored['metadata']['name']}: no stage has run yet, so its image is not known: --image")
    newest = max(jobs, key=lambda job: str(job["metadata"]["creationTimestamp"]))
    containers = newest["spec"]["template"]["spec"]["containers"]
    return str(next(container["image"] for container in containers if container["name"] == MAIN))


async def copy(cluster: Cluster, name: str, path: str, target: Path, pod: ReaderPodOptions, force: bool) -> int:
    """`medgr2 cp CYCLE:PATH TARGET`."""
    path = workspace_path(path)
    final = final_place(target, Path(path).name or name, force)
    async with opened(cluster, name, pod) as volume:
        summary = await volume.fetch(path, final, replace=force)
    print_copied(final, summary)
    return ExitCode.OK


async def with_checkpoint(
    cluster: Cluster, cycle: Cycle, checkpoint: str, pod: ReaderPodOptions, use: Callable[[Path], int]
) -> int:
    """`medgr2 export` and `ask`: fetches what they need of the workspace, to use it here: the pod has no memory for a
    model.

    Args:
        cluster: where.
        cycle: with its status.
        checkpoint: its name; empty: the best.
        pod: that reads the volume.
        use: given the folder that stands for the workspace; returns the exit code. The folder goes afterwards.

    Raises:
        CommandError: no such checkpoint; the pod does not start.
    """
    name, _ = named(cycle, checkpoint)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary, "workspace")
        async with opened(cluster, cycle.metadata.name, pod) as volume:
            await volume.unpack("export.bundle", cycle.metadata.name, name, target=folder, what=name, replace=False)
        return use(folder)


async def report(cluster: Cluster, name: str, target: Path, pod: ReaderPodOptions, force: bool) -> int:
    """`medgr2 report CYCLE`: fetches the newest report."""
    final = final_place(target, f"{name}-report", force)
    async with opened(cluster, name, pod) as volume:
        await volume.fetch(str(paths.report(name)), final, replace=force)
    print(f"report: {final / 'report.md'}")
    return ExitCode.OK


async def lineage(cluster: Cluster, name: str, triplet: str, pod: ReaderPodOptions, as_json: bool) -> int:
    """`medgr2 lineage CYCLE [TRIPLET]`: prints a candidate's, or that of all of them as JSON lines."""
    chunks: list[bytes] = []
    async with opened(cluster, name, pod) as volume:
        if not triplet:
            await volume.run("report.lineage", name, stdout=sys.stdout.buffer.write)
            return ExitCode.OK
        await volume.run("report.lineage", name, triplet, stdout=chunks.append)
    return print_lineage(b"".join(chunks), as_json)


async def files(cluster: Cluster, name: str, paths: Sequence[str], pod: ReaderPodOptions) -> dict[str, bytes]:
    """The content of those of these files that are there."""
    contents: dict[str, bytes] = {}
    with tempfile.TemporaryDirectory() as folder:
        async with opened(cluster, name, pod) as volume:
            for number, path in enumerate(paths):
                file = Path(folder, str(number))
                try:
                    await volume.fetch(path, file)
                except CommandError as error:
                    if error.exit_code != ExitCode.USAGE:
                        raise
                else:
                    contents[path] = file.read_bytes()
    return contents
