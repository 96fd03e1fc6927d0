"""Whether memory suffices for the models, and about how long they compute: rough, from parameters times bytes.

Memory counts what must be there: weights, gradients, the optimizer's state. Activations come on top, and depend on
images, batch and attention: a quarter of the weights is taken for them. Time counts multiplications, at a third of the
rate that this computer reaches in a matrix product. Both say whether a cycle is out of the question, not more.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from medgr2_api.kubernetes_fragments import quantity
from medgr2_api.policy import RewardTermType
from medgr2_api.scheduling import DeepSpeed, StageSettings
from medgr2_api.stages import GRPO, PREFERENCES, RELABEL, REWARD, SCORE, SFT
from medgr2_api.training_spec import Adapters, ResolvedLoRA

from ..fetch import BUILTIN
from .check_result import CheckResult, PreflightContext, failed, ok, skipped, warning

_GIB = 2**30
#: Bytes of a parameter: trained in float32; read in bfloat16 on a GPU (`models/vlm.py`).
_TRAINED, _READ_ON_GPU, _READ_ON_CPU = 4, 2, 4
#: Gradient and Adam's two moments, in float32.
_LEARNING = 12
_ADAPTER = 0.05
_ACTIVATIONS = 0.25
#: Tokens of an example: image, question, options, rationale and answer.
_EXAMPLE_TOKENS = 1024
#: Multiplications of a parameter and a token: forward 2, backward 4.
_FORWARD, _TRAINING = 2, 6
_UTILISATION = 1 / 3
_PRODUCT = 1024


@dataclass(frozen=True)
class Computer:
    """What computes here."""

    gpus: tuple[int, ...]
    """Memory of each, in bytes."""
    memory: int
    """Main memory, in bytes; of a container its limit."""

    @property
    def name(self) -> str:
        """For messages."""
        if self.gpus:
            return f"{len(self.gpus)} GPU(s) with {min(self.gpus) / _GIB:.0f} GiB each"
        return f"no GPU and {self.memory / _GIB:.0f} GiB of memory"


def this_computer() -> Computer:
    """What is here."""
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.exists() and (text := limit.read_text().strip()).isdecimal():
        memory = min(memory, int(text))
    return Computer(tuple(torch.cuda.get_device_properties(number).total_memory for number in range(count)), memory)


def products_per_second() -> float:
    """Multiplications with an addition a second in a matrix product: on the GPU in bfloat16, else in float32."""
    import torch

    gpu = torch.cuda.is_available()
    side = 8 * _PRODUCT if gpu else _PRODUCT
    matrix = torch.rand(side, side, device="cuda" if gpu else "cpu", dtype=torch.bfloat16 if gpu else torch.float32)
    rates = []
    for _ in range(3):
        started = time.perf_counter()
        float((matrix @ matrix)[0, 0])  # waits for the GPU
        rates.append(side**3 / (time.perf_counter() - started))
    return max(rates)


def memory(context: PreflightContext) -> Iterator[CheckResult]:
    """What each stage that holds a model needs, against what its `resources` ask for, or what is here."""
    counts = {which: parameters(context, which) for which in ("policy", "reward")}
    needs = _needs(context)
    if not needs:
        return
    unknown = sorted({which for need in needs for which in need.models if counts[which] is None})
    if unknown:
        yield skipped("stages", f"memory: the size of the {' and the '.join(unknown)} model is not known yet")
        return
    here = this_computer()
    for need in needs:
        yield _judge(context, need, here, {which: count or 0.0 for which, count in counts.items()})


def duration(context: PreflightContext) -> Iterator[CheckResult]:
    """About how long the models compute on this computer, generation apart."""
    policy, reward = parameters(context, "policy"), parameters(context, "reward")
    asked = [name for name in (SFT.name, GRPO.name, REWARD.name) if context.spec.stage(name).gpus(context.spec.budget)]
    if policy is None or reward is None:
        yield skipped("stages", "time: the models' sizes are not known yet")
        return
    if asked:
        yield skipped("stages", f"time: {', '.join(asked)} ask for a cluster's GPUs, whose speed is not known here")
        return
    spec, tokens = context.spec, _EXAMPLE_TOKENS
    seeds = sum(survey.questions for survey in context.surveys if survey.where.startswith("data.sources"))
    seeds += sum(
        source.phantom.images * source.phantom.questions_per_image for source in spec.data.sources if source.phantom
    )
    rows = seeds + context.parameters.candidates * spec.iterations / 2  # on average over the iterations
    work = {
        SFT.name: _TRAINING * policy * tokens * rows * spec.policy.sft.num_epochs,
        GRPO.name: (_TRAINING + _FORWARD) * policy * tokens * rows * spec.policy.grpo.num_generations
        * spec.policy.grpo.num_epochs,
        SCORE.name: _FORWARD * reward * tokens * context.parameters.candidates,
    }  # fmt: skip
    on = {name: each * spec.iterations for name, each in work.items() if spec.stage(name).enabled}
    if spec.stage(REWARD.name).enabled:
        on[REWARD.name] = _TRAINING * reward * tokens * seeds * 6 * spec.reward_model.training.num_epochs
    rate = 2 * products_per_second() * _UTILISATION
    parts = ", ".join(f"{name} {_hours(flops / rate)}" for name, flops in on.items())
    yield ok(
        "stages",
        f"time: of the order of {_hours(sum(on.values()) / rate)} of computing here ({parts}); from parameters, "
        f"{seeds:,} seed questions and {context.parameters.candidates:,} candidates, without generation; may be three "
        "times less or more, and shorter where a trainer has max_steps",
    )


@dataclass(frozen=True)
class _Need:
    stage: str
    models: tuple[str, ...]
    """Those that it holds: policy, reward."""
    trained: str = ""
    """The one that it trains."""
    lora: ResolvedLoRA | None = None
    copies: int = 0
    """Further copies of the trained one: GRPO's reference."""


def _needs(context: PreflightContext) -> list[_Need]:
    spec = context.spec
    judged = any(term.type is RewardTermType.REWARD_MODEL for term in spec.policy.grpo.rewards)
    reference = spec.policy.grpo.kl_coefficient > 0 and not isinstance(spec.policy.grpo.lora, Adapters)
    both = ("policy", "reward") if judged else ("policy",)
    needs = [
        _Need(SFT.name, ("policy",), "policy", spec.policy.sft.lora),
        _Need(GRPO.name, both, "policy", spec.policy.grpo.lora, int(reference)),
        _Need(REWARD.name, ("reward",), "reward", spec.reward_model.training.lora),
        _Need(SCORE.name, ("reward",)),
        _Need(PREFERENCES.name, ("policy",)),
        *([_Need(RELABEL.name, ("policy", "reward"))] if spec.curation.correct else []),
    ]
    return [need for need in needs if spec.stage(need.stage).enabled]


def _judge(context: PreflightContext, need: _Need, here: Computer, counts: dict[str, float]) -> CheckResult:
    settings = context.spec.stage(need.stage)
    where, gpus = f"stages[{need.stage}]", settings.gpus(context.spec.budget)
    on_gpu = bool(gpus or here.gpus)
    least, likely = _bytes(need, counts, settings, on_gpu=on_gpu)
    message = f"memory: about {likely / _GIB:.1f} GiB, {least / _GIB:.1f} of them without activations (estimated)"
    if gpus:
        return ok(where, f"{message}; it asks for {gpus:g} GPU(s): each has to have that")
    limit = quantity((settings.resources.get("limits") or {}).get("memory", ""))
    there = float(limit) if limit is not None else float(min(here.gpus) if here.gpus else here.memory)
    what = (
        f"resources.limits.memory is {there / _GIB:.1f} GiB" if limit is not None else f"this computer has {here.name}"
    )
    if least > there:
        return failed(where, f"{message}; {what}: take a smaller model, adapters (lora), or resources with GPUs")
    if likely > there:
        return warning(where, f"{message}; {what}: it may not suffice")
    return ok(where, f"{message}; {what}")


def _bytes(need: _Need, counts: dict[str, float], settings: StageSettings, *, on_gpu: bool) -> tuple[float, float]:
    """What one process needs: at least, and probably."""
    read = _READ_ON_GPU if on_gpu else _READ_ON_CPU
    weights = sum(counts[which] * read for which in need.models if which != need.trained)
    learning = 0.0
    if need.trained:
        processes = settings.num_nodes * settings.num_proc_per_node
        share = processes if settings.deepspeed else 1
        trained = _ADAPTER if isinstance(need.lora, Adapters) else 1.0
        weights += (
            counts[need.trained]
            * _TRAINED
            * (1 + need.copies)
            / (share if settings.deepspeed is DeepSpeed.ZERO3 else 1)
        )
        learning = counts[need.trained] * trained * _LEARNING / share
    return weights + learning, weights * (1 + _ACTIVATIONS) + learning


def parameters(context: PreflightContext, which: str) -> float | None:
    """Parameters of the policy or of R, from the weights' files; None: they are not on the volume yet."""
    name = context.spec.policy.base_model if which == "policy" else context.spec.reward_model.base_model
    if name.startswith(BUILTIN):
        return 2e5
    from safetensors import SafetensorError, safe_open

    total = 0.0
    for path in (context.root / name).glob("*.safetensors"):
        try:
            with safe_open(path, framework="numpy") as file:
                total += sum(math.prod(file.get_slice(key).get_shape()) for key in file.keys())  # noqa: SIM118
        except (SafetensorError, OSError):
            return None
    return total or None


def _hours(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:,.0f} h"
