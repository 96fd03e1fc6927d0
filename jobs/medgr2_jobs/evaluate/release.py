"""Whether GRPO trains a policy, and whether what it makes of it goes on (docs/decisions.md, 23 and 24).

Both are decided on the validation questions by macro accuracy, by which the best checkpoint and early stopping are
chosen, too. Differences are paired question by question; their intervals draw images, and only tell how sure one is.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from medgr2_api.percent import percent, points
from medgr2_api.policy import PolicyRelease, WhenPolicyBeatsReward

from ..store.rows.prepared import Item
from ..store.rows.training import RewardAnswer
from .metrics import Interval, cluster_mean

_SEED = 0  # of the bootstrap: the same answers give the same interval, in whatever cycle
_EQUAL = 1e-9  # sums of equal shares differ by rounding

Floats = NDArray[np.float64]


def as_floats(values: Sequence[float]) -> Floats:
    """(N,) as an array."""
    return np.array(values, dtype=np.float64)


class TrainedOn(StrEnum):
    """What GRPO learnt from."""

    EVERYTHING = "everything"
    TRUSTED_ANSWERS = "trusted answers"
    NOTHING = "nothing"
    """It was skipped."""


@dataclass(frozen=True)
class PairedDifference:
    """A paired difference in macro accuracy on the validation questions, with its 95 % interval."""

    value: float
    low: float
    high: float

    @property
    def shown(self) -> str:
        """Such as `+1.2 [-0.4, +2.9] points`."""
        return f"{points(self.value)} [{points(self.low)}, {points(self.high)}] points"


@dataclass(frozen=True)
class Release:
    """What was decided: part `release.json` of stage grpo."""

    questions: int
    """Of the validation split; 0: nothing was compared."""
    trained_on: TrainedOn = TrainedOn.EVERYTHING
    goes_on: str = "grpo"
    """The checkpoint that the next stages read: grpo or sft."""
    sft: float | None = None
    """Macro accuracy of the policy before its training; None: not measured."""
    reward: float | None = None
    """The same of R as an answerer: of the option whose text it scores highest."""
    sft_over_reward: PairedDifference | None = None
    grpo: float | None = None
    """Macro accuracy of the policy after its training."""
    grpo_over_sft: PairedDifference | None = None

    @property
    def promoted(self) -> bool:
        """Whether GRPO's checkpoint goes on."""
        return self.goes_on == "grpo"

    @property
    def message(self) -> str:
        """What was decided and why, in a line; empty: nothing had to be."""
        told = []
        if self.sft_over_reward is not None and self.trained_on is not TrainedOn.EVERYTHING:
            how = "skipped" if self.trained_on is TrainedOn.NOTHING else "trained on trusted answers alone"
            told.append(
                f"{how}: sft beats the reward model, {percent(self.sft)} against {percent(self.reward)} %,"
                f" {self.sft_over_reward.shown}"
            )
        if self.grpo_over_sft is not None:
            told.append(
                f"{self.goes_on} goes on: grpo {percent(self.grpo)} against {percent(self.sft)} % of sft,"
                f" {self.grpo_over_sft.shown}"
            )
        elif not self.promoted:
            told.append(f"{self.goes_on} goes on")
        return f"{'; '.join(told)} (macro accuracy, {self.questions} validation questions)" if told else ""

    def counters(self) -> dict[str, float]:
        """For the stage's counters: what was measured."""
        measured = {"sft": self.sft, "reward_model": self.reward, "grpo": self.grpo}
        return {
            "skipped": float(self.trained_on is TrainedOn.NOTHING),
            "trusted_answers_only": float(self.trained_on is TrainedOn.TRUSTED_ANSWERS),
            **{f"{name}_validation_accuracy": round(value, 6) for name, value in measured.items() if value is not None},
        }

    def to_json(self) -> str:
        """The document."""
        return json.dumps(asdict(self), indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Release:
        """Reads the document."""
        row = json.loads(text)
        for name in ("sft_over_reward", "grpo_over_sft"):
            row[name] = PairedDifference(**row[name]) if row[name] else None
        return cls(**{**row, "trained_on": TrainedOn(row["trained_on"])})


@dataclass(frozen=True)
class Validation:
    """The questions that decide, and how right somebody was on each."""

    items: Sequence[Item]

    def accuracy(self, right: Floats) -> float:
        """Macro accuracy: the mean over modalities.

        Args:
            right: (N,) in [0, 1], how right the answer to each question is.
        """
        return float((self._weights() * right).mean())

    def difference(self, right: Floats, than: Floats) -> PairedDifference:
        """How much more macro accuracy `right` (N,) has `than` the other (N,); modalities weigh the same in every
        draw of images."""
        change = self._weights() * (right - than)
        interval: Interval = cluster_mean(change, [item.image_sha256 for item in self.items], _SEED)
        return PairedDifference(*(round(value, 9) for value in interval))

    def _weights(self) -> Floats:
        """(N,) with mean 1: each modality weighs the same."""
        questions = Counter(item.modality for item in self.items)
        return np.array([len(self.items) / (len(questions) * questions[item.modality]) for item in self.items])

    def right_of_policy(self, logprobs: Sequence[Sequence[float]]) -> Floats:
        """(N,) whether the likeliest option is the right one, as evaluate reads it."""
        return np.array([
            float(int(np.argmax(values)) == item.answer_index)
            for values, item in zip(logprobs, self.items, strict=True)
        ])  # fmt: skip

    def right_of_reward(self, answers: Sequence[RewardAnswer]) -> Floats | None:
        """(N,) chance that R's highest score is the right option's: among equal scores each is as likely; None: it did
        not answer all of these questions."""
        by_item = {row.item_id: row for row in answers}
        if any(item.item_id not in by_item for item in self.items):
            return None
        shares = []
        for item in self.items:
            scores = by_item[item.item_id].option_scores
            shares.append((scores[item.answer_index] == max(scores)) / scores.count(max(scores)))
        return np.array(shares, dtype=np.float64)


def before_training(validation: Validation, sft: Floats, reward: Floats | None, when: WhenPolicyBeatsReward) -> Release:
    """What GRPO learns from.

    The policy beats R where it is right more often, however small the difference: a judge that is no better than the
    policy has nothing to teach it, so that little is lost where chance decides.

    Args:
        validation: the questions.
        sft: (N,) how right the policy is.
        reward: (N,) how right R is; None: there is no R to learn from, or it was not measured.
        when: what the spec says of a policy that beats R.
    """
    release = Release(len(validation.items), sft=validation.accuracy(sft))
    if reward is None:
        return release
    lead = validation.difference(sft, reward)
    release = replace(release, reward=validation.accuracy(reward), sft_over_reward=lead)
    if lead.value <= _EQUAL or when is WhenPolicyBeatsReward.TRAIN:
        return release
    if when is WhenPolicyBeatsReward.TRUSTED_ONLY:
        return replace(release, trained_on=TrainedOn.TRUSTED_ANSWERS)
    return replace(release, trained_on=TrainedOn.NOTHING, goes_on="sft")


def after_training(release: Release, validation: Validation, sft: Floats, grpo: Floats, wish: PolicyRelease) -> Release:
    """Whether GRPO's checkpoint goes on: with `Best` unless it is worse than the one it started from."""
    gain = validation.difference(grpo, sft)
    worse = wish is PolicyRelease.BEST and gain.value < -_EQUAL
    return replace(release, grpo=validation.accuracy(grpo), grpo_over_sft=gain, goes_on="sft" if worse else "grpo")
