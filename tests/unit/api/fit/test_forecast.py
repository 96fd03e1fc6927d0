"""`make bench NAME=forecast` prints the paper's iteration, and what it rests on."""

from __future__ import annotations

import json

import pytest
from bench import forecast


def test_a_server_saves_most_of_what_sampling_costs() -> None:
    before, after = forecast.arm(forecast.setting(server=False)), forecast.arm(forecast.setting(server=True))
    assert set(before) == {"score", "sft", "grpo", "relabel", "reward", "evaluate", "evaluategrpo"}
    assert after["grpo"] < before["grpo"] / 4
    assert after["evaluate"] < before["evaluate"]
    assert after["sft"] == before["sft"]


def test_gpus_of_two_kinds_of_work_wait_for_each_other() -> None:
    hours = {"grpo": 20.0}
    assert forecast.clock(hours, 0.0, spread=()) == pytest.approx(20 / 8)
    assert forecast.clock(hours, 10.0, spread=()) == pytest.approx(40 / 8)
    assert forecast.grpo_clock(2.0, 18.0) == (2 / 2 + 18 / 6, 2)
    assert forecast.clock({"grpo": 0.0, "sft": 8.0, "relabel": 1.0}, 0.0, spread=("sft",)) == pytest.approx(2)


def test_what_grpo_is_adds_up_and_a_shared_prompt_is_cheaper() -> None:
    case = forecast.setting(server=True)
    hours = forecast.arm(case)["grpo"]
    parts = forecast.passes(case, hours)
    assert sum(parts.values()) == pytest.approx(hours)
    assert all(part > 0 for part in parts.values())
    assert parts["learning"] > parts["the reference's pass"]  # forward and backward
    assert forecast.shared_pass(case) < parts["the reference's pass"] / 2


def test_it_says_what_is_assumed_and_what_is_not_built(capsys: pytest.CaptureFixture[str]) -> None:
    forecast.main()
    output = capsys.readouterr().out
    assert "goal: 30 GPU-hours and 5 h: " in output
    assert forecast.SHARED_OUT in output
    assert "(assumed)" in output
    assert "published, torchtitan" in output
    figures = json.loads(output.splitlines()[-1])["figures"]
    assert figures["vLLM, busy GPU-hours"] < figures["vLLM, groups of 4, busy GPU-hours"] * 2
