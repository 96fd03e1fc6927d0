"""Whether the disk has room for the cycle, and the models for the images."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from medgr2_api.fit.assumptions import of_data
from medgr2_api.fit.disk import disk_need
from medgr2_api.fit.result import Hardware
from medgr2_api.fit.setting import Setting

from ..data import synthetic_images
from ..fetch import BUILTIN
from .check_result import CheckResult, PreflightContext, failed, ok, skipped
from .model_shapes import data_size, shapes
from .source_survey import SourceSurvey, inputs

#: Text of a question with its options, in tokens.
_QUESTION_TOKENS = 512
_GIB = 2**30


def disk(context: PreflightContext) -> Iterator[CheckResult]:
    """Room for images, models, checkpoints and tables over the whole cycle, as `medgr2 plan --fit` reckons it."""
    found = shapes(context)
    if isinstance(found, str):
        yield skipped("workspace", found)
        return
    setting = Setting(context.spec, found.models, data_size(context), Hardware(), of_data(context.spec))
    need = disk_need(context.spec, found.models, setting.data, setting.counts, found.files, _pixels(context))
    required, parts = need.total, ", ".join(f"{part.name} {part.bytes / _GIB:.1f}" for part in need.parts)
    free = shutil.disk_usage(_existing(context.root)).free
    message = f"about {required / _GIB:.1f} GiB are needed ({parts}), {free / _GIB:.1f} GiB are free"
    yield (
        ok("workspace", message)
        if required <= free
        else failed("workspace", f"{message}: free some, or enlarge the volume")
    )


def _existing(path: Path) -> Path:
    """The folder itself, or the one below which it will be made."""
    return next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.exists())


def tokens(context: PreflightContext) -> Iterator[CheckResult]:
    """Whether an image of `data.maxPixels`, a question and an answer fit into each model's context."""
    for where, name in (
        ("policy.baseModel", context.spec.policy.base_model),
        ("rewardModel.baseModel", context.spec.reward_model.base_model),
    ):
        if name.startswith(BUILTIN):
            yield ok(where, "made to measure")
            continue
        config = _json(context.root / name / "config.json")
        if not config:
            yield skipped(where, "its configuration is not on the volume yet")
            continue
        yield _fits(context, where, config, _json(context.root / name / "preprocessor_config.json"))


def _fits(context: PreflightContext, where: str, config: dict[str, Any], processor: dict[str, Any]) -> CheckResult:
    vision = config.get("vision_config", {})
    side = (processor.get("patch_size") or vision.get("patch_size") or 14) * (
        processor.get("merge_size") or vision.get("spatial_merge_size") or 2
    )
    max_tokens = (config.get("text_config") or config).get("max_position_embeddings") or config.get(
        "max_position_embeddings"
    )
    if not max_tokens:
        return skipped(where, "its configuration says nothing about the length of its context")
    image = math.ceil(context.spec.data.max_pixels / side**2)
    answer = int(context.spec.policy.grpo.trainer.get("max_completion_length", 512))
    required = image + _QUESTION_TOKENS + answer
    message = f"{image} tokens for an image of {context.spec.data.max_pixels:,} pixels and {answer} for an answer"
    if required <= max_tokens:
        return ok(where, f"{message}: within its context of {max_tokens:,}")
    return failed(where, f"{message}: more than its context of {max_tokens:,}; lower data.maxPixels")


def _pixels(context: PreflightContext) -> int:
    """How many pixels all images have at most, as far as records and files tell."""
    phantoms = sum(source.phantom.images for _, source in inputs(context.spec) if source.phantom is not None)
    pictures = sum(map(_pictures, context.surveys))
    return phantoms * synthetic_images.SIZE**2 + pictures * context.spec.data.max_pixels


def _pictures(survey: SourceSurvey) -> int:
    """How many pictures a source has; where they lie in its records and not all were read, at least one a file."""
    if survey.files or survey.whole:
        return len(survey.files) or survey.good
    return max(survey.good, sum(1 for path in survey.path.rglob("*") if path.is_file()))


def _json(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return document if isinstance(document, dict) else {}
