"""What one iteration at the paper's size costs on a node of eight H100: as the stages are, and with vLLM sampling.

    make bench NAME=forecast        # arithmetic, at once

50,000 candidates, a 7B policy and a 3B reward model with adapters of rank 64, groups of 8, pictures of 512 tokens,
questions of 140 and answers of 200, 50,000 questions of validation and benchmarks under four conditions and for two
checkpoints. The formulas are those of `medgr2 plan --fit` (docs/fit.md); each number they rest on is printed with where
it is from: measured here, published by somebody, or assumed. No GPU was at hand: nothing of it was timed as a whole.

Busy GPU-hours count what computes. On the clock, every stage has the node's eight GPUs, one stage after another; the
provider's answers are waited for meanwhile. In GRPO vLLM has GPUs of its own that stand idle while the policy learns,
and the policy's do while vLLM samples: the eight are shared out as it ends soonest (policy.engine.vllm.rolloutGPUs).
Two things are printed beside it that are not built: both taking turns on all eight, and GRPO's two passes before it
learns reading what a group shares once, as R does.
"""

from __future__ import annotations

import json
import os
from dataclasses import replace
from typing import Any

from medgr2_api.cycle import CycleSpec
from medgr2_api.fit import work
from medgr2_api.fit.assumptions import Assumptions
from medgr2_api.fit.counts import DataSize
from medgr2_api.fit.gpus import named
from medgr2_api.fit.known_models import known
from medgr2_api.fit.readers import scoring_seconds
from medgr2_api.fit.result import Hardware, ModelShapes
from medgr2_api.fit.setting import Setting
from medgr2_api.fit.stages import stages
from medgr2_api.fit.trainings import rollout_seconds
from medgr2_api.presets import resolve

GPUS = 8
GOAL_GPU_HOURS, GOAL_HOURS = 30.0, 5.0
#: What a cycle can ask for to need less.
LEVERS: dict[str, dict[str, Any]] = {
    "klCoefficient 0": {"policy__grpo__klCoefficient": 0.0},
    "10,000 questions to evaluate": {"questions": 10_000},
    "one control": {"evaluation": {"controls": ["BlankImage"]}},
    "groups of 4": {"policy__grpo__numGenerations": 4},
    "klCoefficient 0 and 10,000 questions": {"policy__grpo__klCoefficient": 0.0, "questions": 10_000},
}
#: Whose policy a vLLM over all GPUs answers for.
SERVED = ("relabel", "evaluate", "evaluategrpo")
#: What the arm with a server takes for granted.
SHARED_OUT = "GRPO's GPUs are shared out so that sampling and training end soonest (policy.engine.vllm.rolloutGPUs)"


def setting(*, server: bool, questions: int = 50_000, **changes: Any) -> Setting:
    """The paper's iteration, with every stage of it divided over the node.

    Args:
        server: whether vLLM samples.
        questions: of validation and benchmarks.
        changes: parts of the spec that are otherwise.
    """
    asked = {"resources": {"limits": {"nvidia.com/gpu": GPUS}}}
    one = {"resources": {"limits": {"nvidia.com/gpu": 1}}}
    trained = [{"name": name, **asked, "numProcPerNode": GPUS} for name in ("sft", "grpo", "reward")]
    asks = asked if server else one
    read = [{"name": "score", **one, "shards": GPUS}, {"name": "relabel", **asks}, {"name": "evaluate", **asks}]
    adapters: dict[str, Any] = {"lora": {"rank": 64}, "trainer": {"activation_checkpointing": False}}
    spec: dict[str, Any] = {
        "iterations": 1,
        "workspace": {"persistentVolumeClaim": {"claimName": "data"}},
        "data": {
            "sources": [{"name": "seed", "format": "OmniMedVQA", "uri": "data/seed"}],
            "benchmarks": [{"name": "test", "format": "OmniMedVQA", "uri": "data/test"}],
        },
        "generator": {"openAI": {"model": "m", "baseURL": "http://localhost:8000/v1"}, "candidates": 50_000},
        "rewardModel": {"baseModel": "Qwen/Qwen2.5-VL-3B-Instruct"},
        "policy": {"baseModel": "Qwen/Qwen2.5-VL-7B-Instruct", "sft": adapters, "grpo": {**adapters}},
        "stages": [*trained, *read],
    }
    for path, value in changes.items():
        *parents, leaf = path.split("__")
        target = spec
        for parent in parents:
            target = target.setdefault(parent, {})
        target[leaf] = value
    policy, reward = known("Qwen2.5-VL-7B-Instruct"), known("Qwen2.5-VL-3B-Instruct")
    assert policy is not None
    assert reward is not None
    return Setting(
        resolve(CycleSpec.model_validate(spec)),
        ModelShapes(policy, reward),
        DataSize(seed_questions=5_000, images=20_000, benchmark_questions=questions - 500),
        Hardware(named("H100")),
        Assumptions(),
        server=server,
    )


def arm(known_setting: Setting) -> dict[str, float]:
    """Busy GPU-hours of each stage."""
    found = {}
    for stage in stages(known_setting):
        if stage.gpu is not None:
            divided = stage.processes > 1 or (known_setting.server and stage.name in SERVED)
            busy = stage.gpus if divided else known_setting.spec.stage(stage.name).shards
            found[stage.name] = stage.seconds * busy / 3600
    return found


def passes(case: Setting, hours: float) -> dict[str, float]:
    """What GRPO's busy GPU-hours with a vLLM go into, in hours."""
    gpu, prompts = case.hardware.gpu, case.counts.prompts
    assert gpu is not None
    sampling = rollout_seconds(case, gpu, prompts) / 3600
    judging = scoring_seconds(case, gpu, prompts, case.spec.policy.grpo.num_generations) / 3600
    reference = hours - arm(setting(server=True, policy__grpo__klCoefficient=0.0))["grpo"]
    found = {"sampling": sampling, "R": judging, "the reference's pass": reference}
    found["the policy's own pass before it learns"] = reference  # the same pass, with the adapters that learn
    return {**found, "learning": hours - sum(found.values())}


def shared_pass(case: Setting) -> float:
    """Hours of one pass over all completions that would read picture and question once a group."""
    gpu, model, prompt = case.hardware.gpu, case.models.policy, case.prompt(case.models.policy)
    assert gpu is not None
    answers = work.text_flops(model, case.answer(), after=prompt, logits=case.answer())
    flops = work.text_flops(model, prompt) + work.vision_flops(model, case.image_tokens(model))
    flops += case.spec.policy.grpo.num_generations * answers
    return case.counts.prompts * work.reading_seconds(flops, gpu, case.known) / 3600


def grpo_clock(sampling: float, learning: float) -> tuple[float, int]:
    """Hours of GRPO where vLLM has some of the node's GPUs and the policy the others, and how many vLLM has then."""
    if not sampling:
        return learning / GPUS, 0
    return min((sampling / served + learning / (GPUS - served), served) for served in range(1, GPUS))


def clock(hours: dict[str, float], sampling: float, *, spread: tuple[str, ...]) -> float:
    """Hours on the clock: stages in `spread` over the node, the others on one GPU; sampling on GPUs beside GRPO's."""
    alone = sum(busy for name, busy in hours.items() if name not in (*spread, "grpo"))
    divided = sum(busy for name, busy in hours.items() if name in spread)
    return alone + divided / GPUS + grpo_clock(sampling, hours["grpo"] - sampling)[0]


def main() -> None:
    figures: dict[str, float] = {}
    trained = ("score", "sft", "reward")
    for name, server, spread in (
        ("transformers", False, trained),
        ("vLLM", True, (*trained, *SERVED)),
    ):
        case = setting(server=server)
        hours, gpu = arm(case), named("H100")
        assert gpu is not None
        sampling = rollout_seconds(case, gpu, case.counts.prompts) / 3600 if server else 0.0
        print(f"\n{name}: busy GPU-hours of one iteration on {GPUS} × H100 80GB")
        for stage, busy in hours.items():
            print(f"  {stage:<10} {busy:8.1f}" + (f"  of them {sampling:.1f} sampling" * (stage == "grpo" and server)))
        total, wall = sum(hours.values()), clock(hours, sampling, spread=spread)
        print(
            f"  {'in all':<10} {total:8.1f}, {wall:.1f} h on the clock, {wall * GPUS:.0f} GPU-hours if the node is held"
        )
        figures |= {f"{name}, busy GPU-hours": round(total, 1), f"{name}, hours": round(wall, 1)}
        if server:
            parts = passes(case, hours["grpo"])
            print("  grpo is " + ", ".join(f"{part:.1f} {what}" for what, part in parts.items()))
            took, served = grpo_clock(sampling, hours["grpo"] - sampling)
            turns = wall - took + hours["grpo"] / GPUS
            once = total - 2 * (parts["the reference's pass"] - shared_pass(case))
            print(
                f"  of {wall:.1f} h on the clock GRPO is {took:.1f}, with {served} GPUs for vLLM and {GPUS - served} "
                f"that learn\n  not built: both take turns on all {GPUS}, {turns:.1f} h; the two passes read what a "
                f"group shares once, {once:.1f} GPU-hours"
            )
            figures |= {f"vLLM, GRPO, {what}, busy GPU-hours": round(part, 1) for what, part in parts.items()}
            figures["vLLM, hours if sampling and learning took turns on all GPUs"] = round(turns, 1)
            figures["vLLM, busy GPU-hours if a group's prompt were read once"] = round(once, 1)
    met = figures["vLLM, busy GPU-hours"] <= GOAL_GPU_HOURS and figures["vLLM, hours"] <= GOAL_HOURS
    for what, changes in LEVERS.items():
        total = sum(arm(setting(server=True, **changes)).values())
        print(f"  with {what}: {total:.1f} busy GPU-hours")
        figures[f"vLLM, {what}, busy GPU-hours"] = round(total, 1)
    print(
        f"\ngoal: {GOAL_GPU_HOURS:g} GPU-hours and {GOAL_HOURS:g} h: {'' if met else 'not '}reached with vLLM, "
        f"by these numbers\n{SHARED_OUT}\n\nby what, in the arm with vLLM"
    )
    for name in ("training_use", "reading_use", "server_tokens", "answer_tokens"):
        one = getattr(Assumptions(), name)
        worse = replace(
            Assumptions(), **{name: replace(one, value=one.value * (2 if name == "answer_tokens" else 0.5))}
        )
        total = sum(arm(replace(setting(server=True), known=worse)).values())
        print(f"  {one.what}: {one.value:g} ({one.basis}{f', {one.source}' if one.source else ''}); "
              f"twice as bad: {total:.1f} GPU-hours")  # fmt: skip
        figures[f"busy GPU-hours, {name} twice as bad"] = round(total, 1)
    print("\nand the others")
    for one in Assumptions().all():
        print(f"  {one.value:g} {one.what} ({one.basis}{f', {one.source}' if one.source else ''})")
    print(json.dumps({"name": "forecast", "figures": figures, "n": 1, "cores": os.cpu_count()}))


if __name__ == "__main__":
    main()
