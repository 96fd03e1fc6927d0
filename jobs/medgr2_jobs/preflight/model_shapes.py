"""The shapes of a cycle's models, and how much data there is, as far as both are here: for the formulas of fit."""

from __future__ import annotations

from dataclasses import dataclass

from medgr2_api.fit import model_files
from medgr2_api.fit.counts import DataSize, data_of
from medgr2_api.fit.disk import BaseFiles
from medgr2_api.fit.known_models import known
from medgr2_api.fit.result import ModelShapes
from medgr2_api.fit.shapes import ModelShape, ShapeError

from ..fetch import BUILTIN
from .check_result import PreflightContext


@dataclass(frozen=True)
class Shapes:
    """Of the models that are known."""

    models: ModelShapes
    files: BaseFiles


def shapes(context: PreflightContext) -> Shapes | str:
    """The shapes of policy and R; else why they are not known, for a check's message."""
    spec = context.spec
    names = {"policy": spec.policy.base_model, "reward": spec.reward_model.base_model}
    found: dict[str, ModelShape] = {}
    sizes: dict[str, float] = {}
    missing = []
    for role, name in names.items():
        folder = context.root / name
        if not name.startswith(BUILTIN) and (folder / "config.json").is_file():
            try:
                there = model_files.read(folder)
            except ShapeError as error:
                return str(error)
            found[role], sizes[role] = there.shape, there.bytes
        elif (shape := known(name)) is not None:
            found[role] = shape
        else:
            missing.append(role)
    if missing:
        return f"the size of the {' and the '.join(missing)} model is not known yet"
    distillation = spec.generator.distillation
    student = known(distillation.base_model) if distillation is not None and distillation.base_model else None
    files = BaseFiles(sizes.get("policy", 0.0), sizes.get("reward", 0.0))
    return Shapes(ModelShapes(found["policy"], found["reward"], student), files)


def data_size(context: PreflightContext) -> DataSize:
    """What the readers make of sources and benchmarks; what is drawn by code is counted by its settings."""
    drawn = data_of(context.spec)
    if not drawn.guessed:
        return drawn
    seeds = sum(each.questions for each in context.surveys if each.where.startswith("data.sources"))
    tests = sum(each.questions for each in context.surveys if each.where.startswith("data.benchmarks"))
    return data_of(context.spec, seed=seeds or None, images=drawn.images, benchmark=tests or None)
