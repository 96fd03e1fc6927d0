from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from medgr2_api.policy import RewardTerm, RewardTermType
from medgr2_api.training_spec import AnswerFormat
from medgr2_jobs.errors import ConfigError
from medgr2_jobs.policy.reward_terms import RememberedScores, trusted_terms
from medgr2_jobs.policy.rewards import PolicyReward, Rollouts, check_terms, summary, zero_variance

FORMAT = AnswerFormat.OPTION_TEXT
RIGHT, WRONG = "<think>x</think><answer>a</answer>", "<think>x</think><answer>b</answer>"


def terms(alpha: float = 0.8, beta: float = 0.2, normalization: str = "MinMax") -> list[RewardTerm]:
    return [
        RewardTerm(type="RewardModel", weight=alpha, normalization=normalization),
        RewardTerm(type="AnswerMatch", weight=beta),
    ]


def call(
    reward: PolicyReward, said: list[str], trusted: list[int | None], step: int = 0
) -> tuple[list[float], dict[str, float]]:
    logged: dict[str, float] = {}
    found = reward.reward(
        completions=[[{"role": "assistant", "content": text}] for text in said],
        image_sha256=[f"i{n}" for n in range(len(said))],
        text=["Which? a, b"] * len(said),
        options=[["a", "b"]] * len(said),
        answer_index=trusted,
        prompt_id=["p"] * len(said),
        trainer_state=SimpleNamespace(global_step=step, max_steps=640),
        log_metric=logged.__setitem__,
    )
    return found, logged


def scores(*values: float) -> Any:
    return lambda rows: np.array(values)


def test_reward_is_the_weighted_sum_of_normalised_r_and_match() -> None:
    reward = PolicyReward(terms(), 2, scores(10, -6), Rollouts(), FORMAT)
    assert call(reward, [RIGHT, WRONG], [0, 0])[0] == pytest.approx([1.0, 0.0])


def test_raw_r_under_the_papers_scale() -> None:
    reward = PolicyReward(terms(normalization="None"), 2, scores(10, -6), Rollouts(), FORMAT)
    assert call(reward, [RIGHT, WRONG], [0, 0])[0] == pytest.approx([8.2, -4.8])


def test_without_a_trusted_answer_r_takes_the_whole_weight() -> None:
    reward = PolicyReward(terms(), 2, scores(10, 2, 10, 2), Rollouts(), FORMAT)
    found, logged = call(reward, [RIGHT, RIGHT, RIGHT, WRONG], [None, None, 0, 0])
    assert found == pytest.approx([1.0, 0.5, 1.0, 0.4])
    assert logged["match"] == 0.5  # of the two that have one


def test_an_answer_that_cannot_be_read_never_matches() -> None:
    reward = PolicyReward(terms(0.0, 1.0)[1:], 2, None, Rollouts(), FORMAT)
    found, logged = call(reward, ["a", RIGHT], [0, 0])
    assert found == [0.0, 1.0]
    assert logged["parse_failures"] == 0.5
    assert logged["well_formed"] == 0.5
    assert "reward_model" not in logged


def test_what_the_template_has_written_belongs_to_the_answer() -> None:
    reward = PolicyReward(terms(0.0, 1.0)[1:], 2, None, Rollouts(), FORMAT, "<think>".__add__)
    found, logged = call(reward, [RIGHT.removeprefix("<think>"), "nothing"], [0, 0])
    assert found == [1.0, 0.0]
    assert logged["well_formed"] == 0.5


def test_variance_shares_add_up_to_one() -> None:
    rng = np.random.default_rng(0)
    reward = PolicyReward(terms(), 4, scores(*rng.uniform(-6, 10, 16)), Rollouts(), FORMAT)
    _, logged = call(reward, [RIGHT, WRONG] * 8, [0] * 16)
    assert logged["variance_share_reward_model"] + logged["variance_share_match"] == pytest.approx(1)
    assert logged["zero_variance_groups"] == 0


def test_variance_is_taken_within_groups_only() -> None:
    reward = PolicyReward(terms(), 2, scores(10, 10, -6, -6), Rollouts(), FORMAT)
    _, logged = call(reward, [RIGHT, RIGHT, WRONG, WRONG], [0] * 4)
    assert logged["zero_variance_groups"] == 1
    assert "variance_share_match" not in logged


def test_raw_scale_leaves_the_match_almost_no_say() -> None:
    """docs/decisions.md, 1, as a figure of a run."""
    values = scores(8, 1, 5, -3)
    _, raw = call(PolicyReward(terms(normalization="None"), 4, values, Rollouts(), FORMAT), [RIGHT, WRONG] * 2, [0] * 4)
    _, scaled = call(PolicyReward(terms(), 4, values, Rollouts(), FORMAT), [RIGHT, WRONG] * 2, [0] * 4)
    assert raw["variance_share_match"] < 0.03
    assert scaled["variance_share_match"] > 0.2


def test_rollouts_are_one_group_of_some_steps_and_survive_a_checkpoint(tmp_path: Path) -> None:
    kept = Rollouts()
    reward = PolicyReward(terms(), 2, scores(10, -6, 2, 2), kept, FORMAT)
    for step in range(40):
        call(reward, [RIGHT, WRONG, RIGHT, RIGHT], [0, 0, None, None], step)
    assert [row.step for row in kept.rows] == [0, 0, 20, 20]
    assert kept.rows[1].match == 0.0
    kept.save(tmp_path)
    again = Rollouts()
    again.load(tmp_path)
    assert again.rows == kept.rows


@pytest.mark.parametrize(
    ("given", "has_reward", "said"),
    [
        (terms(), False, "trains no reward model"),
        (terms()[1:] * 2, True, "named twice"),
        (terms(0.0, 0.0), True, "every weight is 0"),
        (terms(-0.8, 0.8), True, "add up to 0"),
    ],
)
def test_terms_that_cannot_be_rewarded_are_refused(given: list[RewardTerm], has_reward: bool, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        check_terms(given, has_reward, "policy.grpo.rewards")


def test_match_alone_needs_no_reward_model() -> None:
    check_terms(terms()[1:], False, "policy.grpo.rewards")


def test_summary_compares_the_first_fifth_with_the_last() -> None:
    history = [{"reward": float(n), "kl": 0.1 * n, "completions/mean_length": 7.0} for n in range(10)]
    found = summary([*history, {"train_runtime": 3.0}])
    assert found["reward_first"] == 0.5
    assert found["reward_last"] == 8.5
    assert found["kl"] == pytest.approx(0.85)
    assert found["mean_length"] == 7.0
    assert "match" not in found


def test_terms_without_the_reward_model() -> None:
    judge = RewardTerm(type=RewardTermType.REWARD_MODEL, weight=0.8)
    match = RewardTerm(type=RewardTermType.ANSWER_MATCH, weight=0.2)
    assert trusted_terms([judge, match]) == [match]
    assert trusted_terms([judge]) == [match.model_copy(update={"weight": 1.0})]
    assert trusted_terms([judge, match.model_copy(update={"weight": 0.0})])[-1].weight == 1.0


def test_groups_without_variance_are_counted_over_the_whole_run() -> None:
    history = [{"zero_variance_groups": 0.25, "reward": 1.0}, {"zero_variance_groups": 0.5}, {"loss": 0.1}]
    assert zero_variance(history, 64) == {"groups": 128, "groups_without_variance": 48}


def test_groups_of_one_reward_are_found_and_r_scores_nothing_twice() -> None:
    asked: list[int] = []

    def score(rows: Any) -> Any:
        asked.append(len(rows))
        return np.array([10.0 if RIGHT in row.response else -6.0 for row in rows])

    reward = PolicyReward(terms(), 2, RememberedScores(score), Rollouts(), FORMAT)
    rows = [{"image_sha256": "i", "text": f"q{n}", "options": ["no", "yes"], "answer_index": 0} for n in range(2)]
    assert reward.same_reward([[RIGHT, RIGHT], [RIGHT, WRONG]], rows) == [True, False]
    assert reward.same_reward([[WRONG, WRONG], [RIGHT, WRONG]], rows) == [True, False]
    assert asked == [3, 1]


def test_of_a_step_that_is_sampled_for_in_parts_one_group_is_kept() -> None:
    reward = PolicyReward(terms(), 2, scores(10, -6), Rollouts(), FORMAT)
    call(reward, [RIGHT, WRONG], [0, 0])
    call(reward, [RIGHT, WRONG], [0, 0])
    assert len(reward.rollouts.rows) == 2
