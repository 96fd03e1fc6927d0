"""The result of a stage: always valid JSON, always small enough for a termination message."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medgr2_api.stage_contract import RESULT_MAX_BYTES, Progress, StageResult

HASH = "0123456789abcdef" * 4
any_text = st.text(max_size=5000) | st.integers(0, 9000).map(lambda n: "é\0\n"[n % 3] * n)
figures = st.dictionaries(st.text(max_size=40), st.floats(), max_size=60)


@settings(max_examples=80, deadline=None)
@given(reason=any_text, message=any_text, digest=any_text, metrics=figures, usage=figures)
def test_any_result_fits(
    reason: str, message: str, digest: str, metrics: dict[str, float], usage: dict[str, float]
) -> None:
    result = StageResult(
        exit_code=1,
        reason=reason,
        message=message,
        input_hash=digest,
        output_digest=digest,
        metrics=metrics,
        usage=usage,
    )
    text = result.to_termination_message()
    assert len(text.encode()) <= RESULT_MAX_BYTES
    again = StageResult.model_validate_json(text)
    assert again.exit_code == 1
    assert json.loads(text) == again.dump()


def test_the_message_is_cut_before_the_figures_and_these_before_the_costs() -> None:
    result = StageResult(
        exit_code=0,
        message="x" * 10_000,
        input_hash=HASH,
        output_digest=HASH,
        metrics={f"metric{index}": index / 7 for index in range(30)},
        usage={"generatorUSD": 12.5},
    )
    again = StageResult.model_validate_json(result.to_termination_message())
    assert (again.input_hash, again.output_digest, again.usage) == (HASH, HASH, result.usage)
    assert again.metrics == result.metrics
    assert 64 <= len(again.message) < 1024
    many = result.model_copy(update={"metrics": {f"metric{index}": index / 7 for index in range(500)}})
    again = StageResult.model_validate_json(many.to_termination_message())
    assert again.usage == result.usage
    assert 0 < len(again.metrics) < 500


def test_a_small_result_is_left_alone() -> None:
    result = StageResult(
        exit_code=65, reason="BadRecord", message="data/a.json: row 3: no image\nsecond line", promoted=False
    )
    assert StageResult.model_validate_json(result.to_termination_message()) == result


def test_broken_characters_do_not_break_the_message() -> None:
    text = StageResult(exit_code=1, message="file \udcff\0 é").to_termination_message()
    assert json.loads(text)["message"] == "file ?? é"


def test_figures_that_are_not_finite_are_left_out() -> None:
    result = StageResult(exit_code=0, metrics={"loss": math.nan, "reward": 1, "norm": math.inf})
    assert result.metrics == {"reward": 1}
    progress = Progress(eta_seconds=math.inf, metrics={"loss": math.nan})
    assert (progress.eta_seconds, progress.metrics) == (None, {})


@pytest.mark.parametrize("value", ["text", [1]])
def test_figures_are_numbers(value: object) -> None:
    with pytest.raises(ValueError, match="number"):
        StageResult.model_validate({"exitCode": 0, "metrics": {"a": value}})
