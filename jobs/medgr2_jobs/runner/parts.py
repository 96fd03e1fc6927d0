"""Work that is done, and kept, in parts: as many units at a time as about a minute and a half takes.

A unit is the smallest piece whose result does not depend on what is done beside it: a batch with its seed. So the same
comes out whatever the parts were, in one process or in several shards, killed or not.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from ..store import atomic
from .context import StageContext

U = TypeVar("U")

#: What a part is to take: a `kill -9` loses no more, and a server is not idle at the end of too many.
SECONDS = 90.0
#: How much larger than the one before a part may be: the first tells little, for it also loads the model.
_GROWTH = 4


class Parts:
    """The parts of a stage, and how fast they go."""

    def __init__(self, ctx: StageContext[Any]) -> None:
        """`ctx` is the stage's; what is finished lies in its folder for checkpoints."""
        self._ctx = ctx
        self._units = 1
        self._finished = 0

    def check_stop(self, *_: int) -> None:
        """Raises Checkpointed when asked to stop: with all units that are finished, whatever the work."""
        self._ctx.check_stop(self._finished)

    def make(
        self,
        name: str,
        units: Sequence[U],
        work: Callable[[Sequence[U], int], list[Any]],
        progress: Callable[[int], None] = lambda done: None,
    ) -> list[Any]:
        """Does what no earlier attempt has finished.

        Args:
            name: of this work among the stage's; part of a file's name.
            units: all of it.
            work: does consecutive units, of which it is told the index of the first; returns a JSON value for each.
            progress: called before each part, and at the end, with how many of these units are finished.

        Returns:
            What was made of each unit.

        Raises:
            Checkpointed: asked to stop.
        """
        made = {index: value for start, values in self._read(name) for index, value in enumerate(values, start)}
        self._finished += len(made)
        while missing := [index for index in range(len(units)) if index not in made]:
            progress(len(units) - len(missing))
            self.check_stop()
            start = missing[0]
            count = next(
                (n for n in range(1, self._units) if start + n >= len(units) or start + n in made), self._units
            )
            began = time.monotonic()
            text = json.dumps(work(units[start : start + count], start))
            each = (time.monotonic() - began) / count
            atomic.write_text(self._ctx.work / f"{name}-{start:06d}.json", text)
            made.update(enumerate(json.loads(text), start))
            self._finished += count
            self._units = max(1, min(_GROWTH * count, int(SECONDS / max(each, 1e-6))))
        progress(len(units))
        return [made[index] for index in range(len(units))]

    def _read(self, name: str) -> Iterator[tuple[int, list[Any]]]:
        """Index of the first unit and results of each part that is there; a damaged one has to be done again."""
        pattern = re.compile(re.escape(name) + r"-(\d{6})\.json")
        for path in sorted(self._ctx.work.glob("*.json")):
            if found := pattern.fullmatch(path.name):
                values = _read(path)
                if values is not None:
                    yield int(found[1]), values


def _read(path: Path) -> list[Any] | None:
    try:
        values = json.loads(path.read_text())
    except ValueError:
        return None
    return values if isinstance(values, list) else None
