"""`medgr2 plan --fit`: whether memory and disk suffice, and what a cycle costs in GPU-hours and time."""

from __future__ import annotations

import json
import math
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import typer

from medgr2_api.cycle import ResolvedSpec
from medgr2_api.fit import model_files
from medgr2_api.fit.assumptions import Basis
from medgr2_api.fit.counts import data_of
from medgr2_api.fit.cycle import CycleFit, fit
from medgr2_api.fit.disk import BaseFiles
from medgr2_api.fit.gpus import named
from medgr2_api.fit.known_models import CONFIGS, known
from medgr2_api.fit.memory import GIB, Need
from medgr2_api.fit.result import Hardware, ModelShapes, StageFit
from medgr2_api.fit.shapes import ModelShape, ShapeError
from medgr2_api.presets import resolve
from medgr2_api.stage_contract import ExitCode

from .cycle_file import read_cycle
from .status_view import print_table


@dataclass(frozen=True)
class FitOptions:
    """What the command line adds to the spec."""

    gpu: str = ""
    gpus: int = 0
    configs: tuple[str, ...] = ()
    seed_questions: int | None = None
    images: int | None = None
    benchmark_questions: int | None = None


def show_fit(file: Path, workspace: Path, options: FitOptions, as_json: bool) -> int:
    """Prints what the cycle needs; ends with 78 where it does not fit."""
    cycle = read_cycle(file)
    spec = resolve(cycle.spec)
    kind = named(options.gpu) if options.gpu else None
    if options.gpu and kind is None:
        _refuse(f"--gpu {options.gpu}: not known; name one such as 'H100 80GB', 'A100 40GB', 'L40S' or 'RTX 4090'")
    shapes = _Shapes(workspace, options.configs)
    policy = shapes.of(spec.policy.base_model, "policy")
    reward = shapes.of(spec.reward_model.base_model, "reward")
    distillation = spec.generator.distillation
    student = None
    if distillation is not None and distillation.base_model:
        student = shapes.of(distillation.base_model, "student")
    shapes.check_used()
    beside = spec.generator.chosen
    generator = known(getattr(beside, "model", "")) if beside.beside_stage else None
    data = data_of(spec, seed=options.seed_questions, images=options.images, benchmark=options.benchmark_questions)
    there = next((folder for folder in (workspace.absolute(), *workspace.absolute().parents) if folder.exists()), None)
    result = fit(
        spec,
        ModelShapes(policy, reward, student, generator),
        data,
        Hardware(kind, options.gpus),
        files=BaseFiles(shapes.bytes.get("policy", 0.0), shapes.bytes.get("reward", 0.0)),
        free=float(shutil.disk_usage(there).free) if there and workspace.exists() else 0.0,
    )
    if as_json:
        print(json.dumps(_document(result, spec), indent=1, ensure_ascii=False))
    else:
        _print(result, spec)
    return ExitCode.OK if result.fits else ExitCode.CONFIG


class _Shapes:
    """Finds the shapes of models: `--config`, a folder of the workspace, the table of known models."""

    def __init__(self, workspace: Path, configs: tuple[str, ...]) -> None:
        self.workspace = workspace
        self.given: dict[str, Path] = {}
        for text in configs:
            role, equals, path = text.partition("=")
            if not equals or role not in ("policy", "reward", "student"):
                _refuse(
                    f"--config {text}: write policy=PATH, reward=PATH or student=PATH, of a config.json or its folder"
                )
            self.given[role] = Path(path)
        self.used: set[str] = set()
        self.bytes: dict[str, float] = {}

    def of(self, name: str, role: str) -> ModelShape:
        """The shape of a model of the cycle, or the end of the command."""
        if role in self.given:
            self.used.add(role)
            return self._read(self.given[role], role)
        if not name.startswith("builtin://") and (self.workspace / name / "config.json").is_file():
            return self._read(self.workspace / name, role)
        found = known(name)
        if found is None:
            _refuse(
                f"{role} model {name}: its shape is not known. Give it by --config {role}=PATH/config.json; "
                f"known without: {', '.join(CONFIGS)}"
            )
        return found

    def check_used(self) -> None:
        """Refuses a configuration of a model that the cycle does not have."""
        if idle := sorted(self.given.keys() - self.used):
            _refuse(f"--config {idle[0]}=…: the cycle has no such model of its own")

    def _read(self, path: Path, role: str) -> ModelShape:
        try:
            files = model_files.read(path)
        except ShapeError as error:
            _refuse(str(error))
        self.bytes[role] = files.bytes
        return files.shape


def _print(result: CycleFit, spec: ResolvedSpec) -> None:
    print("models")
    shapes = [("policy", result.models.policy), ("reward", result.models.reward), ("student", result.models.student)]
    rows = [
        (
            role,
            f"{shape.parameters / 1e9:.2f} G" if shape.parameters > 1e8 else f"{shape.parameters:,}",
            f"{shape.image_tokens(spec.data.max_pixels)} tokens a picture of {spec.data.max_pixels:,} pixels",
            shape.source,
        )
        for role, shape in shapes
        if shape is not None
    ]
    print_table([("model", "parameters", "", "from"), *rows], widest=60)
    print("\nstages, one run of each")
    print_table(
        [("stage", "runs", "GPUs", "memory", "main memory", "time", "GPU-hours", ""), *map(_row, result.stages)]
    )
    for stage in result.stages:
        for line in _details(stage):
            print(f"  {stage.name}: {line}")
    print(f"\ndisk: {_of(result.disk.total, result.disk_limit)}: {_parts(result.disk)}")
    if not result.disk_fits:
        print("  does not fit: enlarge the workspace's volume, or train by adapters (lora), of which less is kept")
    untimed = f", without {', '.join(result.untimed)}, whose time is not known" if result.untimed else ""
    print(
        f"in all, {spec.iterations} iteration(s): {result.gpu_hours:,.1f} GPU-hours, "
        f"{_time(result.seconds)} on the clock{untimed}"
    )
    print("\nassumed")
    for line in _assumed(result):
        print(f"  {line}")
    if not result.fits:
        failing = [stage.name for stage in result.stages if not stage.fits] + ["disk"] * (not result.disk_fits)
        print(f"\ndoes not fit: {', '.join(failing)}")


def _row(stage: StageFit) -> tuple[str, ...]:
    where = "none" if stage.gpu is None else f"{stage.gpus:g} × {stage.gpu.name}"
    host = "" if stage.host is None else _of(stage.host.total, stage.host_limit)
    hours = "" if math.isnan(stage.seconds) or stage.gpu is None else f"{stage.gpu_hours:,.1f}"
    verdict = "" if stage.fits else "does not fit"
    return (
        stage.name,
        str(stage.runs),
        where,
        _of(stage.need.total, stage.limit),
        host,
        _time(stage.seconds),
        hours,
        verdict,
    )


def _details(stage: StageFit) -> Iterator[str]:
    yield _parts(stage.need)
    if stage.problem:
        yield stage.problem
    for change in stage.advice:
        yield f"change: {change}"


def _parts(need: Need) -> str:
    shown = [part for part in need.parts if part.bytes >= 0.05 * GIB] or list(need.parts)
    return ", ".join(f"{part.name} {part.bytes / GIB:,.1f}" for part in shown)


def _of(total: float, limit: float) -> str:
    return f"{total / GIB:,.1f} of {limit / GIB:,.0f} GiB" if limit else f"{total / GIB:,.1f} GiB"


def _time(seconds: float) -> str:
    if math.isnan(seconds):
        return "not known"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:,.1f} h"


def _assumed(result: CycleFit) -> Iterator[str]:
    if result.data.guessed:
        yield f"{', '.join(result.data.guessed)}; --seed-questions, --images and --benchmark-questions say otherwise"
    yield "memory: measured on a CPU (make bench NAME=fit): within a fifth, whole models and adapters"
    if not any(stage.gpu is not None for stage in result.stages):
        return
    yield "kinds of GPU by their makers' data sheets; --gpu names that of stages whose nodeSelector does not"
    for one in result.assumptions.all():
        basis = "" if one.basis is Basis.ASSUMED else f"{one.basis}: "
        source = f" ({basis}{one.source})" if one.source else ""
        yield f"{one.value:g} {one.what}{source}"


def _document(result: CycleFit, spec: ResolvedSpec) -> dict[str, Any]:
    def need(value: Need | None) -> dict[str, Any] | None:
        return (
            None if value is None else {"bytes": value.total, "parts": {part.name: part.bytes for part in value.parts}}
        )

    def number(value: float) -> float | None:
        return None if math.isnan(value) else value

    return {
        "fits": result.fits,
        "iterations": spec.iterations,
        "gpuHours": result.gpu_hours,
        "seconds": result.seconds,
        "untimed": result.untimed,
        "disk": {**(need(result.disk) or {}), "limitBytes": result.disk_limit or None, "fits": result.disk_fits},
        "models": {
            role: {"parameters": shape.parameters, "from": shape.source}
            for role in ("policy", "reward", "student")
            if (shape := getattr(result.models, role)) is not None
        },
        "stages": [
            {
                "stage": stage.name,
                "runs": stage.runs,
                "processes": stage.processes,
                "gpus": stage.gpus,
                "gpu": stage.gpu.name if stage.gpu else None,
                "memory": need(stage.need),
                "limitBytes": stage.limit or None,
                "mainMemory": need(stage.host),
                "mainMemoryLimitBytes": stage.host_limit or None,
                "seconds": number(stage.seconds),
                "gpuHours": number(stage.gpu_hours),
                "fits": stage.fits,
                "problem": stage.problem,
                "change": list(stage.advice),
            }
            for stage in result.stages
        ],
        "assumed": [*_assumed(result)],
    }


def _refuse(message: str) -> NoReturn:
    print(message, file=sys.stderr)
    raise typer.Exit(ExitCode.USAGE)
