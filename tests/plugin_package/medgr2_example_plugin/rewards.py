"""A term of GRPO's reward: answers that come to the point."""

from __future__ import annotations

from collections.abc import Sequence

from medgr2_jobs.policy.reward_terms import Completion


def brevity(completions: Sequence[Completion], *, characters: int = 400) -> list[float]:
    """1 for no text at all, falling to 0 at `characters`."""
    return [max(0.0, 1.0 - len(completion.text) / characters) for completion in completions]
