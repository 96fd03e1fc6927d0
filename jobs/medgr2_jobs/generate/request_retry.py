"""One question until it has an outcome: requests in their turn, paid for in advance, retried, repaired once."""

from __future__ import annotations

from dataclasses import dataclass, replace

from medgr2_api.generator import Prices

from ..errors import ConfigError, StageError
from ..store.rows import CandidateOutcome
from . import candidate_schema, pricing
from .candidate_schema import GeneratedQuestion
from .provider_errors import Action, Failure
from .providers.base import Client, Question, Repair, Reply
from .rate_control import Pace, Stopped
from .spend_ledger import Ledger

#: Requests about one question, as long as none is answered.
ATTEMPTS = 6


@dataclass
class Answered:
    """How a question ended, and what it took."""

    outcome: CandidateOutcome = CandidateOutcome.HTTP_ERROR
    made: GeneratedQuestion | None = None
    """For `ok`: what it says."""
    error: str = ""
    trouble: bool = False
    """Whether the provider is in trouble, as far as this question tells."""
    attempts: int = 0
    """Requests sent."""
    input_tokens: int | None = None
    output_tokens: int | None = None
    thinking_tokens: int | None = None
    usd: float | None = None
    """Of all requests together; None: there are no prices."""

    def count(self, usage: pricing.Usage) -> None:
        """Adds the tokens of a request."""
        self.input_tokens = (self.input_tokens or 0) + usage.input_tokens
        self.output_tokens = (self.output_tokens or 0) + usage.output_tokens
        self.thinking_tokens = (self.thinking_tokens or 0) + usage.thinking_tokens


class Exchange:
    """Puts questions to a provider."""

    def __init__(
        self,
        client: Client,
        pace: Pace,
        ledger: Ledger | None,
        prices: Prices | None,
        max_tokens: int,
    ) -> None:
        """
        Args:
            client: the provider's.
            pace: when a request may be sent.
            ledger: the account; None: nothing has a price.
            prices: of the provider; needed with a ledger.
            max_tokens: longest answer.
        """
        self._client = client
        self._pace = pace
        self._ledger = ledger
        self._prices = prices
        self._max_tokens = max_tokens
        self._ended: StageError | None = None

    async def answer(self, question: Question) -> Answered:
        """Asks until there is an outcome.

        Raises:
            Stopped: asked to stop before there was one.
            BudgetSpent: the next request might pass the budget.
            ConfigError: the provider refuses the key or the model.
            TemporaryError: the provider wants to be left alone for long.
        """
        if self._ended is not None:
            raise self._ended
        done = Answered(usd=None if self._ledger is None else 0.0)
        reply = await self._ask(question, done)
        self._judge(reply, done)
        reason = candidate_schema.OUTCOMES[done.outcome].repair
        if reply.failure is None and reason and self._client.repairs:
            await self._repair(replace(question, repair=Repair(reply.text, reason)), done)
        return done

    async def _repair(self, question: Question, done: Answered) -> None:
        """Sends an answer back once. What stands in the way of it leaves the first outcome, which is paid for."""
        try:
            reply = await self._ask(question, done)
        except Stopped:
            return
        except StageError as error:  # the end of the stage, but not of this row
            self._ended = error
            return
        if reply.failure is None:
            self._judge(reply, done)
        else:
            done.error = f"not corrected: {reply.failure.error}"

    def _judge(self, reply: Reply, done: Answered) -> None:
        if reply.failure is not None:
            done.outcome, done.error, done.trouble = reply.failure.outcome, reply.failure.error, reply.failure.trouble
            return
        outcome, made = (
            candidate_schema.judge(reply.text) if reply.outcome == CandidateOutcome.OK else (reply.outcome, None)
        )
        done.outcome, done.made = outcome, made
        done.error = "" if made is not None else reply.error or candidate_schema.OUTCOMES[outcome].meaning

    async def _ask(self, question: Question, done: Answered) -> Reply:
        """The reply to a question; one with a failure when it is given up.

        (Not tenacity: a reply says by itself whether it is worth another request, each is reserved and settled, and all
        workers wait together.)
        """
        retries = 0
        while True:
            reply = await self._request(question, done)
            failure = reply.failure
            if failure is None or failure.action is Action.SKIP:
                return reply
            if failure.action is Action.STOP:
                raise ConfigError(failure.error)
            if failure.at_once:
                continue
            retries += 1
            if retries >= ATTEMPTS:
                return reply
            await self._pace.back_off(retries)

    async def _request(self, question: Question, done: Answered) -> Reply:
        """One HTTP request: in its turn, reserved before, settled after."""
        most = pricing.Usage(pricing.most_tokens(question.text_bytes, self._prices), self._max_tokens)
        async with self._pace.turn() as turn:
            number = await self._reserve(most)
            done.attempts += 1
            reply = await self._client.ask(question)
            if number is not None:
                done.usd = (done.usd or 0.0) + self._settle(number, reply)
            turn.answered, turn.pushback = reply.failure is None, bool(reply.failure and reply.failure.pushback)
            if reply.usage is not None:
                done.count(reply.usage)
                turn.tokens = reply.usage.input_tokens + reply.usage.output_tokens + reply.usage.thinking_tokens
        if reply.failure is not None and reply.failure.retry_after is not None:
            self._pace.pause(reply.failure.retry_after)
        return reply

    async def _reserve(self, most: pricing.Usage) -> int | None:
        if self._ledger is None or self._prices is None:
            return None
        return await self._ledger.reserve(pricing.cost(self._prices, most))

    def _settle(self, number: int, reply: Reply) -> float:
        assert self._ledger is not None
        assert self._prices is not None
        failure: Failure | None = reply.failure
        if failure is not None:
            return self._ledger.settle(number, None if failure.billed else 0.0)
        return self._ledger.settle(number, pricing.cost(self._prices, reply.usage) if reply.usage else None)
