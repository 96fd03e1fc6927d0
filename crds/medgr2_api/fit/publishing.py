"""Whether a stage publishes adapters beside the model that prepare has published, or a whole model.

As `medgr2_jobs.policy.model.Start` decides it: adapters on the base go on, also from stage to stage where rank and
alpha are the same; on anything else they are merged, and the model is published whole. A reward model is always whole.
"""

from __future__ import annotations

from medgr2_api.cycle import ResolvedSpec
from medgr2_api.stages import DISTILL, GRPO, SFT
from medgr2_api.training_spec import Adapters, InitFrom, ResolvedLoRA


def adapters_of(spec: ResolvedSpec, name: str) -> bool:
    """Whether the stage publishes adapters, which then are all that a later stage has to load beside the base."""
    sft, grpo = spec.policy.sft.lora, spec.policy.grpo.lora
    if name == DISTILL.name:
        return False
    goes_on = _same(sft, grpo) or not spec.stage(GRPO.name).enabled
    first = isinstance(sft, Adapters) and (spec.policy.init_from is InitFrom.BASE or goes_on)
    if name == SFT.name:
        return first
    return name == GRPO.name and first and _same(sft, grpo)


def _same(one: ResolvedLoRA, other: ResolvedLoRA) -> bool:
    return (
        isinstance(one, Adapters) and isinstance(other, Adapters) and (one.rank, one.alpha) == (other.rank, other.alpha)
    )
