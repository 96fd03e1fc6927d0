"""Asks a provider all tasks of a shard: concurrent, rate-limited, journaled; ends when the provider is down."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import threading
from collections import Counter, deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace

from medgr2_api import redaction

from ..errors import BudgetSpent, Checkpointed, ConfigError, StageError, TemporaryError, TooFewUsable
from ..prompts import answers
from ..store.rows.candidates import Candidate, CandidateOutcome
from . import candidate_schema, cost_estimate, pricing, prompt_templates, sampling_plan
from .journal import PaidAnswer
from .provider_session import ProviderSession
from .providers.base import ImageQuestion
from .rate_control import RateController, StopRequested
from .request_retry import QuestionResult, RetryingClient
from .sampling_plan import Task
from .spend_ledger import Charge

_log = logging.getLogger(__name__)
_POLL_INTERVAL = 0.2  # seconds between looks at the stop flag
_SHUTDOWN_RESERVE = 10.0  # seconds of the grace period kept for the end
_MAX_FAILED_SHARE = 0.5  # share of rows without an answer above which the provider counts as down
_DRAIN_TIMEOUT = 60.0  # seconds that what is in flight may take when the stage has to end
_SILENCE_TIMEOUT = 300.0  # seconds without an answer after which a few failures in a row are an outage
_MIN_STREAK = 16


class RequestScheduler:
    """One run over the tasks that the journal does not have yet."""

    def __init__(
        self,
        session: ProviderSession,
        tasks: Sequence[Task],
        stop: threading.Event,
        report: Callable[[int, dict[str, float]], None],
    ) -> None:
        """
        Args:
            session: the provider, its ledger and its journal.
            tasks: what to ask.
            stop: set from outside: send nothing more.
            report: called after each row with the number of rows and figures.
        """
        self.session = session
        self.tasks = tasks
        self.rows: dict[str, Candidate] = {}
        self._stop = stop
        self._report = report
        self._pending: deque[Task] = deque()
        self._errors: Counter[str] = Counter()
        self._finished = 0
        self._forecast: dict[str, float] = {}
        #: Failures of the server since it last answered: more than it could be asked twice at once is an outage.
        self._failure_streak = 0
        self._max_streak = max(_MIN_STREAK, 2 * session.provider.concurrency)
        self._started = self._last_answer = 0.0

    async def run(self) -> list[Candidate]:
        """The candidates, in the order of the tasks; every task has one, whatever came of it.

        Raises:
            Checkpointed: asked to stop; finished rows are in the journal.
            BudgetSpent: the next question might pass the budget; what was answered is in the journal.
            ConfigError: the server refuses the key or the model.
            TooFewUsable: hardly any of its answers is a triplet.
            TemporaryError: the server cannot be reached, or most questions got no answer.
        """
        session = self.session
        for task in self.tasks:
            row = None if session.journal is None else session.journal.find(task.triplet_id, task.image_sha256)
            if row is None:
                self._pending.append(task)
            else:
                self.rows[task.triplet_id] = row
        if self.rows:
            _log.info("resuming after %d of %d questions", len(self.rows), len(self.tasks))
        self._started = self._last_answer = self._now()
        self._check_usable()
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
        self._check_usable(at_end=True)
        return [self.rows[task.triplet_id] for task in self.tasks]

    async def _work(self) -> None:
        """Runs the workers; on SIGTERM what is in flight may finish as long as the grace period allows."""
        session, provider = self.session, self.session.provider
        max_tokens = session.parameters.sampling.max_output_tokens
        max_request_tokens = pricing.max_input_tokens(8 * 1024, provider.prices) + max_tokens
        rate = RateController(provider.concurrency, provider.rate_limit, session.shards, max_request_tokens)
        client = RetryingClient(session.client, rate, session.ledger, provider.prices, max_tokens)
        count = min(provider.concurrency, len(self._pending))
        workers = {asyncio.create_task(self._worker(client, rate)) for _ in range(count)}
        running = workers
        deadline: float | None = None
        try:
            while running:
                done, running = await asyncio.wait(running, timeout=_POLL_INTERVAL, return_when=asyncio.FIRST_EXCEPTION)
                for worker in done:
                    worker.result()
                if self._stop.is_set():
                    await self._stop_sending(rate)
                    deadline = deadline or self._now() + max(0.0, session.grace_seconds - _SHUTDOWN_RESERVE)
                    if self._now() >= deadline:
                        return
        except StageError:
            await self._stop_sending(rate)
            if running:  # what is in flight is being paid for
                _, running = await asyncio.wait(running, timeout=_DRAIN_TIMEOUT)
            raise
        finally:
            for worker in running:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)

    async def _stop_sending(self, rate: RateController) -> None:
        if self.session.ledger is not None:
            self.session.ledger.stop()
        await rate.stop()

    async def _worker(self, client: RetryingClient, rate: RateController) -> None:
        with suppress(StopRequested):
            while self._pending and not self._stop.is_set() and not rate.stopping.is_set():
                task = self._pending.popleft()
                row, result = await self._ask(client, task)
                journal = self.session.journal
                if journal is not None and not candidate_schema.OUTCOMES[result.outcome].asked_again:
                    await journal.add(row, self.session.cycle_uid, result.charge)
                client.settle(result)
                self._record_result(result)
                self.rows[task.triplet_id] = row
                self._report_progress(rate)
                self._check_usable()

    async def _ask(self, client: RetryingClient, task: Task) -> tuple[Candidate, QuestionResult]:
        """One task's row, and how it came about."""
        parameters = self.session.parameters
        paradigm = sampling_plan.paradigm(task, parameters.paradigms, parameters.seed)
        prompt = prompt_templates.load(paradigm)
        question = ImageQuestion(
            prompt=prompt.render(
                modality=task.modality,
                question_type=task.question_type,
                asks=parameters.custom_question_types.get(task.question_type, ""),
            ),
            image=self.session.egress.read(task.image_sha256),
            seed=_seed(parameters.seed, task),
        )
        journal, uid = self.session.journal, self.session.cycle_uid

        async def keep(answer: PaidAnswer, charge: Charge | None) -> None:
            if journal is not None:
                await journal.add_answer(task.triplet_id, task.image_sha256, answer, uid, charge)

        earlier = None if journal is None else journal.answer(task.triplet_id, task.image_sha256)
        try:
            result = await client.answer(question, earlier, keep)
        except ConfigError as error:
            raise ConfigError(f"{self._where()}, model {self.session.provider.model!r}: {error}") from None
        generated = result.generated
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
            generator=self.session.provider.model,
            outcome=result.outcome,
            error=redaction.redact(result.error),
            attempts=result.attempts,
            input_tokens=result.input_tokens,
            output_tokens=result.output_tokens,
            thinking_tokens=result.thinking_tokens,
            usd=result.usd,
        )
        if generated is not None:
            question_type = _question_type(generated.question_type, parameters.question_types, task.question_type)
            row = replace(
                row,
                question=generated.question,
                question_type=question_type,
                options=generated.options,
                answer_index=generated.answer_index,
                rationale=generated.rationale,
                response=answers.response(
                    generated.rationale, generated.answer_index, generated.options, parameters.answer_format
                ),
            )
        return row, result

    def _record_result(self, result: QuestionResult) -> None:
        """Counts failures; raises TemporaryError when the server does nothing but fail."""
        if not candidate_schema.OUTCOMES[result.outcome].asked_again:
            self._failure_streak, self._last_answer = 0, self._now()
            return
        if not self._errors[result.error]:
            _log.warning("%s: %s", self._where(), result.error)
        self._errors[result.error] += 1
        self._failure_streak += result.server_fault
        silent = self._now() - self._last_answer
        streak = self._failure_streak
        if streak >= self._max_streak or (streak >= _MIN_STREAK and silent > _SILENCE_TIMEOUT):
            raise self._provider_down(f"{streak} questions in a row got no answer")

    def _report_progress(self, rate: RateController) -> None:
        self._finished += 1
        done, total, finished = len(self.rows), len(self.tasks), self._finished
        if finished >= cost_estimate.MIN_QUESTIONS and not self._forecast:
            speed = finished / max(1e-9, self._now() - self._started)
            estimate = cost_estimate.estimate(self.rows.values(), total, speed)
            _log.info("%s", estimate)
            self._forecast = estimate.figures() if estimate else {}
        figures = {"failed": float(self._errors.total()), "concurrency": rate.limit, **self._forecast}
        if self.session.ledger is not None:
            figures["generatorUSD"] = self.session.ledger.spent
        self._report(done, figures)

    def _check_failures(self) -> None:
        failed = sum(candidate_schema.OUTCOMES[row.outcome].asked_again for row in self.rows.values())
        if failed > _MAX_FAILED_SHARE * len(self.tasks):
            raise self._provider_down(f"{failed} of {len(self.tasks)} questions got no answer")

    def _check_usable(self, *, at_end: bool = False) -> None:
        """Raises TooFewUsable when so few answers are triplets that it is not worth paying for more; at the end, where
        none is and one at least should be, however few there are."""
        floor = self.session.parameters.min_usable
        answered = Counter(
            row.outcome for row in self.rows.values() if not candidate_schema.OUTCOMES[row.outcome].asked_again
        )
        total, usable = answered.total(), answered.pop(CandidateOutcome.OK, 0)
        none_of_few = at_end and not usable and floor.fraction * total >= 1
        if not none_of_few and (total < floor.after_answers or usable >= floor.fraction * total):
            return
        ((worst, count),) = answered.most_common(1)
        rule = candidate_schema.OUTCOMES[worst]
        raise TooFewUsable(
            f"{self._where()}, model {self.session.provider.model!r}: {usable} of {total} answers are triplets, and "
            f"generator.minUsable.fraction is {floor.fraction:g}; {count} ended as {worst} ({rule.meaning}). "
            f"What to do: {rule.remedy}. What was answered is kept; to pay for more of the same, lower "
            "generator.minUsable.fraction"
        )

    def _provider_down(self, what: str) -> TemporaryError:
        common = self._errors.most_common(1)[0][0]
        return TemporaryError(
            f"{self._where()}: {what}; most often: {common}. Check the server and the settings, "
            "then run again: what was answered is kept"
        )

    def _where(self) -> str:
        return self.session.provider.where

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()


def _seed(seed: int, task: Task) -> int:
    """The sampling seed of a task, for servers that honour one."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{task.triplet_id}".encode()).digest()[:4], "big") >> 1


def _question_type(answered: str, allowed: Sequence[str], requested: str) -> str:
    """The question type that the generator named, if it is one of ours; otherwise the one asked for."""
    return next((name for name in allowed if answers.normalise(name) == answers.normalise(answered)), requested)
