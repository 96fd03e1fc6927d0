"""What the rest will take."""

from __future__ import annotations

import random
import statistics
from dataclasses import replace

import pytest
from tests.support.curate_fixtures import candidate

from medgr2_jobs.generate.cost_estimate import estimate
from medgr2_jobs.store.rows.candidates import Candidate


def rows(count: int, rng: random.Random) -> list[Candidate]:
    return [
        candidate(
            f"t{number}",
            "i",
            outcome="ok" if number % 4 else "refused",
            input_tokens=100,
            output_tokens=40,
            thinking_tokens=10,
            usd=rng.expovariate(1000),
        )
        for number in range(count)
    ]


def test_means_carry_over() -> None:
    answered = rows(100, random.Random(0))
    result = estimate(answered, 1000, 4.0)
    assert result is not None
    assert (result.input_tokens, result.output_tokens, result.ok) == (100_000, 50_000, 0.75)
    assert result.usd == pytest.approx(sum(row.usd or 0.0 for row in answered) * 10)
    assert result.seconds == 900 / 4
    assert result.figures().keys() == {"forecastTokens", "forecastUSD", "forecastSeconds"}
    assert "100 of 1000 questions" in str(result)


def test_the_interval_holds_nineteen_times_of_twenty() -> None:
    rng, hits = random.Random(1), 0
    for _ in range(400):
        whole = rows(500, rng)
        result = estimate(whole[:100], 500)
        assert result is not None
        hits += abs((result.usd or 0) - sum(row.usd or 0.0 for row in whole)) <= result.usd_error
    assert statistics.fmean([hits / 400]) == pytest.approx(0.95, abs=0.04)


def test_without_prices_and_without_rows() -> None:
    answered = [replace(row, usd=None) for row in rows(4, random.Random(2))]
    result = estimate(answered, 4)
    assert result is not None
    assert result.usd is None
    assert result.figures() == {"forecastTokens": 600}
    assert "USD" not in str(result)
    assert estimate([], 4) is None
