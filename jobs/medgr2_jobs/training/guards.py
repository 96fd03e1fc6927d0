"""What ends a run of GRPO that is ruined: it would go on to its end, cost as much, and publish what nobody can use."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

from ..errors import ConstantReward, KLOutOfBounds, LogprobsDisagree

#: Steps in a row in which all completions got one and the same reward. A policy that is right once in a hundred times
#: fails eight samples of a prompt with 92 %, those of a hundred prompts with 0.02 %.
_CONSTANT_STEPS = 100
#: Nats for each token, as the median of so many steps. Runs that go well stay below 1; single tokens go far beyond.
_MOST_KL, _KL_STEPS = 10.0, 20
#: Nats a token between server and trainer, in each of so many steps. Both in bfloat16 they differ by some hundredths.
_MOST_DIFFERENCE, _DISAGREEING_STEPS = 0.3, 3
#: Where TRL logs that: the mean over the tokens of a step.
_DIFFERENCE = "sampling/sampling_logp_difference/mean"


def constant_reward(history: Sequence[Mapping[str, Any]]) -> None:
    """Without any difference between rewards all advantages are 0.

    Args:
        history: a GRPO trainer's log.

    Raises:
        ConstantReward: it was so for too long, and not because every answer is right.
    """
    steps = _last(history, "reward", _CONSTANT_STEPS)
    if len(steps) < _CONSTANT_STEPS or any(step.get("frac_reward_zero_std", 0.0) < 1 for step in steps):
        return
    rewards = {round(float(step["reward"]), 9) for step in steps}
    if len(rewards) == 1 and not all(step.get("match") == 1 for step in steps):
        raise ConstantReward(
            f"grpo: every completion of the last {_CONSTANT_STEPS} steps got the reward {rewards.pop():g}: there is "
            "nothing to learn from. If it is the least one, the policy writes no answer that can be read: look at "
            "table rollouts, max_completion_length and the policy of stage sft; a reward model that always gives its "
            "least or largest score needs other grades or another training"
        )


def kl_out_of_bounds(history: Sequence[Mapping[str, Any]]) -> None:
    """A policy far from its reference writes what the reward cannot judge.

    Args:
        history: a GRPO trainer's log; it has the KL divergence where klCoefficient is above 0.

    Raises:
        KLOutOfBounds: it is, not for one step only.
    """
    steps = _last(history, "kl", _KL_STEPS)
    if len(steps) < _KL_STEPS or float(steps[0]["kl"]) <= _MOST_KL:
        return
    kl = statistics.median(float(step["kl"]) for step in steps)
    if kl > _MOST_KL:
        raise KLOutOfBounds(
            f"grpo: the KL divergence from the reference policy is {kl:.1f} nats a token over the last {_KL_STEPS} "
            f"steps (more than {_MOST_KL:g}): the policy has run away. Lower policy.grpo.learningRate or raise "
            "klCoefficient"
        )


def logprobs_disagree(history: Sequence[Mapping[str, Any]]) -> None:
    """A server that samples from other weights, or by other numbers, than those that learn.

    Args:
        history: a GRPO trainer's log; it has the difference where a vLLM samples.

    Raises:
        LogprobsDisagree: it is too large, not for one step only.
    """
    steps = _last(history, _DIFFERENCE, _DISAGREEING_STEPS)
    if len(steps) < _DISAGREEING_STEPS:
        return
    least = min(float(step[_DIFFERENCE]) for step in steps)
    if not least <= _MOST_DIFFERENCE:  # no number counts as large
        raise LogprobsDisagree(
            f"grpo: the vLLM that samples and the model that learns differ by {least:.2f} nats a token or more in each "
            f"of the last {_DISAGREEING_STEPS} steps (more than {_MOST_DIFFERENCE:g}): it serves another model, other "
            "weights or another precision than are trained. Look at its --dtype, --quantization and --logprobs-mode "
            "(processed_logprobs), and at what policy.engine names"
        )


def _last(history: Sequence[Mapping[str, Any]], name: str, count: int) -> list[Mapping[str, Any]]:
    """The last entries that have a figure, the newest first."""
    return list(islice((entry for entry in reversed(history) if name in entry), count))
