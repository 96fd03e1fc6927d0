"""The cycles of a workspace on this computer (`cycles.Cycles`)."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medgr2_api import paths
from medgr2_api.cycle import Cycle
from medgr2_api.scheduling import StageRef
from medgr2_api.stage_contract import ExitCode
from medgr2_api.status import AttemptState, Phase

from ..local.approvals import Approvals
from ..local.lock import holder
from ..local.state import StateFile
from ..plan.spec_edits import edits_of
from ..plan.types import AttemptKey, StageKey
from . import jobs_process
from .approval import stages_to_approve
from .attempts import choose_attempts
from .errors import CommandError, did_you_mean
from .hints import print_edits, typed
from .lineage import local_lineage
from .models import PictureQuestion, ask_model, export_model, folder_of, print_models, whole_folder
from .review import ExportRequest, export_local, import_local
from .status_view import print_list, print_status
from .unpack import final_place, print_copied, workspace_path

if TYPE_CHECKING:
    from collections.abc import Iterator

_POLL = 0.2  # seconds
_ENDED = (Phase.COMPLETE, Phase.FAILED)
_ACTIVE = (AttemptState.PENDING, AttemptState.RUNNING, AttemptState.TERMINATING)


@dataclass(frozen=True)
class LocalCycles:
    """What `medgr2 run` left in a workspace, or does there right now."""

    workspace: Path

    def show_all(self) -> int:
        print_list(cycle for name in self._names() if (cycle := StateFile(self.workspace, name).load()))
        return ExitCode.OK

    def show(self, cycle: str) -> int:
        print_status(self._stored(cycle), lambda key: self._typed("restart", cycle, key))
        return ExitCode.OK

    def logs(self, cycle: str, stage: str, attempt: int, follow: bool, *, volume: bool) -> int:
        del volume  # it is the folder where the logs are
        chosen = choose_attempts(self._stored(cycle).dump(), stage, attempt)
        for key in chosen:
            for number, file in enumerate(self._logs(cycle, key)):
                prefix = f"{key.stage}#{number} | " if len(self._logs(cycle, key)) > 1 else ""
                prefix = prefix or (f"{key.stage} | " if len(chosen) > 1 else "")
                for line in self._lines(cycle, key, file, follow):
                    sys.stdout.write(prefix + line)
                    sys.stdout.flush()
        return ExitCode.OK

    def suspend(self, cycle: str, wait: float) -> int:
        stored, pid = self._stored(cycle), holder(self.workspace, cycle)
        if stored.status.phase in _ENDED:
            raise CommandError(f"{cycle} is {stored.status.phase}: nothing is left to suspend")
        if pid is None:
            print(f"{cycle} does not run; it goes on with: {self._typed('resume', cycle)}")
            return ExitCode.OK
        (self.workspace / paths.cycle(cycle) / paths.SUSPEND).touch()
        print(f"{cycle}: `medgr2 run` (pid {pid}) was asked to stop it; its running stages write a checkpoint")
        deadline = time.monotonic() + wait
        while wait and not self._stopped(cycle):
            if time.monotonic() > deadline:
                raise CommandError(f"{cycle}: not within {wait:.0f} s", ExitCode.TEMPORARY)
            time.sleep(_POLL)
        print(f"it goes on with: {self._typed('resume', cycle)}")
        return ExitCode.OK

    def resume(self, cycle: str, wait: float) -> int:
        from .run import Options, run_stored

        del wait  # it runs here, to its end
        return run_stored(self._stored(cycle), self.workspace, Options())

    def restart(self, cycle: str, stage: str, wait: float) -> int:
        from .run import Options, run_stored

        del wait
        return run_stored(self._stored(cycle), self.workspace, Options(restart_from=stage))

    def approve(self, cycle: str, stage: str, wait: float) -> int:
        del wait
        stored, approvals = self._stored(cycle), Approvals(self.workspace, cycle)
        chosen = stages_to_approve(stored, stage)
        approvals.add([StageRef(iteration=key.iteration, stage=key.name) for key in chosen])
        print(f"{cycle}: {', '.join(map(str, chosen))} may go on")
        if holder(self.workspace, cycle) is None:
            print(f"it goes on with: {self._typed('resume', cycle)}")
        return ExitCode.OK

    def model(self, cycle: str) -> int:
        print_models(
            self._stored(cycle),
            lambda record: str(folder_of(self.workspace, record)),
            lambda record: whole_folder(self.workspace, record),
            lambda key: self._typed("restart", cycle, key),
            self._typed,
        )
        return ExitCode.OK

    def export(self, cycle: str, target: Path, checkpoint: str) -> int:
        return export_model(self.workspace, self._stored(cycle), target, checkpoint)

    def ask(self, cycle: str, question: PictureQuestion) -> int:
        return ask_model(self.workspace, self._stored(cycle), question)

    def report(self, cycle: str, target: Path | None, force: bool) -> int:
        folder = self.workspace / paths.report(cycle)
        if not (folder / "report.md").is_file():
            known = sorted(path.parent.name for path in self.workspace.glob("cycles/*/report"))
            raise CommandError(
                f"no report of {cycle} in {self.workspace}; cycles with one: {', '.join(known) or 'none'}"
            )
        if target is not None:
            final = final_place(target, f"{cycle}-report", force)
            self._copy(str(paths.report(cycle)), final, force)
            folder = final
        print(f"report: {folder / 'report.md'}")
        print(f"model: {self._typed('model', cycle)}")
        stored = StateFile(self.workspace, cycle).load()
        if stored is not None and (edits := edits_of(stored)):
            print_edits(cycle, edits, lambda key: self._typed("restart", cycle, key))
        return ExitCode.OK

    def copy(self, cycle: str, path: str, target: Path, force: bool) -> int:
        self._stored(cycle)
        path = workspace_path(path)
        final = final_place(target, Path(path).name or cycle, force)
        print_copied(final, self._copy(path, final, force))
        return ExitCode.OK

    def lineage(self, cycle: str, triplet: str, as_json: bool) -> int:
        return local_lineage(self.workspace, cycle, triplet, as_json)

    def export_review(self, request: ExportRequest) -> int:
        return export_local(self.workspace, request)

    def import_review(
        self, cycle: str, iteration: int, file: Path, *, replace: bool, restart: bool, wait: float
    ) -> int:
        del restart, wait  # the file with the spec is the user's to change
        return import_local(self.workspace, cycle, iteration, file, replace=replace)

    # -- what is there -------------------------------------------------------------------------------------------------

    def _copy(self, path: str, final: Path, force: bool) -> dict[str, Any]:
        return jobs_process.unpacked(
            "store.tar", path, workspace=self.workspace, target=final, what=path, replace=force
        )

    def _names(self) -> list[str]:
        return sorted(path.parent.name for path in self.workspace.glob(f"cycles/*/{paths.STATE}"))

    def _stored(self, name: str) -> Cycle:
        """
        Raises:
            CommandError: the workspace does not know the cycle.
        """
        if (stored := StateFile(self.workspace, name).load()) is not None:
            return stored
        names = self._names()
        there = ", ".join(names) or "none"
        raise CommandError(f"no cycle {name!r} in {self.workspace}{did_you_mean(name, names)}; there: {there}")

    def _typed(self, *words: object) -> str:
        return typed(*words, "-w", self.workspace)

    def _logs(self, cycle: str, key: AttemptKey) -> list[Path]:
        """The logs of an attempt, one for each shard.

        Raises:
            CommandError: it has written none.
        """
        shards = self._stored(cycle).spec.stage(key.name).shards
        names = (paths.attempt_name(key.iteration, key.name, key.token, key.attempt, n) for n in range(shards))
        files = [path for name in names if (path := self.workspace / paths.log(cycle, name)).is_file()]
        if not files:
            raise CommandError(f"{key.stage}, attempt {key.attempt}: there is no log of it", ExitCode.ERROR)
        return files

    def _stopped(self, cycle: str) -> bool:
        """Whether nothing works on the cycle any more."""
        status = self._stored(cycle).status
        at_work = any(stage.state in _ACTIVE and stage.attempt for stage in status.stages)
        return holder(self.workspace, cycle) is None or (
            status.phase in (*_ENDED, Phase.SUSPENDED, Phase.PAUSED) and not at_work
        )

    def _lines(self, cycle: str, key: AttemptKey, file: Path, follow: bool) -> Iterator[str]:
        """The log's lines; with `follow` until the attempt has ended."""
        with file.open(errors="replace", newline="\n") as stream:
            while True:
                ended = not follow or self._has_ended(cycle, key)  # before the rest is read
                yield from stream
                if ended:
                    return
                time.sleep(_POLL)

    def _has_ended(self, cycle: str, key: AttemptKey) -> bool:
        """Whether nothing writes the attempt's log any more."""
        record = next(
            (r for r in self._stored(cycle).status.stages if StageKey(r.iteration, r.name) == key.stage), None
        )
        same = record is not None and (record.token, record.attempt) == (key.token, key.attempt)
        return not same or record is None or record.state not in _ACTIVE or holder(self.workspace, cycle) is None
