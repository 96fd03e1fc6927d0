"""What the contract describes but this version cannot do yet, and which trainer options belong to the contract.

`medgr2 validate`, `medgr2 run` and the operator refuse these before anything runs.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

from . import rollout_rules, trainer_options
from .accelerators import unknown_devices
from .cycle import CycleSpec, ResolvedSpec
from .fit.publishing import adapters_of
from .generator import GENERATORS, KNOWN_QUESTION_TYPES
from .presets import resolve
from .rollout_gpus import share
from .scheduling import DeepSpeed
from .server_address import is_external, is_overheard
from .stages import GENERATE, GRPO, REWARD, SFT, definition, listed, stage_parameters
from .stages.generate import GenerateParameters
from .trainer_options import TRAINERS
from .training_spec import Attention, Precision, ResolvedLoRA
from .validation_errors import EXPLAINED, Problem

TINY_MODEL = "builtin://tiny-qwen2.5-vl"


@dataclass(frozen=True)
class Gap:
    """Something the API can say and this version cannot do."""

    path: str
    """Where in the spec; `[]` stands for every item of a list."""
    missing: Callable[[Any], bool]
    """Whether this value (its JSON form) asks for what is missing."""
    message: str
    """What is missing and what to use instead; `{value}` is what the user wrote."""
    local: bool = False
    """Missing only in `medgr2 run`."""


def _unknown_builtin(name: str) -> bool:
    return name.startswith("builtin://") and name.partition("?")[0] != TINY_MODEL


_BUILTIN = f"there is no built-in model {{value!r}}: use {TINY_MODEL}, a folder of the workspace, or an id of the hub"

_DISTRIBUTED, _SHARDED = listed(lambda stage: stage.distributed), listed(lambda stage: stage.sharded)

GAPS: tuple[Gap, ...] = (
    *(
        Gap(f"generator.{name}", lambda v: True, kind.cluster_only, local=True)
        for name, kind in GENERATORS.items()
        if kind.cluster_only
    ),
    Gap("policy.baseModel", _unknown_builtin, _BUILTIN),
    Gap("rewardModel.baseModel", _unknown_builtin, _BUILTIN),
    Gap("generator.distillation.baseModel", _unknown_builtin, _BUILTIN),
    Gap(
        "rewardModel.checkpoint",
        lambda v: v.startswith("builtin://"),
        "a checkpoint is no built-in model: leave it out",
    ),
    Gap(
        "stages[]",
        lambda v: (
            not definition(v["name"]).distributed
            and (v["numNodes"] * v.get("numProcPerNode", 1) > 1 or v.get("deepspeed"))
        ),
        f"only {_DISTRIBUTED} run in several processes: set 1 for numNodes and numProcPerNode, without deepspeed"
        f" ({_SHARDED} have shards)",
    ),
    Gap(
        "stages[]",
        lambda v: v["shards"] > 1 and not definition(v["name"]).sharded,
        f"only {_SHARDED} have shards: set 1",
    ),
    Gap(
        "stages[]",
        lambda v: v["name"] == REWARD.name and v.get("deepspeed") == DeepSpeed.ZERO3,
        "the reward model cannot be shared out by Zero3: use Zero2",
    ),
    Gap(
        "stages[].numNodes",
        lambda v: v > 1,
        "training over several nodes needs Kubernetes: `medgr2 run` has one computer; set 1",
        local=True,
    ),
)

_NOTHING_MAY_LEAVE = (
    "the generator is external, and no image may leave the site (data egress): set allowExternal: true for a source"
    " that may (DICOM and ImageFolder may not unless you say so), or use a server of your own"
    " (vllm, or openAI with external: false)"
)

_FOLDERS = "the stage decides where it writes"
_CHECKPOINTS = "the stage writes checkpoints so that it can go on from any interruption"
_LOGS = "progress and metrics go to the status and to /metrics; spec.tracking says who else follows a training"
_HUB = "a stage publishes to the workspace only"
_MEASURING = "the stage evaluate measures checkpoints"
_WHOLE = "examples are never cut: a cut loses image tokens or the answer"
_BATCHES = "the stage builds its own batches of images and text"

#: What TRL would tell a vLLM of its own. Its importance sampling is not among these: it corrects for ours, too.
_VLLM_OF_TRL = (
    "vllm_mode",
    "vllm_model_impl",
    "vllm_enable_sleep_mode",
    "vllm_structured_outputs_regex",
    "vllm_server_base_url",
    "vllm_server_host",
    "vllm_server_port",
    "vllm_server_timeout",
    "vllm_group_port",
    "vllm_gpu_memory_utilization",
    "vllm_max_model_length",
    "vllm_tensor_parallel_size",
)

#: Trainer options that the contract owns → why, or which field of the spec to use.
OWNED_TRAINER_OPTIONS: dict[str, str] = {
    "learning_rate": "use 'learningRate' beside 'trainer'",
    "num_train_epochs": "use 'numEpochs' beside 'trainer'",
    "num_generations": "use spec.policy.grpo.numGenerations",
    "use_vllm": "vLLM lives in an environment of its own, whose torch and transformers are not TRL's: use"
    " spec.policy.engine",
    **dict.fromkeys(_VLLM_OF_TRL, "TRL starts no vLLM here: spec.policy.engine says what answers"),
    "beta": "use spec.policy.grpo.klCoefficient",
    "reward_weights": "use spec.policy.grpo.rewards",
    "seed": "use spec.seed",
    "data_seed": "use spec.seed",
    "deepspeed": "use 'deepspeed' of the stage in spec.stages",
    "fsdp": "use 'deepspeed' of the stage in spec.stages",
    "fsdp_config": "use 'deepspeed' of the stage in spec.stages",
    "local_rank": "use 'numNodes' and 'numProcPerNode' of the stage in spec.stages",
    "use_cpu": "a stage uses the GPUs that its resources give it",
    "output_dir": _FOLDERS,
    "overwrite_output_dir": _FOLDERS,
    "logging_dir": _FOLDERS,
    "run_name": _LOGS,
    "report_to": _LOGS,
    "project": _LOGS,
    "logging_strategy": _LOGS,
    "logging_steps": _LOGS,
    "logging_first_step": _LOGS,
    "logging_nan_inf_filter": "a loss that is no number ends the stage",
    "disable_tqdm": _LOGS,
    "log_completions_hub_repo": _HUB,
    "save_strategy": _CHECKPOINTS,
    "save_total_limit": _CHECKPOINTS,
    "save_only_model": _CHECKPOINTS,
    "save_on_each_node": _CHECKPOINTS,
    "save_safetensors": _CHECKPOINTS,
    "enable_jit_checkpoint": _CHECKPOINTS,
    "resume_from_checkpoint": _CHECKPOINTS,
    "restore_callback_states_from_checkpoint": _CHECKPOINTS,
    "ignore_data_skip": _CHECKPOINTS,
    "do_train": _MEASURING,
    "do_eval": _MEASURING,
    "do_predict": _MEASURING,
    "eval_strategy": _MEASURING,
    "eval_steps": _MEASURING,
    "eval_on_start": _MEASURING,
    "load_best_model_at_end": _MEASURING,
    "metric_for_best_model": _MEASURING,
    "push_to_hub": _HUB,
    "hub_model_id": _HUB,
    "hub_token": _HUB,
    "hub_strategy": _HUB,
    "hub_private_repo": _HUB,
    "hub_always_push": _HUB,
    "hub_revision": _HUB,
    "trackio_space_id": _HUB,
    "trackio_bucket_id": _HUB,
    "trackio_static_space_id": _HUB,
    "max_length": _WHOLE,
    "max_prompt_length": _WHOLE,
    "truncation_mode": _WHOLE,
    "remove_unused_columns": _BATCHES,
    "label_names": _BATCHES,
    "dataset_text_field": _BATCHES,
    "dataset_kwargs": _BATCHES,
    "packing": "TRL cannot pack images",
    "padding_free": "TRL cannot pack images",
    "completion_only_loss": "the loss is always on the answer only",
    "assistant_only_loss": "the loss is always on the answer only",
    "chat_template_path": "training and evaluation share one prompt",
    "trust_remote_code": "code from a model repository is never run",
    "model_init_kwargs": "models are named in the spec",
    "train_sampling_strategy": _BATCHES,
    "packing_strategy": "TRL cannot pack images",
    "eval_packing": "TRL cannot pack images",
    "pad_to_multiple_of": _BATCHES,
    "dataset_num_proc": _BATCHES,
    "eos_token": "the model's own tokens are used",
    "pad_token": "the model's own tokens are used",
}
#: Further ones that it owns in the policy's blocks.
_OWNED_OF_POLICY = {"bf16": "use spec.policy.loading.precision"}


def owned_options(path: str) -> dict[str, str]:
    """The options that the contract owns in the `trainer` block at this path below `spec` → why."""
    return OWNED_TRAINER_OPTIONS | (_OWNED_OF_POLICY if path.startswith("policy.") else {})


def unsupported(spec: CycleSpec, local: bool = False) -> list[Problem]:
    """Everything in the spec that this version cannot do, or that the contract does not leave to the user.

    Args:
        spec: as the user wrote it, or resolved.
        local: it is to run under `medgr2 run`.
    """
    document = spec.dump()
    problems = [
        Problem(f"spec.{path}", gap.message.format(value=value))
        for gap in GAPS
        if local or not gap.local
        for path, value in _values(document, gap.path)
        if gap.missing(value)
    ]
    known = resolve(spec)
    if known.generator.external and not any(source.allow_external for source in known.data.sources):
        problems.append(Problem("spec.data.sources", _NOTHING_MAY_LEAVE))
    problems += _overheard(known)
    problems += _engine(known)
    problems += rollout_rules.problems(known)
    problems += _loading(known)
    if known.tracking is not None:
        problems += [Problem(f"spec.tracking.{field}", message) for field, message in known.tracking.problems()]
    problems += _unknown_question_types(known)
    problems += _untaught(known)
    if spec.budget.gpu_hours is not None:
        for index, stage in enumerate(spec.stages):
            for name in unknown_devices(stage.resources, spec.budget.gpus_per):
                what = f"how many GPUs is one {name}? Say it in spec.budget.gpusPer (0: none)"
                problems.append(Problem(f"spec.stages[{index}].resources", f"budget.gpuHours cannot count it: {what}"))
    for trainer, config in TRAINERS.items():
        for path, options in _values(document, trainer):
            reasons = owned_options(path)
            wrong = [(option, f"not to be set here: {reasons[option]}") for option in options if option in reasons]
            others = {option: value for option, value in options.items() if option not in reasons}
            found = trainer_options.problems(config, others)
            wrong += islice(found, EXPLAINED)
            wrong += [(option, "is the first of further problems") for option, _ in islice(found, 1)]
            problems += [Problem(f"spec.{path}.{option}", message) for option, message in wrong]
    return problems


def _overheard(spec: ResolvedSpec) -> Iterator[Problem]:
    """Secrets that would be sent unencrypted to a server outside."""
    parameters = stage_parameters(spec, "", GENERATE.name, 1)
    assert isinstance(parameters, GenerateParameters)
    kind, fetch = parameters.provider.kind, spec.data.fetch
    if parameters.provider.overheard:
        yield Problem(f"spec.generator.{kind}.baseURL", parameters.provider.overheard)
    if fetch.hub_token_secret_ref and fetch.hub_endpoint and is_overheard(fetch.hub_endpoint):
        yield Problem(
            "spec.data.fetch.hubEndpoint", "the hub's token would cross networks of others unencrypted: use https"
        )


def _engine(spec: ResolvedSpec) -> Iterator[Problem]:
    """Why the policy cannot be asked as the spec says."""
    engine = spec.policy.engine
    if engine.transformers is None and spec.policy.base_model.startswith("builtin://"):
        yield Problem(
            "spec.policy.engine",
            "vLLM has no kernels for the built-in model's attention heads of 24 dimensions: leave engine out",
        )
    if engine.server is None:
        return
    if is_external(engine.server.base_url):
        yield Problem(
            "spec.policy.engine.server.baseURL",
            "it is shown every image, also those that may not leave the site: it must be on site, with an address that "
            "says so (loopback, private, a single name, or one that ends in .svc, .local, .internal or .lan)",
        )
    for stage, lora in _policy_lora(spec):
        if lora.rank == 0:
            yield Problem(
                f"spec.policy.{stage}.lora",
                "a server that runs already can only be given adapters, no whole model: set a rank above 0, or use "
                "policy.engine.vllm",
            )


def _loading(spec: ResolvedSpec) -> Iterator[Problem]:
    """Why the policy cannot be held as the spec says while it is trained."""
    loading, path = spec.policy.loading, "spec.policy.loading"
    trained = {name: lora for name, lora in _policy_lora(spec) if spec.stage(name).enabled}
    if loading.freeze_vision_tower is not None and all(lora.rank for _, lora in _policy_lora(spec)):
        yield Problem(f"{path}.freezeVisionTower", "adapters never change the vision tower: leave it out")
    if loading.attention is Attention.FLASH_ATTENTION_2 and loading.precision is Precision.FLOAT32:
        yield Problem(f"{path}.attention", "FlashAttention2 has no Float32: leave precision out, or use SDPA")
    if loading.quantization is None:
        return
    for name, lora in trained.items():
        deepspeed = spec.stage(name).deepspeed
        if lora.rank == 0:
            why = f"{name} trains all weights, and what learns cannot be quantized: set a rank above 0"
        elif not adapters_of(spec, name):
            why = (
                f"{name} would merge the adapters before and train others on that, which nobody has quantized: give"
                " sft and grpo the same lora"
            )
        elif deepspeed is not None:
            why = f"{deepspeed} shares out what learns, and adapters are small: leave stages[{name}].deepspeed out"
        elif name == GRPO.name and (spec.policy.engine.server is not None or share(spec, name).served):
            why = (
                "the vLLM of policy.engine would sample for grpo from other weights than learn, the base unquantized:"
                " set policy.engine.vllm.rolloutGPUs to 0, or leave engine out"
            )
        else:
            continue
        yield Problem(f"{path}.quantization", f"{why}; or leave quantization out")
        return


def _policy_lora(spec: ResolvedSpec) -> Iterator[tuple[str, ResolvedLoRA]]:
    yield SFT.name, spec.policy.sft.lora
    yield GRPO.name, spec.policy.grpo.lora


def _untaught(spec: ResolvedSpec) -> Iterator[Problem]:
    """Why there can be no student of this generator."""
    generator, distillation = spec.generator, spec.generator.distillation
    if distillation is None:
        return
    if generator.chosen.beside_stage:
        yield Problem(
            "spec.generator.distillation",
            f"a student answers in the process of stage generate, where generator.{generator.chosen.kind} takes the "
            "GPUs; a vLLM that serves its adapter comes with a later version: run `vllm serve` as a server of its own "
            "and name it in generator.openAI.baseURL, or leave distillation out",
        )
    path = "spec.generator.distillation.termsAllowTraining"
    if generator.external and distillation.terms_allow_training is None:
        yield Problem(
            path,
            "a student learns from what an outside provider wrote: read its terms, and say true if they allow to train "
            "a model with its output",
        )
    elif distillation.terms_allow_training is False:
        yield Problem(path, "then no student may learn from this generator: leave generator.distillation out")


def _unknown_question_types(spec: ResolvedSpec) -> Iterator[Problem]:
    """Names that would go into paid prompts, and that nobody has described."""
    generator = spec.generator
    described = {_plain(name): name for name in (*KNOWN_QUESTION_TYPES, *generator.custom_question_types)}
    for index, name in enumerate(generator.question_types):
        known = described.get(_plain(name))
        if known is not None and (known in KNOWN_QUESTION_TYPES or known == name):
            continue
        near = difflib.get_close_matches(_plain(name), described, n=1)
        hint = f"did you mean {described[near[0]]!r}? " if near else ""
        yield Problem(
            f"spec.generator.questionTypes[{index}]",
            f"no prompt knows {name!r}: {hint}There are {', '.join(KNOWN_QUESTION_TYPES)}. For a kind of your own say "
            f"in generator.customQuestionTypes what it asks for: {{{name}: which side is affected}}",
        )
    for name in generator.custom_question_types:
        path = f"spec.generator.customQuestionTypes.{name}"
        if described[_plain(name)] != name or _plain(name) in map(_plain, KNOWN_QUESTION_TYPES):
            yield Problem(path, "there is such a kind already: take another name")
        elif name not in generator.question_types:
            yield Problem(path, "generator.questionTypes does not ask for it")


def _plain(name: str) -> str:
    """As prompts compare names: without regard to case and spaces."""
    return " ".join(name.casefold().split())


def _values(document: dict[str, Any], pattern: str) -> Iterator[tuple[str, Any]]:
    """The concrete paths that match a pattern, with what stands there; absent and empty ones are left out."""
    found: list[tuple[str, Any]] = [("", document)]
    for part in pattern.split("."):
        name, many = part.removesuffix("[]"), part.endswith("[]")
        found = [(f"{path}.{name}".lstrip("."), value[name]) for path, value in found if value.get(name) is not None]
        if many:
            found = [(f"{path}[{index}]", item) for path, value in found for index, item in enumerate(value)]
    yield from found
