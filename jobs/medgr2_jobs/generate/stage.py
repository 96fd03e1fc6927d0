"""Stage generate: candidates, question by question, about training images."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from typing import Any

from medgr2_api.parameters import GenerateParameters, Provider
from medgr2_api.stages import VLLM_BASE_URL_ENV

from ..context import Outcome, StageContext
from ..errors import ConfigError, DataError
from . import plan, schema
from .plan import Task

_SCRIPTED, _OPENAI, _VLLM = "scripted", "openAI", "vllm"
#: Rows between two progress notes of the scripted generator.
_BLOCK = 256


def run(ctx: StageContext[GenerateParameters]) -> Outcome:
    """Writes `candidates`, and for the scripted generator `truth`."""
    kind = ctx.parameters.provider.kind
    if kind == _SCRIPTED:
        rows = _scripted(ctx)
    elif kind in (_OPENAI, _VLLM):
        from . import asking  # the only providers that need the openai package

        rows = asking.ask_all(ctx, _server(ctx.parameters.provider), _tasks(ctx, ctx.parameters.question_types))
    else:
        raise ConfigError(f"generator {kind!r}: this version has {_SCRIPTED}, {_OPENAI} and {_VLLM}")
    ctx.writer.table("candidates", rows)
    return Outcome(counters=_counters(rows))


def _server(provider: Provider) -> Provider:
    """The provider with the address that it answers at: of a vLLM beside the stage, the operator tells."""
    if provider.kind == _VLLM:
        provider = provider.model_copy(update={"base_url": os.environ.get(VLLM_BASE_URL_ENV, "")})
        if not provider.base_url:
            raise ConfigError(
                f"generator.vllm: {VLLM_BASE_URL_ENV} is not set, so there is no vLLM beside this stage; "
                "without Kubernetes run `vllm serve` yourself and name it in generator.openAI.baseURL"
            )
    if not provider.base_url or not provider.model:
        raise ConfigError(f"generator.{provider.kind}: its address and its model must be given")
    return provider


def _tasks(
    ctx: StageContext[GenerateParameters], kinds: Sequence[str], most_per_image: int | None = None
) -> list[Task]:
    """This shard's tasks."""
    parameters, prepare = ctx.parameters, ctx.input("prepare")
    images = plan.training_images(prepare.rows("images"))
    if parameters.candidates and not images:
        raise DataError("the training split has no image to ask about; see the quarantine table of stage prepare")
    if not kinds:
        raise ConfigError("generator.questionTypes: must name at least one")
    return plan.tasks(
        images,
        prepare.digest,
        iteration=parameters.iteration,
        candidates=parameters.candidates,
        per_image=min(parameters.questions_per_image, most_per_image or parameters.questions_per_image),
        kinds=kinds,
        shard=ctx.request.shard,
    )


def _scripted(ctx: StageContext[GenerateParameters]) -> list[dict[str, Any]]:
    """Candidates made by code, which knows what each phantom shows."""
    from ..data.phantoms import KINDS
    from . import scripted

    parameters = ctx.parameters
    script = parameters.provider.scripted
    if script is None:
        raise ConfigError("generator.scripted: its settings are missing")
    prepare = ctx.input("prepare")
    phantoms = prepare.rows("phantoms") if prepare.has("phantoms.parquet") else []
    shown = {row["image_sha256"]: row for row in phantoms}
    # a phantom has one question of each kind: asking for more asks more phantoms
    tasks = _tasks(ctx, KINDS, most_per_image=len(KINDS))
    rows, truth = [], []
    for number, task in enumerate(tasks):
        if task.image_sha256 not in shown:
            raise ConfigError(
                f"generator.scripted: image {task.image_sha256[:12]} is no phantom; the script knows phantoms only. "
                "Use another generator for real images"
            )
        rng = scripted.rng_for(parameters.seed, task.image_sha256, task.question_type)
        made = scripted.propose(shown[task.image_sha256], task.question_type, rng, script, parameters.answer_format)
        truth.append({"triplet_id": task.triplet_id, "kind": made.pop("kind"), "correct": made.pop("correct")})
        rows.append(
            {
                "triplet_id": task.triplet_id,
                "iteration": parameters.iteration,
                "image_sha256": task.image_sha256,
                "modality": task.modality,
                **made,
                "paradigm": "",
                "template_sha256": "",
                "generator": _SCRIPTED,
                "outcome": schema.OK,
                "attempts": 1,
                "usd": 0.0,
            }
        )
        if number % _BLOCK == 0:
            ctx.progress("generate", number, len(tasks))
            ctx.check_stop()
    ctx.writer.table("truth", truth)
    return rows


def _counters(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """How many rows came out how."""
    outcomes = Counter(row["outcome"] for row in rows)
    counters: dict[str, float] = {
        "candidates": len(rows),
        "ok": outcomes.pop(schema.OK, 0),
        "images": len({row["image_sha256"] for row in rows}),
        "input_tokens": sum(row.get("input_tokens") or 0 for row in rows),
        "output_tokens": sum(row.get("output_tokens") or 0 for row in rows),
    }
    return counters | dict(sorted(outcomes.items()))
