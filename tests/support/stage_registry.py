"""Stages that only a test knows, and other code for those that there are."""

from __future__ import annotations

from collections.abc import Iterator
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


def run_instead(module: str, *names: str) -> None:
    """Other code runs for these stages; all stages, when none is named. Until the process ends."""
    for name in names or stages.stage_names():
        stages._STAGES[name] = replace(stages.definition(name), module=module)
