"""A stage for the contract's tests, run as a process of its own with arguments BEHAVIOUR [CRASH_POINT].

It stands in for stage score. CRASH_POINT names a moment of the publish sequence at which the process kills itself.
"""

from __future__ import annotations

import os
import signal
import sys
import time

from medgr2_jobs.errors import DataError
from medgr2_jobs.runner import main as runner
from medgr2_jobs.runner import publishing
from medgr2_jobs.runner.context import StageContext, StageOutcome
from medgr2_jobs.store import atomic, manifest
from medgr2_jobs.store.artifact import ArtifactWriter
from medgr2_jobs.store.rows.candidates import Score
from tests.support.stage_registry import run_instead

PARTS = 8


def parts(ctx: StageContext) -> StageOutcome:
    """Several parts, a checkpoint, a table: the same whatever happened before."""
    (ctx.work / "checkpoint").write_text("here")
    for number in range(PARTS):
        ctx.progress("write", number, PARTS)
        ctx.writer.path(f"model/part-{number}.bin").write_bytes(bytes([number]) * 50_000)
        ctx.writer.path("log.txt", digested=False).write_text(str(time.time()))
        time.sleep(0.01)
        ctx.check_stop(number)
    rows = ctx.writer.table(Score, [Score(f"t{number}", number / 7) for number in range(100)])
    return StageOutcome(counters={"rows": rows, "diverged": float("nan")}, usage={"gpuSeconds": 1.5})


def wait(ctx: StageContext) -> StageOutcome:
    """Runs until it is asked to stop; says so when it is ready."""
    (ctx.root / "ready").touch()
    for step in range(10_000):
        ctx.check_stop(step)
        time.sleep(0.01)
    return StageOutcome()


def gate(ctx: StageContext) -> StageOutcome:
    """Waits for a file before it ends."""
    (ctx.root / "ready").touch()
    while not (ctx.root / "go").exists():
        time.sleep(0.01)
    return parts(ctx)


def fill(ctx: StageContext) -> StageOutcome:
    """More than the disk holds."""
    with ctx.writer.path("big.bin").open("wb") as stream:
        for _ in range(64):
            stream.write(os.urandom(65_536))
    return StageOutcome()


def fill_table(ctx: StageContext) -> StageOutcome:
    """More than the disk holds, through parquet."""
    ctx.writer.table(Score, [Score(os.urandom(64).hex(), 0.0) for _ in range(40_000)])
    return StageOutcome()


def bad(ctx: StageContext) -> StageOutcome:
    """Fails as any code may."""
    ctx.writer.path("half.bin").write_bytes(b"half")
    raise RuntimeError("out of ideas\nand of lines")


def leave(ctx: StageContext) -> StageOutcome:
    """A library that ends the process as if all were well."""
    sys.exit(0)


def refuse(ctx: StageContext) -> StageOutcome:
    """Bad data; a very long story."""
    raise DataError("file.jsonl, row 7, field answer: " + "é" * 5000)


def run(ctx: StageContext) -> StageOutcome:
    """The stage: whatever was asked for."""
    behaviour = globals()[sys.argv[1]]
    outcome: StageOutcome = behaviour(ctx)
    return outcome


def crash_at(point: str) -> None:
    """Arms a SIGKILL before or after one step of the publish sequence."""
    when, _, name = point.partition(":")
    owner, attribute = {
        "fsync": (atomic, "fsync_tree"),
        "parts": (ArtifactWriter, "parts"),
        "commit": (manifest, "commit"),
        "link": (atomic, "create_text"),
        "clean": (ArtifactWriter, "clean"),
        "iteration-link": (publishing, "link"),
        "result": (runner, "write_result"),
    }[name]
    original = getattr(owner, attribute)

    def deadly(*args: object, **kwargs: object) -> object:
        if when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        original(*args, **kwargs)
        os.kill(os.getpid(), signal.SIGKILL)
        return None

    setattr(owner, attribute, deadly)


def main() -> int:
    """Entry point."""
    run_instead(__name__, ["score"], ["model/", "log.txt", "scores.parquet", "big.bin"])
    if len(sys.argv) > 2:
        crash_at(sys.argv[2])
    return runner.main()
