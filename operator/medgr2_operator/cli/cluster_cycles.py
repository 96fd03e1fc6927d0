"""The cycles of a namespace on a cluster (`cycles.Cycles`)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from medgr2_api.stage_contract import ExitCode

from .cluster_options import ReaderPodOptions, WhereOptions

if TYPE_CHECKING:
    from .connection import Cluster
    from .models import PictureQuestion
    from .review import ExportRequest


@dataclass(frozen=True)
class ClusterCycles:
    """Each verb is a connection."""

    where: WhereOptions
    pod: ReaderPodOptions | None = None

    def _run(self, command: Callable[[Cluster], Awaitable[int]]) -> int:
        return self.where.run(command)

    @property
    def _pod(self) -> ReaderPodOptions:
        return self.pod or ReaderPodOptions()

    def show_all(self) -> int:
        async def command(cluster: Cluster) -> int:
            from ..kube.client import CYCLES
            from .connection import parsed
            from .status_view import print_list

            print_list([parsed(stored) for stored in await cluster.client.list(CYCLES, cluster.namespace)])
            return ExitCode.OK

        return self._run(command)

    def show(self, cycle: str) -> int:
        async def command(cluster: Cluster) -> int:
            from .connection import parsed
            from .hints import typed
            from .status_view import print_status

            stored = parsed(await cluster.cycle(cycle))
            print_status(stored, lambda key: typed("restart", cycle, key, *self.where.cluster_words()))
            return ExitCode.OK

        return self._run(command)

    def logs(self, cycle: str, stage: str, attempt: int, follow: bool, *, volume: bool) -> int:
        async def command(cluster: Cluster) -> int:
            from .logs import show
            from .volume import files

            async def read(paths: Sequence[str]) -> dict[str, bytes]:
                return await files(cluster, cycle, paths, self._pod)

            return await show(cluster, cycle, stage, attempt, follow, read if volume else None)

        return self._run(command)

    def suspend(self, cycle: str, wait: float) -> int:
        async def command(cluster: Cluster) -> int:
            from .lifecycle import suspend

            return await suspend(cluster, cycle, wait)

        return self._run(command)

    def resume(self, cycle: str, wait: float) -> int:
        async def command(cluster: Cluster) -> int:
            from .lifecycle import resume

            return await resume(cluster, cycle, wait)

        return self._run(command)

    def restart(self, cycle: str, stage: str, wait: float) -> int:
        async def command(cluster: Cluster) -> int:
            from .lifecycle import restart

            return await restart(cluster, cycle, stage, wait)

        return self._run(command)

    def approve(self, cycle: str, stage: str, wait: float) -> int:
        async def command(cluster: Cluster) -> int:
            from .lifecycle import approve

            return await approve(cluster, cycle, stage, wait)

        return self._run(command)

    def model(self, cycle: str) -> int:
        async def command(cluster: Cluster) -> int:
            from medgr2_api import paths

            from .connection import parsed
            from .hints import typed
            from .models import print_models

            print_models(
                parsed(await cluster.cycle(cycle)),
                lambda record: cluster.typed("cp", f"{cycle}:{paths.artifact(record.name, record.input_hash)}", "."),
                lambda record: "",
                lambda key: typed("restart", cycle, key, *self.where.cluster_words()),
                lambda *words: typed(*words, *self.where.cluster_words()),
            )
            return ExitCode.OK

        return self._run(command)

    def export(self, cycle: str, target: Path, checkpoint: str) -> int:
        async def command(cluster: Cluster) -> int:
            from .connection import parsed
            from .models import check_target, export_model
            from .volume import with_checkpoint

            check_target(target)
            stored = parsed(await cluster.cycle(cycle))
            return await with_checkpoint(
                cluster, stored, checkpoint, self._pod, lambda folder: export_model(folder, stored, target, checkpoint)
            )

        return self._run(command)

    def ask(self, cycle: str, question: PictureQuestion) -> int:
        async def command(cluster: Cluster) -> int:
            from .connection import parsed
            from .models import ask_model, check_question
            from .volume import with_checkpoint

            check_question(question)
            stored = parsed(await cluster.cycle(cycle))
            return await with_checkpoint(
                cluster, stored, question.checkpoint, self._pod, lambda folder: ask_model(folder, stored, question)
            )

        return self._run(command)

    def report(self, cycle: str, target: Path | None, force: bool) -> int:
        async def command(cluster: Cluster) -> int:
            from ..plan.spec_edits import edits_of
            from .connection import parsed
            from .hints import print_edits, typed
            from .volume import report

            code = await report(cluster, cycle, target or Path("."), self._pod, force)
            if edits := edits_of(parsed(await cluster.cycle(cycle))):
                print_edits(cycle, edits, lambda key: typed("restart", cycle, key, *self.where.cluster_words()))
            return code

        return self._run(command)

    def copy(self, cycle: str, path: str, target: Path, force: bool) -> int:
        async def command(cluster: Cluster) -> int:
            from .volume import copy

            return await copy(cluster, cycle, path, target, self._pod, force)

        return self._run(command)

    def lineage(self, cycle: str, triplet: str, as_json: bool) -> int:
        async def command(cluster: Cluster) -> int:
            from .volume import lineage

            return await lineage(cluster, cycle, triplet, self._pod, as_json)

        return self._run(command)

    def export_review(self, request: ExportRequest) -> int:
        async def command(cluster: Cluster) -> int:
            from .review import export_from_cluster

            return await export_from_cluster(cluster, request, self._pod, self.where.cluster_words())

        return self._run(command)

    def import_review(
        self, cycle: str, iteration: int, file: Path, *, replace: bool, restart: bool, wait: float
    ) -> int:
        async def command(cluster: Cluster) -> int:
            from .review import import_to_cluster

            return await import_to_cluster(
                cluster, cycle, iteration, file, self._pod, replace=replace, restart=restart, wait=wait
            )

        return self._run(command)
