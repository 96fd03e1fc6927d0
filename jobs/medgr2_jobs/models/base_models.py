"""The models that a cycle starts from: fetched where they lie elsewhere, checked, and taken; or built in.

Nothing here imports torch, unless the built-in model has to be made.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

from medgr2_api import model_families
from medgr2_api.stages.prepare import PrepareParameters

from .. import fetch
from ..errors import ConfigError
from ..fetch import BUILTIN
from ..fetch.pin_file import MODEL_SUFFIXES
from ..runner.context import StageContext
from ..store.safe_path import inside
from .tiny.settings import PretrainSettings

_HEAD = "head.safetensors"
#: Where a tokenizer's added tokens stand, by its age.
_TOKENIZER = ("tokenizer.json", "tokenizer_config.json")


def check(ctx: StageContext[PrepareParameters]) -> None:
    """Fetches and checks every model that the cycle names, before any work is done.

    Raises:
        ConfigError: a model is not there, is no model, or is of a family that is not supported.
        StageError: it cannot be fetched; see `fetch.local`.
    """
    bases = _bases(ctx.parameters)
    for field, name in bases:
        if name.startswith(BUILTIN):
            PretrainSettings.named(name, field)
    for field, name in bases:
        if not name.startswith(BUILTIN):
            _check_model(_folder(ctx, name, field), field)
    if ctx.parameters.reward_checkpoint is not None:
        _check_reward_checkpoint(ctx, ctx.parameters.reward_checkpoint)


def special_tokens(ctx: StageContext[PrepareParameters]) -> frozenset[str]:
    """What the tokenizers of the models take for marks of their own: in a question they would not be text.

    Raises:
        ConfigError: a tokenizer's files are no JSON.
    """
    tokens: set[str] = set()
    for field, name in _bases(ctx.parameters):
        if name.startswith(BUILTIN):
            continue  # all of its own look as chat templates' do, which are refused anyway
        folder = _folder(ctx, name, field)
        written = [_json(path, field) for file in _TOKENIZER if (path := folder / file).is_file()]
        for document in written:
            added = document.get("added_tokens") or []
            decoder = document.get("added_tokens_decoder") or {}
            for token in (*added, *decoder.values()):
                if isinstance(token, dict) and token.get("special"):
                    tokens.add(str(token.get("content", "")))
    return frozenset(token for token in tokens if not token.isalnum() and token.strip())


def publish(ctx: StageContext[PrepareParameters]) -> dict[str, float]:
    """Publishes `models/policy/`, `models/reward/` and, where they are given, `models/student/` and
    `models/reward-checkpoint/`.

    A model that several start from is built or read once; everything is hard-linked.

    Returns:
        Counters: the loss of the built-in model's pre-training, if it was built.
    """
    by_role = dict(zip(("policy", "reward", "student"), _bases(ctx.parameters), strict=False))
    tiny = {name: PretrainSettings.named(name, field) for field, name in by_role.values() if name.startswith(BUILTIN)}
    folders = {name: ctx.work / "tiny" / str(index) for index, name in enumerate(tiny)}
    losses = _build_all(ctx, tiny, folders)
    counters: dict[str, float] = {}
    for role, (field, name) in by_role.items():
        if name in folders:
            ctx.writer.take(f"models/{role}", folders[name])
            counters[f"{role}_pretrain_loss"] = losses[name]
        else:
            _take(ctx, f"models/{role}", _folder(ctx, name, field))
    if ctx.parameters.reward_checkpoint is not None:
        folder = _folder(ctx, ctx.parameters.reward_checkpoint, "rewardModel.checkpoint")
        _take(ctx, "models/reward-checkpoint", folder)
    return counters


def _bases(parameters: PrepareParameters) -> list[tuple[str, str]]:
    """Field and name of each model, in the order policy, reward, student; the last one only if it is another model."""
    bases = [
        ("policy.baseModel", parameters.policy_base_model),
        ("rewardModel.baseModel", parameters.reward_base_model),
    ]
    if parameters.student_base_model is not None:
        bases.append(("generator.distillation.baseModel", parameters.student_base_model))
    return bases


def _build_all(
    ctx: StageContext[PrepareParameters], tiny: dict[str, PretrainSettings], folders: dict[str, Path]
) -> dict[str, float]:
    """Builds the built-in models, the first here and the others beside it: each uses one core.

    Returns:
        Loss by model name.
    """
    if not tiny:
        return {}
    from ..runner.background_process import BackgroundProcess

    def build(name: str) -> float:
        return _build_tiny(ctx, tiny[name], folders[name])

    first, *others = tiny
    sides = {name: BackgroundProcess(ctx, f"the pre-training of {name}", partial(build, name)) for name in others}
    try:
        losses = {first: build(first)}
        return losses | {name: side.result(ctx) for name, side in sides.items()}
    finally:
        for side in sides.values():
            side.stop()


def _build_tiny(ctx: StageContext[PrepareParameters], settings: PretrainSettings, folder: Path) -> float:
    from .tiny import pretrain

    return pretrain.build(ctx, settings, ctx.parameters.seed, ctx.parameters.answer_format, folder)


def _folder(ctx: StageContext[PrepareParameters], name: str, field: str) -> Path:
    """The folder on the volume that a model's name stands for."""
    folder = fetch.local_path(ctx, name, field, "model")
    if not folder.is_dir():
        raise ConfigError(f"{field}: {name!r} is a file ({folder}); a model is a folder in Hugging Face format")
    return folder


def _check_model(folder: Path, field: str) -> None:
    config = _json(folder / "config.json", field)
    if (refused := model_families.refusal(config)) is not None:
        raise ConfigError(f"{field}: {folder}: {refused}")
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise ConfigError(f"{field}: {folder}: no *.safetensors; pickled weights (.bin, .pt) are never loaded")
    index = folder / "model.safetensors.index.json"
    if index.exists():
        parts = set(_json(index, field).get("weight_map", {}).values())
        missing = sorted(part for part in parts if not (folder / part).is_file())
        if missing:
            raise ConfigError(f"{field}: {folder}: {missing[0]} is missing, though {index.name} lists it")
    for path in weights:
        _check_safetensors(path, field)
    for alternatives in (
        ("preprocessor_config.json", "processor_config.json"),
        ("tokenizer_config.json",),
        ("tokenizer.json", "vocab.json"),
    ):
        if not any((folder / name).is_file() for name in alternatives):
            raise ConfigError(f"{field}: {folder}: no {' or '.join(alternatives)}: its processor is incomplete")


def _check_reward_checkpoint(ctx: StageContext[PrepareParameters], name: str) -> None:
    field = "rewardModel.checkpoint"
    folder = _folder(ctx, name, field)
    head = folder / _HEAD
    if not head.is_file():
        raise ConfigError(
            f"{field}: {head} is missing: a reward model's checkpoint is nothing without its head. "
            "Copy the whole folder that stage reward published"
        )
    for path in sorted(folder.rglob("*.safetensors")):
        _check_safetensors(path, field)


def _check_safetensors(path: Path, field: str) -> None:
    """Checks that a file is as long as its header says: an interrupted copy is found now, not hours later."""
    size = path.stat().st_size
    try:
        with path.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if not 0 < length <= size - 8:
                raise ValueError(f"its header should have {length} bytes")
            header = json.loads(stream.read(length))
        end = max((item["data_offsets"][1] for key, item in header.items() if key != "__metadata__"), default=0)
        if size != 8 + length + end:
            raise ValueError(f"{size} bytes, its header says {8 + length + end}")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{field}: {path} is not a whole safetensors file ({error}); copy it again") from error


def _json(path: Path, field: str) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{field}: {path} is missing; a model folder in Hugging Face format is needed") from None
    except ValueError as error:
        raise ConfigError(f"{field}: {path} is not JSON ({error})") from error
    if not isinstance(document, dict):
        raise ConfigError(f"{field}: {path} is not a JSON object")
    return document


def _take(ctx: StageContext[PrepareParameters], name: str, folder: Path) -> None:
    """Links the files we may load; links in the folder are followed, but not off the volume."""
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        hidden = any(part.startswith(".") for part in relative.parts)
        if hidden or not path.is_file() or path.suffix not in MODEL_SUFFIXES:
            continue
        inside(ctx.root, str(path.relative_to(ctx.root)), f"file of {name}")
        ctx.writer.take(f"{name}/{relative}", path.resolve())
