"""The real forkserver and a real stage generate; of all other stages a fake one that notes when it runs."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from medgr2_api.stages import stage_names
from medgr2_jobs.runner import forkserver
from medgr2_jobs.runner.context import StageContext, StageOutcome
from medgr2_operator.cli import app
from medgr2_operator.local import runner
from tests.support import jobs_fixtures
from tests.support.stage_registry import run_instead

ROOT = Path(__file__).parents[2]
_HERE = f"import sys; sys.path.insert(1, {str(ROOT)!r}); from tests.support import half_fake_forkserver as here; "
#: Start the forkserver and `medgr2`, wherever one is.
COMMAND = (sys.executable, "-c", _HERE + "sys.exit(here.main())")
MEDGR2 = (sys.executable, "-c", _HERE + "here.medgr2()")
RAN = "ran.jsonl"
PREPARED = ("images.parquet", "image_origins.parquet", "items.parquet", "phantoms.parquet")


def run(ctx: StageContext[Any]) -> StageOutcome:
    """Publishes what generate reads, or next to nothing."""
    with (ctx.root / RAN).open("a") as ran:
        ran.write(json.dumps(f"{ctx.request.stage}@{ctx.request.iteration}") + "\n")
    if ctx.request.stage == "prepare":
        for table, rows in jobs_fixtures.phantoms(ctx.root, {"train": 12}).tables.items():
            ctx.writer.table(table, rows)
    ctx.writer.path("out.txt").write_text(ctx.request.input_hash)
    return StageOutcome()


def main() -> int:
    """Like `medgr2_jobs.runner.forkserver.main`."""
    sys.modules["fake_stage"] = sys.modules[__name__]
    fakes = [name for name in stage_names() if name != "generate"]
    run_instead("fake_stage", fakes, ["out.txt", *PREPARED])
    forkserver.PRELOAD = ("medgr2_jobs.runner.main", "medgr2_jobs.stages.generate")
    return forkserver.main()


def medgr2() -> None:
    """`medgr2` with this forkserver."""
    runner.Runner.__init__.__kwdefaults__["command"] = COMMAND  # type: ignore[index]
    app.main()
