"""Which checkpoint of each iteration went on, and why: what stage grpo decided."""

from __future__ import annotations

from dataclasses import dataclass

from ..evaluate.release import PairedDifference, Release
from .compare import label
from .cycle_frame import CycleFrame


@dataclass(frozen=True, slots=True)
class ReleaseRow:
    """What stage grpo decided in an iteration; accuracies are macro, on the validation questions, and None where they
    decided nothing."""

    iteration: int
    goes_on: str
    """Such as `sft@2`: what the stages behind it read."""
    trained_on: str
    why: str
    questions: int
    sft: float | None
    reward_model: float | None
    """R as an answerer: of the option whose text it scores highest."""
    sft_over_reward_model: float | None
    sft_over_reward_model_low: float | None
    sft_over_reward_model_high: float | None
    grpo: float | None
    grpo_over_sft: float | None
    grpo_over_sft_low: float | None
    grpo_over_sft_high: float | None

    @property
    def judge(self) -> PairedDifference | None:
        """By how much the policy beat R before its training; None: they were not compared."""
        return _difference(self.sft_over_reward_model, self.sft_over_reward_model_low, self.sft_over_reward_model_high)

    @property
    def gain(self) -> PairedDifference | None:
        """What the training made of the policy; None: not compared."""
        return _difference(self.grpo_over_sft, self.grpo_over_sft_low, self.grpo_over_sft_high)


def rows(frame: CycleFrame) -> list[ReleaseRow]:
    """A row per iteration of which stage grpo has decided."""
    return [row for t in frame.iterations("grpo") if (row := _row(frame, t)) is not None]


def _row(frame: CycleFrame, iteration: int) -> ReleaseRow | None:
    """None: an earlier version made it, which decided nothing."""
    reader = frame.artifact("grpo", iteration)
    if not reader.has("release.json"):
        return None
    found = Release.from_json(reader.file("release.json").read_text())
    return ReleaseRow(
        iteration,
        label(found.goes_on, iteration),
        str(found.trained_on),
        found.message,
        found.questions,
        found.sft,
        found.reward,
        *_bounds(found.sft_over_reward),
        found.grpo,
        *_bounds(found.grpo_over_sft),
    )


def _bounds(difference: PairedDifference | None) -> tuple[float | None, float | None, float | None]:
    return (difference.value, difference.low, difference.high) if difference else (None, None, None)


def _difference(value: float | None, low: float | None, high: float | None) -> PairedDifference | None:
    return None if value is None or low is None or high is None else PairedDifference(value, low, high)
