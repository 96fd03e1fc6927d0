"""What is decided before and after GRPO, from who answered which validation question rightly."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.rows import row_of

from medgr2_api.policy import PolicyRelease, WhenPolicyBeatsReward
from medgr2_jobs.evaluate.metrics import ItemSet
from medgr2_jobs.evaluate.release import (
    Release,
    TrainedOn,
    Validation,
    after_training,
    as_floats,
    before_training,
)
from medgr2_jobs.store.rows import Split
from medgr2_jobs.store.rows.prepared import Item
from medgr2_jobs.store.rows.training import RewardAnswer

MODALITIES = ("CT", "CT", "CT", "MR", "MR", "US")


def questions(count: int = 12) -> Validation:
    return Validation([
        row_of(
            Item, item_id=f"i{n}", image_sha256=f"image {n // 2}", modality=MODALITIES[n % 6], split=Split.VALIDATION,
            question_type=f"type {n % 2}", options=("a", "b", "c"), answer_index=n % 3,
        )
        for n in range(count)
    ])  # fmt: skip


def right(*which: int, count: int = 12) -> np.ndarray:
    return as_floats([float(n in which) for n in range(count)])


outcomes = st.lists(st.sampled_from([0.0, 1.0]), min_size=12, max_size=12).map(as_floats)


@settings(max_examples=50, deadline=None)
@given(first=outcomes, second=outcomes)
def test_differences_are_those_of_the_macro_accuracy_that_evaluate_reports(
    first: np.ndarray, second: np.ndarray
) -> None:
    """So what goes on is never what `status.best` would not choose."""
    validation = questions()
    shares = ItemSet(validation.items).shares(np.stack([first, second]), seed=1)
    reported = [share[0].macro.value for share in shares]
    assert [validation.accuracy(first), validation.accuracy(second)] == pytest.approx(reported)
    found = validation.difference(second, first)
    assert found.value == pytest.approx(reported[1] - reported[0], abs=1e-8)
    assert found.low <= found.value + 1e-8
    assert found.high >= found.value - 1e-8


def test_modalities_weigh_the_same() -> None:
    validation = questions()
    assert validation.accuracy(right(5, 11)) == pytest.approx(1 / 3), "both questions of ultrasound"
    assert validation.difference(right(5, 11), right(0, 6)).value == pytest.approx(1 / 3 - 1 / 9)


def test_intervals_draw_images() -> None:
    """Two questions of one image count as one observation."""
    twice = questions()
    once = Validation([
        row_of(Item, item_id=item.item_id, image_sha256=item.item_id, modality="CT", options=item.options)
        for item in twice.items
    ])  # fmt: skip
    alike = Validation([
        row_of(Item, item_id=item.item_id, image_sha256=item.image_sha256, modality="CT", options=item.options)
        for item in twice.items
    ])  # fmt: skip
    better = right(0, 1, 2, 3, 8, 9)
    wide, narrow = (one.difference(better, right()) for one in (alike, once))
    assert wide.value == narrow.value == pytest.approx(0.5)
    assert wide.high - wide.low > narrow.high - narrow.low


@pytest.mark.parametrize(
    ("when", "trained_on", "goes_on"),
    [
        (WhenPolicyBeatsReward.SKIP, TrainedOn.NOTHING, "sft"),
        (WhenPolicyBeatsReward.TRUSTED_ONLY, TrainedOn.TRUSTED_ANSWERS, "grpo"),
        (WhenPolicyBeatsReward.TRAIN, TrainedOn.EVERYTHING, "grpo"),
    ],
)
def test_a_policy_that_beats_its_judge(when: WhenPolicyBeatsReward, trained_on: TrainedOn, goes_on: str) -> None:
    found = before_training(questions(), right(0, 1, 2), right(0, 1), when)
    assert (found.trained_on, found.goes_on) == (trained_on, goes_on)
    assert found.sft_over_reward is not None
    assert found.sft_over_reward.value > 0


@pytest.mark.parametrize("reward", [right(0, 1, 2), right(0, 1, 2, 3), right(3, 1, 2, 0)])
def test_a_judge_that_is_no_worse_judges(reward: np.ndarray) -> None:
    """As good is good enough: a draw is no reason to skip."""
    found = before_training(questions(), right(0, 1, 2), reward, WhenPolicyBeatsReward.SKIP)
    assert (found.trained_on, found.goes_on, found.message) == (TrainedOn.EVERYTHING, "grpo", "")


def test_without_a_reward_model_there_is_nobody_to_beat() -> None:
    found = before_training(questions(), right(*range(12)), None, WhenPolicyBeatsReward.SKIP)
    assert (found.trained_on, found.reward, found.sft) == (TrainedOn.EVERYTHING, None, 1.0)


@pytest.mark.parametrize(
    ("grpo", "wish", "goes_on"),
    [
        (right(0, 1), PolicyRelease.BEST, "sft"),
        (right(2, 1, 0), PolicyRelease.BEST, "grpo"),  # as good: it has learnt what validation does not ask
        (right(0, 1, 2, 3), PolicyRelease.BEST, "grpo"),
        (right(), PolicyRelease.LAST, "grpo"),
    ],
)
def test_which_checkpoint_goes_on(grpo: np.ndarray, wish: PolicyRelease, goes_on: str) -> None:
    validation, sft = questions(), right(0, 1, 2)
    found = after_training(Release(12, sft=validation.accuracy(sft)), validation, sft, grpo, wish)
    assert (found.goes_on, found.promoted) == (goes_on, goes_on == "grpo")
    assert found.grpo == validation.accuracy(grpo)


def test_the_message_says_what_and_why() -> None:
    validation = questions()
    skipped = before_training(validation, right(5, 11), right(5), WhenPolicyBeatsReward.SKIP)
    assert skipped.message.startswith("skipped: sft beats the reward model, 33.3 against 16.7 %, +16.7 [")
    assert skipped.message.endswith(" points; sft goes on (macro accuracy, 12 validation questions)")
    trusted = before_training(validation, right(5, 11), right(5), WhenPolicyBeatsReward.TRUSTED_ONLY)
    worse = after_training(trusted, validation, right(5, 11), right(5), PolicyRelease.BEST)
    assert worse.message.startswith("trained on trusted answers alone: sft beats")
    assert "; sft goes on: grpo 16.7 against 33.3 % of sft, -16.7 [" in worse.message
    assert Release(0).message == ""


def test_it_is_read_as_it_was_written() -> None:
    validation = questions()
    before = before_training(validation, right(5, 11), right(5), WhenPolicyBeatsReward.TRUSTED_ONLY)
    found = after_training(before, validation, right(5, 11), right(5), PolicyRelease.BEST)
    assert Release.from_json(found.to_json()) == found
    assert Release.from_json(before.to_json()) == before


def test_how_right_the_reward_model_is() -> None:
    validation = questions(3)
    rows = [
        RewardAnswer("i0", "x", 0, (3.0, 1.0, 1.0)),
        RewardAnswer("i1", "x", 1, (3.0, 3.0, 1.0)),  # one of two
        RewardAnswer("i2", "x", 2, (3.0, 1.0, 2.9)),
        RewardAnswer("other", "x", 0, (1.0,)),
    ]
    found = validation.right_of_reward(rows[::-1])
    assert found is not None
    assert found.tolist() == [1.0, 0.5, 0.0]
    assert validation.right_of_reward(rows[1:]) is None, "not asked about one of the questions"
    assert validation.right_of_policy([[-1, -2, -3], [-2, -1, -3], [-1, -2, -3]]).tolist() == [1.0, 1.0, 0.0]
