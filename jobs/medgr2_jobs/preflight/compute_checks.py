"""Whether memory suffices for each stage, and about how long a cycle takes: the figures of `medgr2 plan --fit`, against
what is here.

Time on a CPU counts multiplications, at a third of the rate that this computer reaches in a matrix product.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from medgr2_api.fit.assumptions import of_data
from medgr2_api.fit.cycle import fit
from medgr2_api.fit.gpus import ASSUMED, named
from medgr2_api.fit.memory import Need
from medgr2_api.fit.result import Hardware, StageFit
from medgr2_api.fit.setting import Setting
from medgr2_api.fit.stages import stages
from medgr2_api.stages import GENERATE, GRPO, REWARD, SCORE, SFT

from .check_result import CheckResult, PreflightContext, failed, ok, skipped, warning
from .model_shapes import Shapes, data_size, shapes

_GIB = 2**30
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
    kind: str = ""
    """What its GPUs are called."""

    @property
    def name(self) -> str:
        """For messages."""
        if self.gpus:
            return f"{len(self.gpus)} GPU(s) with {min(self.gpus) / _GIB:.0f} GiB each"
        return f"no GPU and {self.memory / _GIB:.0f} GiB of memory"

    @property
    def hardware(self) -> Hardware:
        """For the formulas; a kind that nobody knows computes like the one that is assumed elsewhere."""
        if not self.gpus:
            return Hardware(host_memory=self.memory)
        gpu = named(self.kind) or named(ASSUMED)
        assert gpu is not None
        gpu = replace(gpu, name=self.kind or gpu.name, memory=float(min(self.gpus)))
        return Hardware(gpu, len(self.gpus), float(self.memory))


def this_computer() -> Computer:
    """What is here."""
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.exists() and (text := limit.read_text().strip()).isdecimal():
        memory = min(memory, int(text))
    devices = [torch.cuda.get_device_properties(number) for number in range(count)]
    return Computer(tuple(device.total_memory for device in devices), memory, devices[0].name if devices else "")


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
    found = shapes(context)
    if isinstance(found, str):
        yield skipped("stages", f"memory: {found}")
        return
    here = this_computer()
    spec = context.spec
    for stage in stages(Setting(spec, found.models, data_size(context), here.hardware, of_data(spec))):
        if stage.name != GENERATE.name:
            yield _judge(context, stage, here)


def duration(context: PreflightContext) -> Iterator[CheckResult]:
    """About how long the models compute on this computer, generation apart."""
    found = shapes(context)
    if isinstance(found, str):
        yield skipped("stages", f"time: {found}")
        return
    here = this_computer().hardware
    if here.gpu is not None or any(context.spec.stage(name).gpus(context.spec.budget) for name in _TRAINED):
        yield _gpu_time(context, found, here)
        return
    policy, reward = found.models.policy.parameters, found.models.reward.parameters
    spec, tokens = context.spec, _EXAMPLE_TOKENS
    seeds = data_size(context).seed_questions
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


_TRAINED = (SFT.name, GRPO.name, REWARD.name)


def _gpu_time(context: PreflightContext, found: Shapes, here: Hardware) -> CheckResult:
    result = fit(context.spec, found.models, data_size(context), here, files=found.files)
    kinds = sorted({stage.gpu.name for stage in result.stages if stage.gpu is not None})
    rest = f", without {', '.join(result.untimed)}" if result.untimed else ""
    return ok(
        "stages",
        f"time: of the order of {result.gpu_hours:,.0f} GPU-hours and {_hours(result.seconds)} on the clock on "
        f"{', '.join(kinds)}{rest}; medgr2 plan --fit says it by stage, and what it rests on",
    )


def _judge(context: PreflightContext, stage: StageFit, here: Computer) -> CheckResult:
    where, need = f"stages[{stage.name}]", stage.need
    asked = context.spec.stage(stage.name).gpus(context.spec.budget)
    message = f"memory: about {need.total / _GIB:.1f} GiB ({_parts(need)}; estimated)"
    if asked and stage.gpu is not None:
        message = f"{message}; it asks for {asked:g} GPU(s), {stage.gpu.name}"
    elif not asked and stage.limit and stage.limit == stage.host_limit and stage.limit != here.memory:
        message = f"{message}; resources.limits.memory is {stage.limit / _GIB:.1f} GiB"
    else:
        message = f"{message}; this computer has {here.name}"
    change = f": {'; or '.join(stage.advice)}" if stage.advice else ""
    if stage.problem:
        return failed(where, f"{message}: {stage.problem}{change}")
    if stage.host is not None and 0 < stage.host_limit < stage.host.total:
        needed, there = stage.host.total / _GIB, stage.host_limit / _GIB
        return failed(where, f"{message}; of main memory {needed:.0f} GiB, where {there:.0f} are there{change}")
    if 0 < stage.limit < need.least:
        return failed(where, f"{message}{change}")
    if 0 < stage.limit < need.total:
        return warning(where, f"{message}: it may not suffice{change}")
    return ok(where, message)


def _parts(need: Need) -> str:
    largest = sorted(need.parts, key=lambda part: -part.bytes)[:3]
    return ", ".join(f"{part.name} {part.bytes / _GIB:.1f}" for part in largest)


def _hours(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:,.0f} h"
