"""Asks a provider all tasks of a shard: paced, paid for in advance, journaled; ends when the provider is down."""

from __future__ import annotations

import asyncio
import hashlib
import threading
from collections import Counter, deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace

from ..errors import BudgetSpent, Checkpointed, ConfigError, StageError, TemporaryError
from ..prompts import answers
from ..store.rows import Candidate
from . import candidate_schema, cost_estimate, pricing, prompt_templates, sampling_plan
from .provider_session import Errand
from .providers.base import Question
from .rate_control import Pace, Stopped
from .request_retry import Answered, Exchange
from .sampling_plan import Task

_LOOK = 0.2  # seconds between looks at the stop flag
_RESERVE = 10.0  # seconds of the grace period kept for the end
_MAX_FAILED = 0.5  # share of rows without an answer above which the provider counts as down
_DRAIN = 60.0  # seconds that what is in flight may take when the stage has to end
_SILENCE = 300.0  # seconds without an answer after which a few failures in a row are an outage
_FEW = 16


class Asking:
    """One run over the tasks that the journal does not have yet."""

    def __init__(
        self,
        errand: Errand,
        tasks: Sequence[Task],
        stop: threading.Event,
        report: Callable[[int, dict[str, float]], None],
    ) -> None:
        """
        Args:
            errand: whom to ask, and how.
            tasks: what to ask.
            stop: set from outside: send nothing more.
            report: told after each row how many there are, and figures.
        """
        self.errand = errand
        self.tasks = tasks
        self.rows: dict[str, Candidate] = {}
        self._stop = stop
        self._report = report
        self._pending: deque[Task] = deque()
        self._errors: Counter[str] = Counter()
        self._asked = 0
        self._forecast: dict[str, float] = {}
        #: Failures of the server since it last answered: more than it could be asked twice at once is an outage.
        self._streak = 0
        self._patience = max(_FEW, 2 * errand.provider.concurrency)
        self._began = self._last_answer = 0.0

    async def run(self) -> list[Candidate]:
        """The candidates, in the order of the tasks; every task has one, whatever came of it.

        Raises:
            Checkpointed: asked to stop; finished rows are in the journal.
            BudgetSpent: the next question might pass the budget; what was answered is in the journal.
            ConfigError: the server refuses the key or the model.
            TemporaryError: the server cannot be reached, or most questions got no answer.
        """
        errand = self.errand
        for task in self.tasks:
            row = None if errand.journal is None else errand.journal.find(task.triplet_id, task.image_sha256)
            if row is None:
                self._pending.append(task)
            else:
                self.rows[task.triplet_id] = row
        if self.rows:
            print(f"going on after {len(self.rows)} of {len(self.tasks)} questions", flush=True)
        self._began = self._last_answer = self._now()
        try:
            await self._work()
        except BudgetSpent as error:
            raise BudgetSpent(
                f"{error}. {len(self.rows)} of {len(self.tasks)} questions are answered and kept: "
                "raise budget.generatorUSD, or ask for fewer candidates"
            ) from None
        if len(self.rows) < len(self.tasks):
            raise Checkpointed(len(self.rows))
        self._check_failures()
        return [self.rows[task.triplet_id] for task in self.tasks]

    async def _work(self) -> None:
        """Runs the workers; on SIGTERM what is in flight may finish as long as the grace period allows."""
        errand, prices = self.errand, self.errand.provider.prices
        most = pricing.most_tokens(8 * 1024, prices) + errand.parameters.sampling.max_tokens
        pace = Pace(errand.provider.concurrency, errand.provider.rate_limit, errand.shards, most)
        exchange = Exchange(errand.client, pace, errand.ledger, prices, errand.parameters.sampling.max_tokens)
        count = min(errand.provider.concurrency, len(self._pending))
        running = {asyncio.create_task(self._worker(exchange, pace)) for _ in range(count)}
        deadline: float | None = None
        try:
            while running:
                done, running = await asyncio.wait(running, timeout=_LOOK, return_when=asyncio.FIRST_EXCEPTION)
                for worker in done:
                    worker.result()
                if self._stop.is_set():
                    await self._send_nothing_more(pace)
                    deadline = deadline or self._now() + max(0.0, errand.grace_seconds - _RESERVE)
                    if self._now() >= deadline:
                        return
        except StageError:
            await self._send_nothing_more(pace)
            if running:  # what is in flight is being paid for
                _, running = await asyncio.wait(running, timeout=_DRAIN)
            raise
        finally:
            for worker in running:
                worker.cancel()
            await asyncio.gather(*running, return_exceptions=True)

    async def _send_nothing_more(self, pace: Pace) -> None:
        if self.errand.ledger is not None:
            self.errand.ledger.stop()
        await pace.stop()

    async def _worker(self, exchange: Exchange, pace: Pace) -> None:
        with suppress(Stopped):
            while self._pending and not self._stop.is_set() and not pace.stopping.is_set():
                task = self._pending.popleft()
                row, answered = await self._ask(exchange, task)
                self._note(answered)
                journal = self.errand.journal
                if journal is not None and not candidate_schema.OUTCOMES[answered.outcome].asked_again:
                    await journal.add(row)
                self.rows[task.triplet_id] = row
                self._tell(pace)

    async def _ask(self, exchange: Exchange, task: Task) -> tuple[Candidate, Answered]:
        """One task's row, and how it came about."""
        parameters = self.errand.parameters
        paradigm = sampling_plan.paradigm(task, parameters.paradigms, parameters.seed)
        prompt = prompt_templates.load(paradigm)
        question = Question(
            prompt=prompt.render(modality=task.modality, question_type=task.question_type),
            image_png=self.errand.gate.read(task.image_sha256),
            image_sha256=task.image_sha256,
            seed=_seed(parameters.seed, task),
        )
        try:
            answered = await exchange.answer(question)
        except ConfigError as error:
            raise ConfigError(f"{self._where()}, model {self.errand.provider.model!r}: {error}") from None
        made = answered.made
        row = Candidate(
            triplet_id=task.triplet_id,
            iteration=parameters.iteration,
            image_sha256=task.image_sha256,
            modality=task.modality,
            question_type=task.question_type,
            question="",
            options=(),
            answer_index=None,
            rationale="",
            response="",
            paradigm=str(paradigm),
            template_sha256=prompt.sha256,
            generator=self.errand.provider.model,
            outcome=answered.outcome,
            error=answered.error,
            attempts=answered.attempts,
            input_tokens=answered.input_tokens,
            output_tokens=answered.output_tokens,
            thinking_tokens=answered.thinking_tokens,
            usd=answered.usd,
        )
        if made is not None:
            row = replace(
                row,
                question=made.question,
                question_type=_known_type(made.question_type, parameters.question_types, task.question_type),
                options=made.options,
                answer_index=made.answer_index,
                rationale=made.rationale,
                response=answers.response(made.rationale, made.answer_index, made.options, parameters.answer_format),
            )
        return row, answered

    def _note(self, answered: Answered) -> None:
        """Takes note of failures; gives up when the server does nothing but fail."""
        if not candidate_schema.OUTCOMES[answered.outcome].asked_again:
            self._streak, self._last_answer = 0, self._now()
            return
        if not self._errors[answered.error]:
            print(f"{self._where()}: {answered.error}", flush=True)
        self._errors[answered.error] += 1
        self._streak += answered.trouble
        silent = self._now() - self._last_answer
        if self._streak >= self._patience or (self._streak >= _FEW and silent > _SILENCE):
            raise self._down(f"{self._streak} questions in a row got no answer")

    def _tell(self, pace: Pace) -> None:
        self._asked += 1
        done, total, asked = len(self.rows), len(self.tasks), self._asked
        if asked >= cost_estimate.ENOUGH and not self._forecast:
            speed = asked / max(1e-9, self._now() - self._began)
            found = cost_estimate.forecast(self.rows.values(), total, speed)
            print(found, flush=True)
            self._forecast = found.figures() if found else {}
        figures = {"failed": float(self._errors.total()), "concurrency": pace.limit, **self._forecast}
        if self.errand.ledger is not None:
            figures["generatorUSD"] = self.errand.ledger.spent
        self._report(done, figures)

    def _check_failures(self) -> None:
        failed = sum(candidate_schema.OUTCOMES[row.outcome].asked_again for row in self.rows.values())
        if failed > _MAX_FAILED * len(self.tasks):
            raise self._down(f"{failed} of {len(self.tasks)} questions got no answer")

    def _down(self, what: str) -> TemporaryError:
        common = self._errors.most_common(1)[0][0]
        return TemporaryError(
            f"{self._where()}: {what}; most often: {common}. Look after the server or the settings, "
            "then run again: what was answered is kept"
        )

    def _where(self) -> str:
        return self.errand.provider.where

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()


def _seed(seed: int, task: Task) -> int:
    """The sampling seed of a task, for servers that honour one."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{task.triplet_id}".encode()).digest()[:4], "big") >> 1


def _known_type(named: str, known: Sequence[str], asked: str) -> str:
    """The question type that the generator named, if it is one of ours; otherwise the one asked for."""
    return next((name for name in known if answers.normalise(name) == answers.normalise(named)), asked)
