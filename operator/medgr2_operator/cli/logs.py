"""`medgr2 logs`: what a stage prints, of all of its pods, and with -f over all of its attempts."""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field

from medgr2_api import paths, printable
from medgr2_api.stage_contract import ExitCode
from medgr2_api.stages import definition
from medgr2_api.status import AttemptState, Phase, StageStatus

from ..kube.client import PODS, ApiError, Manifest, NotFoundError
from ..kube.ephemeral_pod import why_waiting
from ..kube.logs_exec import BrokenStreamError, log
from ..plan.types import AttemptKey
from ..render import labels
from ..render.pod import MAIN
from .attempts import choose_attempts, records
from .connection import Cluster
from .errors import CommandError

_POLL = 1.0  # seconds
_INDEX = "batch.kubernetes.io/job-completion-index"
_STAMP = re.compile(rb"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.\d+)?(Z|[+-]\d\d:\d\d)")
_ACTIVE = (AttemptState.PENDING, AttemptState.RUNNING, AttemptState.TERMINATING)
_ENDED = (Phase.COMPLETE, Phase.FAILED)

ReadVolume = Callable[[Sequence[str]], Awaitable[dict[str, bytes]]]
"""The content of those of these files that are on the cycle's volume."""


async def show(
    cluster: Cluster, name: str, stage: str, attempt: int, follow: bool, read_volume: ReadVolume | None
) -> int:
    """Prints the log of the running or last attempt.

    Args:
        cluster: where.
        name: of the cycle.
        stage: `grpo@2`, `grpo` (its newest iteration), or empty: what runs now, else what ran last.
        attempt: a number; 0: the newest.
        follow: go on until the stage ends, over all of its attempts.
        read_volume: for the log of an attempt whose pods are gone; None: leave the volume alone.
    """
    cycle = await cluster.cycle(name)
    chosen = choose_attempts(cycle, stage, attempt)
    stages = [_StageLog(cluster, cycle, key, several=len(chosen) > 1) for key in chosen]
    await asyncio.gather(*(one.follow() for one in stages) if follow else (one.show() for one in stages))
    for one in stages:
        if not one.shown:
            await one.print_from_volume(read_volume)
    return ExitCode.OK


@dataclass
class _StageLog:
    """One stage's log."""

    cluster: Cluster
    cycle: Manifest
    key: AttemptKey
    several: bool
    """Others are printed, too: say before each line whose it is."""
    shown: set[str] = field(default_factory=set)
    """Uids of the pods whose log was, or is being, printed."""
    _last_notice: str = ""

    async def show(self) -> None:
        """Prints what the attempt's pods have written so far."""
        for pod in await self._pods():
            if labels.attempt_key(pod["metadata"]["labels"]) == self.key:
                await self._printer(pod).run(follow=False)

    async def follow(self) -> None:
        """Prints what its pods write until the stage has ended; those of new attempts are found by themselves."""
        pods = await self._pods()
        earlier = {p["metadata"]["uid"] for p in pods if labels.attempt_key(p["metadata"]["labels"]) != self.key}
        tasks: list[asyncio.Task[None]] = []
        try:
            while True:
                record = await self._record()  # before the pods: what has ended then makes no new ones
                pods = [pod for pod in await self._pods() if pod["metadata"]["uid"] not in earlier | self.shown]
                tasks += [asyncio.create_task(self._printer(p).run(follow=True)) for p in pods if _has_begun(p)]
                for task in tasks:
                    if task.done():
                        task.result()  # raises what went wrong
                if all(task.done() for task in tasks):
                    if self._has_ended(record):
                        return
                    self._notice_once(record, pods)
                await asyncio.sleep(_POLL)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)  # while there is a connection to close

    async def print_from_volume(self, read_volume: ReadVolume | None) -> None:
        """Prints the log that is on the volume.

        Raises:
            CommandError: it is not there.
        """
        cycle, key = self.cycle["metadata"]["name"], self.key
        _notice(f"{self._name}, attempt {key.attempt}: its pods are gone")
        told: dict[str, int] = {
            stage["name"]: stage.get("shards") or 1 for stage in self.cycle["spec"].get("stages") or []
        }
        shards = told.get(key.name) or told.get(definition(key.name).settings_of, 1)
        log_files = [
            str(paths.log(cycle, paths.attempt_name(key.iteration, key.name, key.token, key.attempt, shard)))
            for shard in range(shards)
        ]
        logs = await read_volume(log_files) if read_volume else {}
        for content in logs.values():
            _write(content)
        if not logs:
            record = await self._record()
            state = f"; the stage is {record.state}: {record.message}" if record and record.message else ""
            where = ", and the volume has no log of it" if read_volume else ""
            raise CommandError(
                f"{self._name}, attempt {key.attempt}: the log went with its pods{where}{state}", ExitCode.ERROR
            )

    def _printer(self, pod: Manifest) -> _Printer:
        self.shown.add(pod["metadata"]["uid"])
        index = (pod["metadata"].get("annotations") or {}).get(_INDEX)
        prefix = f"{self._name}#{index} | " if index is not None else f"{self._name} | " if self.several else ""
        return _Printer(self.cluster, pod, prefix.encode())

    async def _pods(self) -> list[Manifest]:
        """Pods of all attempts of the stage, in the order of their index."""
        selector = {
            labels.CYCLE_UID: self.cycle["metadata"]["uid"],
            labels.ITERATION: self.key.iteration,
            labels.STAGE: self.key.name,
        }
        text = ",".join(f"{key}={value}" for key, value in selector.items())
        pods = await self.cluster.client.list(PODS, self.cluster.namespace, labels=text)
        return sorted(pods, key=lambda pod: (pod["metadata"]["creationTimestamp"], pod["metadata"]["name"]))

    async def _record(self) -> StageStatus | None:
        """The stage in the present status."""
        self.cycle = await self.cluster.cycle(self.cycle["metadata"]["name"])
        mine = (self.key.iteration, self.key.name)
        return next((record for record in records(self.cycle) if (record.iteration, record.name) == mine), None)

    def _has_ended(self, record: StageStatus | None) -> bool:
        """Whether nothing more can come; says how it ended."""
        over = self.cycle.get("status", {}).get("phase") in _ENDED
        if record is None or not (over or record.state is AttemptState.SUCCEEDED or record.given_up):
            return over
        _notice(f"{self._name}: {record.state}{f': {record.message}' if record.message else ''}")
        return True

    def _notice_once(self, record: StageStatus | None, pods: Iterable[Manifest]) -> None:
        """Says once what the stage waits for."""
        causes = (cause for pod in pods if (cause := why_waiting(pod)))
        suspended = "the cycle is suspended" if self.cycle["spec"].get("suspend") else ""
        reason = f"{record.reason} {record.message}".strip() if record else ""
        text = next(causes, "") or suspended or reason
        if text and text != self._last_notice:
            _notice(f"{self._name} waits: {text}")
            self._last_notice = text

    @property
    def _name(self) -> str:
        return f"{self.key.name}@{self.key.iteration}"


class _Printer:
    """One pod's log. A connection that breaks is taken up where it broke."""

    def __init__(self, cluster: Cluster, pod: Manifest, prefix: bytes) -> None:
        self._cluster, self._prefix = cluster, prefix
        self._pod = str(pod["metadata"]["name"])
        self._last = b""  # time of the last line that was printed
        self._last_notice = ""

    async def run(self, *, follow: bool) -> None:
        """Prints what there is; with `follow` until the pod has ended, whatever becomes of the connection."""
        while True:
            try:
                await self._print(follow)
                whole = True
            except NotFoundError:  # deleted with its Job
                return
            except ApiError as error:
                passing = isinstance(error, BrokenStreamError) or error.status == 0 or error.status >= 500
                if not follow or not passing:
                    raise
                self._notice_once(error)
                whole = False
            if not follow or (whole and await self._has_ended()):
                return
            await asyncio.sleep(_POLL)

    async def _has_ended(self) -> bool:
        """Whether the pod writes nothing any more: a stream may also end because its server did."""
        try:
            pod = await self._cluster.client.get(PODS, self._pod, self._cluster.namespace)
        except NotFoundError:
            return True
        return pod.get("status", {}).get("phase") in ("Succeeded", "Failed")

    def _notice_once(self, error: ApiError) -> None:
        """Says once what is wrong."""
        if str(error) != self._last_notice:
            self._last_notice = str(error)
            _notice(f"{error}; trying again")

    async def _print(self, follow: bool) -> None:
        printed, since = self._last, ""
        if stamp := _STAMP.fullmatch(printed):
            since = (stamp[1] + stamp[2]).decode()  # whole seconds: what was printed of this one comes again
        try:
            async for line in log(
                self._cluster.client, self._pod, self._cluster.namespace, MAIN, follow=follow, since=since
            ):
                time, _, text = line.partition(b" ")
                if not _STAMP.fullmatch(time):  # a message of the kubelet
                    _write(self._prefix + line + b"\n")
                elif time > printed:
                    self._last = time
                    _write(self._prefix + text + b"\n")
        except ApiError as error:
            if error.status != 400:
                raise
            _notice(f"{self._pod} has written nothing yet: {error}")  # its container has not started


def _has_begun(pod: Manifest) -> bool:
    """Whether it has, or had, a log."""
    return pod.get("status", {}).get("phase") in ("Running", "Succeeded", "Failed")


def _write(data: bytes) -> None:
    sys.stdout.write(printable.shown(data.decode(errors="replace")))
    sys.stdout.flush()


def _notice(text: str) -> None:
    print(text, file=sys.stderr)
