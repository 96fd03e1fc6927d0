"""What all questions of a shard will take, extrapolated from those answered so far."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ..store.rows.candidates import Candidate, CandidateOutcome

#: Questions that an estimate is made from, at least.
MIN_QUESTIONS = 100
_Z = 1.96


@dataclass(frozen=True)
class CostEstimate:
    """Of all questions, from a part of them."""

    rows: int
    """Questions that it was made from."""
    total: int
    """Questions in all."""
    ok: float
    """Share of them that became triplets."""
    input_tokens: float
    """Of all questions."""
    output_tokens: float
    """Of all questions, thinking included."""
    usd: float | None
    """For all questions; None: there are no prices."""
    usd_error: float
    """Half the width of its 95 % interval."""
    seconds: float | None
    """To the end; None: nobody has measured."""

    def __str__(self) -> str:
        money = "" if self.usd is None else f", {self.usd:.4g} ± {self.usd_error:.2g} USD"
        time = "" if self.seconds is None else f", {self.seconds:,.0f} s to the end"
        return (
            f"cost estimate from {self.rows} of {self.total} questions: {self.input_tokens:,.0f} tokens in, "
            f"{self.output_tokens:,.0f} out{money}{time}; {self.ok:.0%} are usable"
        )

    def figures(self) -> dict[str, float]:
        """For progress."""
        figures = {"forecastTokens": self.input_tokens + self.output_tokens}
        if self.usd is not None:
            figures["forecastUSD"] = self.usd
        if self.seconds is not None:
            figures["forecastSeconds"] = self.seconds
        return figures


def estimate(rows: Iterable[Candidate], total: int, rows_per_second: float | None = None) -> CostEstimate | None:
    """What `total` questions take when they go on like these.

    Args:
        rows: of table `candidates`: any, in any order.
        total: questions in all, these included.
        rows_per_second: how fast it goes.

    Returns:
        None when there are no rows.
    """
    answered = list(rows)
    count = len(answered)
    if not count:
        return None
    spent = [row.usd for row in answered if row.usd is not None]
    mean = sum(spent) / count
    deviation = math.sqrt(sum((usd - mean) ** 2 for usd in spent) / max(1, count - 1))
    remaining = max(0, total - count)
    return CostEstimate(
        rows=count,
        total=total,
        ok=sum(row.outcome is CandidateOutcome.OK for row in answered) / count,
        input_tokens=_mean([row.input_tokens for row in answered]) * total,
        output_tokens=(
            _mean([row.output_tokens for row in answered]) + _mean([row.thinking_tokens for row in answered])
        )
        * total,
        usd=sum(spent) + mean * remaining if spent else None,
        usd_error=_Z * deviation * math.sqrt(remaining + remaining**2 / count),
        seconds=remaining / rows_per_second if rows_per_second else None,
    )


def _mean(counts: Sequence[int | None]) -> float:
    return sum(count or 0 for count in counts) / len(counts)
