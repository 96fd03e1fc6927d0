"""Progress is pulled: running stages are asked now and then, and what they say goes into the next status."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import aiohttp
from pydantic import ValidationError

from medgr2_api.stage_contract import Progress

from ..plan.types import AttemptKey
from .keys import CycleKey
from .observe import Running
from .workqueue import WorkQueue

_AT_ONCE = 16
_MOST_BYTES = 64 * 1024  # a pod runs the user's code: what it says is read with care


class Poller:
    """Asks the pods of all cycles, each one every `every` seconds: that is also how often a status may change."""

    def __init__(self, queue: WorkQueue[CycleKey], port: int, every: float = 15.0, timeout: float = 2.0) -> None:
        """
        Args:
            queue: is told which cycles have news.
            port: of the stages.
            every: seconds between two questions to a pod.
            timeout: seconds to wait for an answer.
        """
        self._queue, self._port, self._every = queue, port, every
        self._timeout = aiohttp.ClientTimeout(total=timeout)
        self._pods: dict[CycleKey, tuple[Running, ...]] = {}
        self._told: dict[CycleKey, dict[AttemptKey, Progress]] = {}

    def watch(self, key: CycleKey, running: Sequence[Running]) -> None:
        """Replaces the pods of a cycle that are asked."""
        if not running:
            self._pods.pop(key, None)
            self._told.pop(key, None)
            return
        self._pods[key] = tuple(running)
        alive = {pod.attempt for pod in running}
        self._told[key] = {attempt: said for attempt, said in self.told(key).items() if attempt in alive}

    def told(self, key: CycleKey) -> dict[AttemptKey, Progress]:
        """What the stages of a cycle last said: of several pods the slowest."""
        return dict(self._told.get(key, {}))

    async def run(self) -> None:
        """Asks for ever."""
        gate = asyncio.Semaphore(_AT_ONCE)
        async with aiohttp.ClientSession(timeout=self._timeout, trust_env=False) as session:

            async def ask(pod: Running) -> Progress | None:
                async with gate:
                    return await self._ask(session, pod.address)

            while True:
                await asyncio.sleep(self._every)
                for key, pods in list(self._pods.items()):
                    answers = await asyncio.gather(*map(ask, pods))
                    if self._note(key, list(zip(pods, answers, strict=True))):
                        self._queue.add(key)

    def _note(self, key: CycleKey, answers: Sequence[tuple[Running, Progress | None]]) -> bool:
        """Keeps what was said; whether any of it is news."""
        found: dict[AttemptKey, Progress] = {}
        for pod, said in answers:
            slowest = found.get(pod.attempt)
            if said is not None and (slowest is None or _share(said) < _share(slowest)):
                found[pod.attempt] = said
        if key not in self._pods or not found or found.items() <= self.told(key).items():
            return False
        self._told[key] = {**self.told(key), **found}
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
