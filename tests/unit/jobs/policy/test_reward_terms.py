"""Terms of GRPO's reward: the built-in ones, and one of another package."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.support.plugin_fixtures import install, plugin
from tests.unit.jobs.policy.test_rewards import FORMAT, RIGHT, WRONG, call, scores

from medgr2_api.policy import RewardTerm
from medgr2_jobs import plugins
from medgr2_jobs.errors import ConfigError
from medgr2_jobs.policy.rewards import PolicyReward, Rollouts, check_terms, summary

FIELD = "policy.grpo.rewards"


def terms(brevity: float, **options: Any) -> list[RewardTerm]:
    return [
        RewardTerm(type="RewardModel", weight=0.6),
        RewardTerm(type="AnswerMatch", weight=0.2),
        RewardTerm(type="Plugin", weight=brevity, plugin=plugin("brevity", **options)),
    ]


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch)


def test_a_plugin_is_weighted_and_logged_beside_the_others() -> None:
    long = f"<think>{'x' * 100}</think><answer>a</answer>"
    reward = PolicyReward(terms(0.2, characters=2 * len(long)), 2, scores(10, 10, -6, 2), Rollouts(), FORMAT)
    found, logged = call(reward, [long, "", RIGHT, WRONG], [0, 0, 0, 0])
    brief = [0.5, 1.0, 1 - len(RIGHT) / len(long) / 2, 1 - len(WRONG) / len(long) / 2]
    assert found == pytest.approx(
        [0.6 + 0.2 + 0.2 * brief[0], 0.6 + 0.2 * brief[1], 0.2 + 0.2 * brief[2], 0.3 + 0.2 * brief[3]]
    )
    assert logged["plugin_brevity"] == pytest.approx(np.mean(brief))
    shares = [logged[f"variance_share_{name}"] for name in ("reward_model", "match", "plugin_brevity")]
    assert sum(shares) == pytest.approx(1)
    assert shares[2] != 0


def test_without_a_trusted_answer_the_others_take_over_in_proportion() -> None:
    reward = PolicyReward(terms(0.2), 2, scores(10, 10), Rollouts(), FORMAT)
    found, _ = call(reward, ["", ""], [None, 0])
    assert found == pytest.approx([1.0, 0.8])  # 0.75 and 0.25 of the whole; without an answer that matches


def test_a_run_of_a_plugin_has_its_figures_in_the_counters() -> None:
    found = summary([{"reward": 1.0, "plugin_brevity": 0.5, "variance_share_plugin_brevity": 0.1}] * 5)
    assert found["plugin_brevity"] == 0.5
    assert found["variance_share_plugin_brevity"] == 0.1


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([*terms(0.2)[:2], RewardTerm(type="Plugin", weight=1, plugin=plugin("brevity", "0.9"))], "asks for 0.9"),
        ([*terms(0.2)[:2], RewardTerm(type="Plugin", weight=1, plugin=plugin("brevit"))], "did you mean 'brevity'"),
        (terms(0.2, words=1), "unexpected keyword argument 'words'"),
        ([*terms(0.2), terms(0.3)[2]], "named twice"),
        (terms(-0.6), "the weights beside AnswerMatch add up to 0"),
    ],
)
def test_what_cannot_be_rewarded_is_refused_before_any_model_is_loaded(given: list[RewardTerm], said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        check_terms(given, True, FIELD)
    assert str(caught.value).startswith(FIELD)


@pytest.mark.parametrize("values", [[1.0], [1.0, float("nan")], [[1.0], [2.0]]])
def test_values_that_are_no_reward_end_the_stage(values: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugins, "load", lambda *_: lambda completions: values)
    reward = PolicyReward(terms(0.2)[2:], 2, None, Rollouts(), FORMAT)
    with pytest.raises(ConfigError, match="one finite number for each"):
        call(reward, [RIGHT, WRONG], [0, 0])


def test_terms_of_another_package_read_what_the_policy_wrote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(plugins, "load", lambda *_: lambda completions: seen.extend(completions) or [0.0, 0.0])
    call(PolicyReward(terms(0.2)[2:], 2, None, Rollouts(), FORMAT), [RIGHT, "?"], [1, None])
    assert [(one.text, one.picked, one.answer_index) for one in seen] == [(RIGHT, 0, 1), ("?", None, None)]
    assert (seen[0].prompt, seen[0].options, seen[0].image_sha256) == ("Which? a, b", ("a", "b"), "i0")
