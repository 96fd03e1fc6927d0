"""Stages that only a test knows, and other code for those that there are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from medgr2_api import stages


@contextmanager
def registered(*added: stages.StageDefinition) -> Iterator[None]:
    """The stages are there as if a package had brought them."""
    before = dict(stages._STAGES)
    try:
        for stage in added:
            stages.register(stage)
        yield
    finally:
        stages._STAGES.clear()
        stages._STAGES.update(before)


def stub(name: str, module: str, *publishes: str) -> stages.StageDefinition:
    """A stage of which other code runs: it needs none of its inputs, and may publish these parts."""
    stage = stages.definition(name)
    reads = tuple(replace(read, required=False) for read in stage.reads)
    return replace(stage, module=module, reads=reads, publishes=(), may_publish=publishes)


def run_instead(module: str, names: Sequence[str], publishes: Sequence[str]) -> None:
    """Other code runs for these stages, until the process ends."""
    for name in names:
        stages._STAGES[name] = stub(name, module, *publishes)


@contextmanager
def replaced(stage: stages.StageDefinition) -> Iterator[None]:
    """Another definition of a stage, as another version of the product has it."""
    before = stages.definition(stage.name)
    stages._STAGES[stage.name] = stage
    try:
        yield
    finally:
        stages._STAGES[stage.name] = before
