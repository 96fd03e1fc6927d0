"""`cycles/<cycle>/approved.json`: what `medgr2 approve` let go on; a run that is going takes notice."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from medgr2_api import paths
from medgr2_api.scheduling import StageRef

from .state import StateError

_REFS = TypeAdapter(list[StageRef])


class Approvals:
    """Beside the `approved` of the spec, which is the file's."""

    def __init__(self, root: Path, cycle: str) -> None:
        self.path = root / paths.cycle(cycle) / paths.APPROVED

    def load(self) -> list[StageRef]:
        """
        Raises:
            StateError: the file cannot be read.
        """
        try:
            return _REFS.validate_json(self.path.read_bytes())
        except FileNotFoundError:
            return []
        except ValidationError as error:
            raise StateError(f"{self.path}: not a list of stages; remove it, and approve again") from error

    def add(self, stages: Iterable[StageRef]) -> None:
        """Adds stages, as a whole or not at all."""
        known = self.load()
        known += [stage for stage in stages if stage not in known]
        temporary = self.path.with_name(f".{self.path.name}.tmp")
        temporary.write_text(json.dumps([stage.dump() for stage in known]))
        temporary.replace(self.path)
