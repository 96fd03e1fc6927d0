"""rich's console, with the texts of others as a terminal may show them."""

from __future__ import annotations

import sys
from collections.abc import Iterable

import rich.console
from rich.console import ConsoleOptions, RenderableType
from rich.segment import Segment

from medgr2_api.guarded_streams import raw
from medgr2_api.printable import shown
from medgr2_api.redaction import redact


class Console(rich.console.Console):
    """Writes its own control sequences past the guard of the streams, and cleans what stands between them."""

    def __init__(self) -> None:
        super().__init__(file=raw(sys.stdout))

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(shown(redact(segment.text)), segment.style)
