"""Asks a provider all tasks of a shard: bounded concurrency, a journal, and an end when the provider is down."""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter, deque
from collections.abc import Sequence
from typing import Any

from medgr2_api.parameters import GenerateParameters, Provider

from .. import answers
from ..context import StageContext
from ..errors import Checkpointed, TemporaryError
from . import plan, prompting, schema
from .journal import Journal
from .openai_client import Client, Reply
from .plan import Task

_LOOK = 0.2  # seconds between looks at the stop flag
_RESERVE = 10.0  # seconds of the grace period kept for the end
_MAX_FAILED = 0.5  # share of rows without an answer above which the provider counts as down
_ROW_KEY = ("triplet_id", "image_sha256")


def ask_all(ctx: StageContext[GenerateParameters], provider: Provider, tasks: Sequence[Task]) -> list[dict[str, Any]]:
    """The rows of table `candidates`, in the order of `tasks`; every task has one, whatever came of it.

    Args:
        ctx: the stage's.
        provider: whom to ask; it has an address.
        tasks: what to ask.

    Raises:
        Checkpointed: asked to stop; finished rows are in the journal.
        ConfigError: the server refuses the key or the model.
        TemporaryError: the server cannot be reached, or most questions got no answer.
    """
    secret = provider.api_key_secret_ref
    key = ctx.secret(secret.name, secret.key) if secret else None
    return asyncio.run(_Asking(ctx, provider, tasks, key).run())


class _Asking:
    """One run over the tasks that the journal does not have yet."""

    def __init__(
        self, ctx: StageContext[GenerateParameters], provider: Provider, tasks: Sequence[Task], key: str | None
    ) -> None:
        self.ctx = ctx
        self.parameters = ctx.parameters
        self.tasks = tasks
        self.provider = provider
        self._key = key
        self.rows: dict[str, dict[str, Any]] = {}
        self.pending: deque[Task] = deque()
        self.errors: Counter[str] = Counter()
        #: Failures of the server since it last answered: more than it could be asked twice at once is an outage.
        self._streak = 0
        self._patience = max(16, 2 * self.provider.concurrency)

    async def run(self) -> list[dict[str, Any]]:
        """Asks until all tasks have a row."""
        journal = Journal(self.ctx.work / "journal.jsonl")
        client = Client(self.provider.base_url, self.provider.model, self._key, self.parameters.sampling)
        try:
            known = {tuple(row[name] for name in _ROW_KEY): row for row in journal.rows}
            for task in self.tasks:
                row = known.get((task.triplet_id, task.image_sha256))
                if row is None:
                    self.pending.append(task)
                else:
                    self.rows[task.triplet_id] = row
            if self.rows:
                print(f"going on after {len(self.rows)} of {len(self.tasks)} questions", flush=True)
            await self._work(client, journal)
            if len(self.rows) < len(self.tasks):
                raise Checkpointed(len(journal.rows))
        finally:
            journal.close()
            await client.close()
        self._check_failures()
        return [self.rows[task.triplet_id] for task in self.tasks]

    async def _work(self, client: Client, journal: Journal) -> None:
        """Runs the workers; on SIGTERM what is in flight may finish as long as the grace period allows."""
        count = min(self.provider.concurrency, len(self.pending))
        running = {asyncio.create_task(self._worker(client, journal)) for _ in range(count)}
        loop = asyncio.get_running_loop()
        deadline: float | None = None
        try:
            while running:
                done, running = await asyncio.wait(running, timeout=_LOOK, return_when=asyncio.FIRST_EXCEPTION)
                for worker in done:
                    worker.result()
                if self.ctx.stop.is_set():
                    grace = max(0.0, self.ctx.request.grace_seconds - _RESERVE)
                    deadline = deadline or loop.time() + grace
                    if loop.time() >= deadline:
                        return
        finally:
            for worker in running:
                worker.cancel()
            await asyncio.gather(*running, return_exceptions=True)

    async def _worker(self, client: Client, journal: Journal) -> None:
        while self.pending and not self.ctx.stop.is_set():
            task = self.pending.popleft()
            row, reply = await self._ask(client, task)
            self.rows[task.triplet_id] = row
            if reply.outcome == schema.HTTP_ERROR:  # not in the journal: another attempt asks again
                self._failed(reply)
            else:
                self._streak = 0
                journal.append(row)
            self.ctx.progress("generate", len(self.rows), len(self.tasks), failed=self.errors.total())

    async def _ask(self, client: Client, task: Task) -> tuple[dict[str, Any], Reply]:
        """One task's row, and what it was made from."""
        parameters = self.parameters
        paradigm = plan.paradigm(task, parameters.paradigms, parameters.seed)
        prompt = prompting.load(paradigm)
        text = prompt.render(modality=task.modality, question_type=task.question_type)
        reply = await client.ask(text, self.ctx.images.read(task.image_sha256), _seed(parameters.seed, task))
        outcome, made = schema.judge(reply.text) if reply.outcome == schema.OK else (reply.outcome, None)
        row: dict[str, Any] = {
            "triplet_id": task.triplet_id,
            "iteration": parameters.iteration,
            "image_sha256": task.image_sha256,
            "modality": task.modality,
            "question_type": task.question_type,
            "question": "",
            "options": [],
            "answer_index": None,
            "rationale": "",
            "response": "",
            "paradigm": str(paradigm),
            "template_sha256": prompt.sha256,
            "generator": self.provider.model,
            "outcome": outcome,
            "attempts": reply.attempts,
            "input_tokens": reply.input_tokens,
            "output_tokens": reply.output_tokens,
        }
        if made is not None:
            row |= made
            row["question_type"] = _known_type(made["question_type"], parameters.question_types, task.question_type)
            row["response"] = answers.response(
                made["rationale"], made["answer_index"], made["options"], parameters.answer_format
            )
        return row, reply

    def _failed(self, reply: Reply) -> None:
        """Counts a question without an answer; gives up when the server does nothing but fail."""
        if not self.errors[reply.error]:
            print(f"{self.provider.base_url}: {reply.error}", flush=True)
        self.errors[reply.error] += 1
        self._streak += reply.trouble
        if self._streak >= self._patience:
            raise self._down(f"{self._streak} questions in a row got no answer")

    def _check_failures(self) -> None:
        failed = sum(row["outcome"] == schema.HTTP_ERROR for row in self.rows.values())
        if failed > _MAX_FAILED * len(self.tasks):
            raise self._down(f"{failed} of {len(self.tasks)} questions got no answer")

    def _down(self, what: str) -> TemporaryError:
        common = self.errors.most_common(1)[0][0]
        return TemporaryError(
            f"{self.provider.base_url}: {what}; most often: {common}. Look after the server or the settings, "
            "then run again: what was answered is kept"
        )


def _seed(seed: int, task: Task) -> int:
    """The sampling seed of a task, for servers that honour one."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{task.triplet_id}".encode()).digest()[:4], "big") >> 1


def _known_type(named: str, known: Sequence[str], asked: str) -> str:
    """The question type that the generator named, if it is one of ours; otherwise the one asked for."""
    return next((name for name in known if answers.normalise(name) == answers.normalise(named)), asked)
