"""What the rest will take."""

from __future__ import annotations

import random
import statistics
from dataclasses import replace

import pytest
from tests.support.curate_fixtures import candidate

from medgr2_jobs.generate.cost_estimate import forecast
from medgr2_jobs.store.rows import Candidate


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
    made = rows(100, random.Random(0))
    found = forecast(made, 1000, 4.0)
    assert found is not None
    assert (found.input_tokens, found.output_tokens, found.ok) == (100_000, 50_000, 0.75)
    assert found.usd == pytest.approx(sum(row.usd or 0.0 for row in made) * 10)
    assert found.seconds == 900 / 4
    assert found.figures().keys() == {"forecastTokens", "forecastUSD", "forecastSeconds"}
    assert "100 of 1000 questions" in str(found)


def test_the_interval_holds_nineteen_times_of_twenty() -> None:
    rng, hits = random.Random(1), 0
    for _ in range(400):
        whole = rows(500, rng)
        found = forecast(whole[:100], 500)
        assert found is not None
        hits += abs((found.usd or 0) - sum(row.usd or 0.0 for row in whole)) <= found.usd_error
    assert statistics.fmean([hits / 400]) == pytest.approx(0.95, abs=0.04)


def test_without_prices_and_without_rows() -> None:
    made = [replace(row, usd=None) for row in rows(4, random.Random(2))]
    found = forecast(made, 4)
    assert found is not None
    assert found.usd is None
    assert found.figures() == {"forecastTokens": 600}
    assert "USD" not in str(found)
    assert forecast([], 4) is None
