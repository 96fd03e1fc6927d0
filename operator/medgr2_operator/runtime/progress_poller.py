"""Polls the progress of running stages, which goes into the next status."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import aiohttp
from pydantic import ValidationError

from medgr2_api.stage_contract import Progress

from ..plan.types import AttemptKey
from .observe import RunningPod
from .workqueue import CycleKey, WorkQueue

_AT_ONCE = 16
_MOST_BYTES = 64 * 1024  # a pod runs the user's code and may send anything


class ProgressPoller:
    """Polls the pods of all cycles, each one every `every` seconds: that is also how often a status may change."""

    def __init__(self, queue: WorkQueue[CycleKey], port: int, every: float = 15.0, timeout: float = 2.0) -> None:
        """
        Args:
            queue: gets the cycles whose progress has changed.
            port: of the stages.
            every: seconds between two polls of a pod.
            timeout: seconds to wait for an answer.
        """
        self._queue, self._port, self._every = queue, port, every
        self._timeout = aiohttp.ClientTimeout(total=timeout)
        self._pods: dict[CycleKey, tuple[RunningPod, ...]] = {}
        self._progress: dict[CycleKey, dict[AttemptKey, Progress]] = {}

    def watch(self, key: CycleKey, running: Sequence[RunningPod]) -> None:
        """Replaces the pods of a cycle that are polled."""
        if not running:
            self._pods.pop(key, None)
            self._progress.pop(key, None)
            return
        self._pods[key] = tuple(running)
        alive = {pod.attempt for pod in running}
        self._progress[key] = {attempt: answer for attempt, answer in self.progress(key).items() if attempt in alive}

    def progress(self, key: CycleKey) -> dict[AttemptKey, Progress]:
        """The last progress of the stages of a cycle: of several pods that of the slowest."""
        return dict(self._progress.get(key, {}))

    async def run(self) -> None:
        """Polls for ever."""
        gate = asyncio.Semaphore(_AT_ONCE)
        async with aiohttp.ClientSession(timeout=self._timeout, trust_env=False) as session:

            async def ask(pod: RunningPod) -> Progress | None:
                async with gate:
                    return await self._ask(session, pod.address)

            while True:
                await asyncio.sleep(self._every)
                for key, pods in list(self._pods.items()):
                    answers = await asyncio.gather(*map(ask, pods))
                    if self._store(key, list(zip(pods, answers, strict=True))):
                        self._queue.add(key)

    def _store(self, key: CycleKey, answers: Sequence[tuple[RunningPod, Progress | None]]) -> bool:
        """Stores the answers; whether any of them has changed."""
        slowest_of: dict[AttemptKey, Progress] = {}
        for pod, answer in answers:
            slowest = slowest_of.get(pod.attempt)
            if answer is not None and (slowest is None or _share(answer) < _share(slowest)):
                slowest_of[pod.attempt] = answer
        if key not in self._pods or not slowest_of or slowest_of.items() <= self.progress(key).items():
            return False
        self._progress[key] = {**self.progress(key), **slowest_of}
        return True

    async def _ask(self, session: aiohttp.ClientSession, address: str) -> Progress | None:
        host = f"[{address}]" if ":" in address else address
        try:
            async with session.get(f"http://{host}:{self._port}/progress", allow_redirects=False) as answer:
                if answer.status != 200:
                    return None
                return Progress.model_validate_json(await answer.content.read(_MOST_BYTES))
        except (TimeoutError, aiohttp.ClientError, OSError, ValidationError):
            return None


def _share(progress: Progress) -> float:
    return progress.step / progress.total if progress.total else 0.0
