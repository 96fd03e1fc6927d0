"""`cycles/<cycle>/state.json`: the whole MedGR2Cycle document of a local run, status included."""

from __future__ import annotations

import json
import os
from pathlib import Path

from pydantic import ValidationError

from medgr2_api import paths
from medgr2_api.cycle import Cycle
from medgr2_api.hashing import sha256_of
from medgr2_api.stage_contract import ExitCode


class StateError(Exception):
    """The stored state and what is asked now do not fit together."""

    exit_code = ExitCode.USAGE


class StateFile:
    """Reads and writes a cycle's state; a write is durable before it returns."""

    def __init__(self, root: Path, name: str) -> None:
        self.path = root / paths.cycle(name) / paths.STATE

    def load(self) -> Cycle | None:
        """The stored cycle; None on the first run.

        Raises:
            StateError: the file cannot be read as a cycle.
        """
        try:
            return Cycle.model_validate_json(self.path.read_bytes())
        except FileNotFoundError:
            return None
        except ValidationError as error:  # not JSON at all, cut off, or of something else
            first = error.errors()[0]
            reason = ": ".join(filter(None, [".".join(map(str, first["loc"])), first["msg"]]))
            raise StateError(
                f"{self.path}: not a state of this version ({reason}); move the file away to start this cycle anew "
                "(finished stages are found again by their hashes)"
            ) from error

    def save(self, cycle: Cycle) -> None:
        """Writes the cycle: temporary file, fsync, rename, fsync of the folder."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_name(f".{self.path.name}.tmp")
        with temporary.open("w") as stream:
            json.dump(cycle.dump(), stream, indent=1, sort_keys=True)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(self.path)
        handle = os.open(self.path.parent, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def merge(cycle: Cycle, stored: Cycle | None) -> Cycle:
    """What to run: the file's spec with the stored status, as an API server would take the update.

    Raises:
        StateError: the change touches something immutable.
    """
    if stored is None:
        uid = paths.local_uid(cycle.metadata.name)
        return cycle.model_copy(update={"metadata": cycle.metadata.model_copy(update={"uid": uid, "generation": 1})})
    if cycle.spec.iterations < stored.spec.iterations:
        raise StateError(
            f"spec.iterations: {stored.spec.iterations} → {cycle.spec.iterations}: iterations may only grow; "
            "use another metadata.name for a shorter cycle (finished stages are reused)"
        )
    if cycle.spec.workspace != stored.spec.workspace:
        raise StateError("spec.workspace: is immutable; use another metadata.name")
    changed = sha256_of(cycle.spec.dump()) != sha256_of(stored.spec.dump())
    metadata = stored.metadata.model_copy(update={"generation": stored.metadata.generation + int(changed)})
    return cycle.model_copy(update={"metadata": metadata, "status": stored.status})
