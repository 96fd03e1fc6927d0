"""What GRPO's sampling cannot do: prompts that cannot be shared out, and what a vLLM cannot sample for."""

from __future__ import annotations

from collections.abc import Iterator

from .accelerators import whole_gpus
from .cycle import ResolvedSpec
from .grpo_batches import GRPOBatches, UnevenBatches
from .rollout_gpus import share
from .scheduling import DeepSpeed
from .stages import GRPO
from .validation_errors import Problem

#: Options of sampling that change by which probabilities completions are drawn, beyond temperature and top-p.
_SAMPLING = ("top_k", "min_p", "repetition_penalty", "generation_kwargs")
_IN_PROCESS = "or have the policy sample in its own process (policy.engine.vllm.rolloutGPUs: 0)"


def problems(spec: ResolvedSpec) -> Iterator[Problem]:
    """All that is wrong with it in a spec."""
    yield from _uneven_batches(spec)
    yield from _sampling(spec)


def _uneven_batches(spec: ResolvedSpec) -> Iterator[Problem]:
    """Why GRPO's prompts cannot be shared out among its processes."""
    try:
        GRPOBatches.of(spec.policy.grpo, spec.stage(GRPO.name).num_nodes * share(spec, GRPO.name).processes)
    except UnevenBatches as error:
        yield Problem("spec.policy.grpo.promptsPerStep", str(error))


def _sampling(spec: ResolvedSpec) -> Iterator[Problem]:
    """Why a vLLM cannot sample for GRPO as the spec says."""
    grpo, sft, stage, engine = spec.policy.grpo, spec.policy.sft, spec.stage(GRPO.name), spec.policy.engine
    path, options = "spec.policy.grpo", grpo.trainer
    shared = share(spec, GRPO.name)
    if engine.vllm is not None:
        gpus = whole_gpus(stage.resources, spec.budget.gpus_per)
        held = (engine.vllm.rollout_gpus or 0) + (stage.num_proc_per_node or 1)
        if gpus and engine.vllm.rollout_gpus and held > gpus:
            yield Problem(
                "spec.policy.engine.vllm.rolloutGPUs",
                f"stage grpo has {gpus} GPUs, and its vLLM and its training would need {held}: lower it, or use more",
            )
    if not stage.enabled or not (shared.served or engine.server is not None):
        if grpo.resample_groups:
            yield Problem(
                f"{path}.resampleGroups",
                "groups are sampled anew where a vLLM samples only: use policy.engine, or 0",
            )
        return
    if shared.served and stage.num_nodes > 1:
        yield Problem(
            "spec.policy.engine.vllm",
            f"a vLLM beside stage grpo samples for one node: use policy.engine.server, set numNodes 1, {_IN_PROCESS}",
        )
    if shared.served and stage.resources.get("claims"):
        yield Problem(
            "spec.policy.engine.vllm",
            f"claims to devices cannot be shared out between training and vLLM: ask for limits instead, {_IN_PROCESS}",
        )
    if stage.deepspeed is DeepSpeed.ZERO3:
        yield Problem(
            "spec.stages", f"grpo: Zero3 divides the adapters, and a vLLM needs them whole: use Zero2, {_IN_PROCESS}"
        )
    if grpo.lora.rank == 0 and shared.served:
        yield Problem(f"{path}.lora", f"a vLLM that samples is given adapters: set a rank above 0, {_IN_PROCESS}")
    elif grpo.lora.rank and sft.lora.rank and (grpo.lora.rank, grpo.lora.alpha) != (sft.lora.rank, sft.lora.alpha):
        yield Problem(
            f"{path}.lora",
            "a vLLM that samples serves the model under the adapters, which therefore go on from those of policy.sft: "
            f"give both the same rank and alpha, {_IN_PROCESS}",
        )
    for name in _SAMPLING:
        if name in options:
            yield Problem(
                f"{path}.trainer.{name}", f"a vLLM samples by temperature and top_p alone: leave it out, {_IN_PROCESS}"
            )
    mode = options.get("vllm_importance_sampling_mode", "sequence_mask")
    if options.get("loss_type") == "vespo" and not str(mode).startswith("token"):
        yield Problem(
            f"{path}.trainer.loss_type",
            "vespo needs vllm_importance_sampling_mode: use token_truncate or token_mask",
        )
