"""One question until it has an outcome: requests rate-limited, reserved in the ledger, retried, repaired once."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

from medgr2_api.generator import Prices

from ..errors import ConfigError, StageError
from ..store.rows.candidates import CandidateOutcome
from . import candidate_schema, pricing
from .candidate_schema import GeneratedQuestion
from .journal import PaidAnswer
from .provider_errors import FailureAction
from .providers.base import ImageQuestion, ProviderClient, Repair, Reply
from .rate_control import RateController, StopRequested
from .spend_ledger import Charge, SpendLedger

#: Requests about one question, as long as none is answered.
MAX_REQUESTS = 6

#: Puts an answer that is to be sent back on the disk, with what it came to.
Keep = Callable[[PaidAnswer, Charge | None], Awaitable[None]]


async def keep_nothing(_answer: PaidAnswer, _charge: Charge | None) -> None:
    """Where there is no journal."""


@dataclass
class QuestionResult:
    """How a question ended, and what it took."""

    outcome: CandidateOutcome = CandidateOutcome.HTTP_ERROR
    generated: GeneratedQuestion | None = None
    """For `ok`: what it says."""
    error: str = ""
    server_fault: bool = False
    """Whether the server failed, as far as this question tells."""
    attempts: int = 0
    """Requests sent."""
    input_tokens: int | None = None
    output_tokens: int | None = None
    thinking_tokens: int | None = None
    usd: float | None = None
    """Of all requests together; None: there are no prices."""
    charge: Charge | None = None
    """Of the last request: to be settled once its answer is on the disk."""

    def paid_answer(self, text: str) -> PaidAnswer:
        """An answer to the question, with what it took until now."""
        return PaidAnswer(text, self.attempts, self.input_tokens, self.output_tokens, self.thinking_tokens, self.usd)

    def add_usage(self, usage: pricing.TokenUsage) -> None:
        """Adds the tokens of a request."""
        self.input_tokens = (self.input_tokens or 0) + usage.input_tokens
        self.output_tokens = (self.output_tokens or 0) + usage.output_tokens
        self.thinking_tokens = (self.thinking_tokens or 0) + usage.thinking_tokens


class RetryingClient:
    """Asks a provider, with back-off, retries and one repair."""

    def __init__(
        self,
        client: ProviderClient,
        rate: RateController,
        ledger: SpendLedger | None,
        prices: Prices | None,
        max_tokens: int,
    ) -> None:
        """
        Args:
            client: the provider's.
            rate: when a request may be sent.
            ledger: the account; None: nothing has a price.
            prices: of the provider; needed with a ledger.
            max_tokens: longest answer.
        """
        self._client = client
        self._rate = rate
        self._ledger = ledger
        self._prices = prices
        self._max_tokens = max_tokens
        self._pending_error: StageError | None = None

    async def answer(
        self, question: ImageQuestion, earlier: PaidAnswer | None = None, keep: Keep = keep_nothing
    ) -> QuestionResult:
        """Asks until there is an outcome. Its last request is not settled yet: see `settle`.

        Args:
            question: what is asked.
            earlier: an answer that an earlier attempt paid for; it is gone on from.
            keep: called with an answer before it is sent back.

        Raises:
            StopRequested: asked to stop before there was one.
            BudgetSpent: the next request might pass the budget.
            ConfigError: the provider refuses the key or the model.
            TemporaryError: Retry-After is longer than a stage waits.
        """
        if self._pending_error is not None:
            raise self._pending_error
        result = QuestionResult(usd=None if self._ledger is None else 0.0)
        if earlier is None:
            reply = await self._ask(question, result)
        else:
            reply = Reply(text=earlier.text)
            result.attempts, result.usd = earlier.attempts, earlier.usd
            result.input_tokens, result.output_tokens = earlier.input_tokens, earlier.output_tokens
            result.thinking_tokens = earlier.thinking_tokens
        self._record(reply, result)
        reason = candidate_schema.OUTCOMES[result.outcome].repair
        if reply.failure is None and reason and self._client.repairs:
            if earlier is None:
                await keep(result.paid_answer(reply.text), result.charge)
            self.settle(result)
            await self._repair(replace(question, repair=Repair(reply.text, reason)), result)
        return result

    def settle(self, result: QuestionResult) -> None:
        """Books what the last request has cost, once its answer is on the disk."""
        if result.charge is not None and self._ledger is not None:
            self._ledger.settle(result.charge)
        result.charge = None

    async def _repair(self, question: ImageQuestion, result: QuestionResult) -> None:
        """Sends an answer back once. What stands in the way of it leaves the first outcome, which is paid for."""
        try:
            reply = await self._ask(question, result)
        except StopRequested:
            return
        except StageError as error:  # the end of the stage, but not of this row
            self._pending_error = error
            return
        if reply.failure is None:
            self._record(reply, result)
        else:
            result.error = f"not corrected: {reply.failure.error}"

    def _record(self, reply: Reply, result: QuestionResult) -> None:
        if reply.failure is not None:
            failure = reply.failure
            result.outcome, result.error, result.server_fault = failure.outcome, failure.error, failure.server_fault
            return
        outcome, generated = (
            candidate_schema.parse_answer(reply.text) if reply.outcome == CandidateOutcome.OK else (reply.outcome, None)
        )
        result.outcome, result.generated = outcome, generated
        result.error = "" if generated is not None else reply.error or candidate_schema.OUTCOMES[outcome].meaning

    async def _ask(self, question: ImageQuestion, result: QuestionResult) -> Reply:
        """The reply to a question; one with a failure when it is given up.

        (Not tenacity: a reply says by itself whether it is worth another request, each is reserved and settled, and all
        workers wait together.)
        """
        retries = 0
        while True:
            reply = await self._request(question, result)
            failure = reply.failure
            if failure is None:
                return reply
            self.settle(result)  # there is nothing to be kept
            if failure.retry_after is not None:
                self._rate.pause(failure.retry_after)
            if failure.action is FailureAction.SKIP:
                return reply
            if failure.action is FailureAction.STOP:
                raise ConfigError(failure.error)
            if failure.retry_immediately:
                continue
            retries += 1
            if retries >= MAX_REQUESTS:
                return reply
            await self._rate.back_off(retries)

    async def _request(self, question: ImageQuestion, result: QuestionResult) -> Reply:
        """One HTTP request in a slot of the rate controller: reserved before; what it came to is in `result`."""
        worst_case = pricing.TokenUsage(pricing.max_input_tokens(question.text_bytes, self._prices), self._max_tokens)
        async with self._rate.slot() as slot:
            reservation = await self._reserve(worst_case)
            result.attempts += 1
            reply = await self._client.ask(question)
            if reservation is not None:
                result.charge = self._charge(reservation, reply)
                result.usd = (result.usd or 0.0) + result.charge.usd
            slot.answered, slot.throttled = reply.failure is None, bool(reply.failure and reply.failure.throttled)
            if reply.usage is not None:
                result.add_usage(reply.usage)
                slot.tokens = reply.usage.input_tokens + reply.usage.output_tokens + reply.usage.thinking_tokens
        return reply

    async def _reserve(self, worst_case: pricing.TokenUsage) -> int | None:
        if self._ledger is None or self._prices is None:
            return None
        return await self._ledger.reserve(pricing.cost(self._prices, worst_case))

    def _charge(self, reservation: int, reply: Reply) -> Charge:
        assert self._ledger is not None
        assert self._prices is not None
        if reply.failure is not None:
            return self._ledger.charge(reservation, None if reply.failure.billed else 0.0)
        return self._ledger.charge(reservation, pricing.cost(self._prices, reply.usage) if reply.usage else None)
