"""How many prompts one step of GRPO takes, and what TRL's three options about batches have to be for that."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .policy import ResolvedGRPO

#: TRL's: rows of one forward pass in each process, such passes of an optimizer step, passes that one sampling is for.
ROWS, ACCUMULATION, AT_ONCE = "per_device_train_batch_size", "gradient_accumulation_steps", "steps_per_generation"
_SAMPLED = "generation_batch_size"


class UnevenBatches(ValueError):
    """The numbers do not divide; the message says which, and what would."""


@dataclass(frozen=True)
class GRPOBatches:
    """Sizes in one process of a training."""

    rows: int
    """Completions of one forward pass."""
    accumulation: int | None = None
    """Forward passes of an optimizer step; None: as TRL and the user's options say."""
    at_once: int | None = None
    """Forward passes whose completions are sampled together: always whole groups; None: as with `accumulation`."""

    @classmethod
    def of(cls, grpo: ResolvedGRPO, processes: int, *, served: bool = False) -> GRPOBatches:
        """From the spec.

        Args:
            grpo: its `promptsPerStep`, group size and the user's options.
            processes: of the whole training.
            served: a vLLM samples: it is asked for all completions of a step at once. The model in the stage's own
                process samples as few as make whole groups, for their keys and values lie beside what is trained.

        Raises:
            UnevenBatches: a process would get a part of a prompt, or a forward pass would be torn.
        """
        group, prompts, options = grpo.num_generations, grpo.prompts_per_step, grpo.trainer
        if not prompts:
            return cls(group)
        if prompts % processes:
            raise UnevenBatches(
                f"promptsPerStep ({prompts}) is no multiple of the {processes} processes that train; take "
                f"{math.ceil(prompts / processes) * processes}"
            )
        samples = prompts // processes * group
        rows, accumulation = _whole(options, ROWS), _whole(options, ACCUMULATION)
        if rows is None:
            rows = group if accumulation is None else max(1, samples // accumulation)
        passes = samples // rows if accumulation is None else accumulation
        if rows * passes != samples:
            raise UnevenBatches(_uneven(prompts, processes, samples, rows, accumulation))
        if _SAMPLED in options or AT_ONCE in options:
            return cls(rows, passes)
        return cls(rows, passes, passes if served else math.lcm(rows, group) // rows)

    def options(self) -> dict[str, int]:
        """For `trl.GRPOConfig`."""
        values = {ROWS: self.rows, ACCUMULATION: self.accumulation, AT_ONCE: self.at_once}
        return {name: value for name, value in values.items() if value is not None}


def _whole(options: Mapping[str, Any], name: str) -> int | None:
    """What the user wrote, if it is a number of anything; what else it may be, TRL says."""
    value = options.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def _uneven(prompts: int, processes: int, samples: int, rows: int, accumulation: int | None) -> str:
    what = f"promptsPerStep ({prompts}) asks for {samples} completions of each of {processes} processes a step"
    if accumulation is None:
        return f"{what}, which trainer.{ROWS} ({rows}) does not divide; take a divisor of {samples}"
    return (
        f"{what}, and trainer says {rows} ({ROWS}) times {accumulation} ({ACCUMULATION}); leave {ACCUMULATION} out, or "
        "set promptsPerStep to what you want"
    )
