"""The real forkserver and the real stage contract around stages that take milliseconds.

For tests of the executor only: what a stage computes is replaced, how it is asked, stopped, killed, published and
restarted is not. Each fake keeps a ledger of its starts and ends and refuses to run beside another writer of its stage.
"""

from __future__ import annotations

import fcntl
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from medgr2_api.stages import stage_names
from medgr2_jobs.errors import DataError
from medgr2_jobs.runner import forkserver
from medgr2_jobs.runner.context import StageContext, StageOutcome
from tests.support.stage_registry import run_instead

STEPS = 6
#: Starts it, wherever one is.
COMMAND = (
    sys.executable,
    "-c",
    f"import sys; sys.path.insert(0, {str(Path(__file__).parents[2])!r}); "
    "from tests.support import fake_forkserver; sys.exit(fake_forkserver.main())",
)


def run(ctx: StageContext[Any]) -> StageOutcome:
    """Counts to STEPS with a checkpoint after each, then publishes a text made of its parameters and inputs."""
    request = ctx.request
    name = f"{request.stage}@{request.iteration}"
    folder = ctx.root / "test"
    folder.mkdir(exist_ok=True)
    fault = folder / f"fail-{name}"
    if fault.exists():
        raise DataError(f"{fault}: {fault.read_text()}")
    with (folder / f"{request.cycle.name}-{name}-s{request.shard.index}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # a second writer of this stage would fail here
        _note(folder, "start", name, request.token, request.attempt)
        checkpoint = ctx.work / "step"
        done = int(checkpoint.read_text()) if checkpoint.exists() else 0
        for step in range(done, STEPS):
            ctx.progress("counting", step, STEPS, loss=1.0 / (step + 1))
            time.sleep(float(os.environ.get("FAKE_STEP_SECONDS", "0.01")))
            temporary = checkpoint.with_suffix(".tmp")
            temporary.write_text(str(step + 1))
            temporary.replace(checkpoint)
            ctx.check_stop(step + 1)
        text = json.dumps([request.parameters, {k: v.output_digest for k, v in sorted(request.inputs.items())}])
        ctx.writer.path("out.txt").write_text(f"{name} {request.shard.index} {text}")
        _note(folder, "end", name, request.token, request.attempt)
    counters = {}
    if request.stage == "measure":
        checkpoints = ["base"] if request.iteration == 0 else ["sft", *["grpo"] * ctx.has_input("evaluategrpo")]
        counters = {f"validation/{c}/macroAccuracy": 0.25 + 0.2 * request.iteration for c in checkpoints}
    return StageOutcome(counters=counters)


def _note(folder: Path, what: str, name: str, token: str, attempt: int) -> None:
    with (folder / "ledger.jsonl").open("a") as ledger:
        ledger.write(
            json.dumps({"what": what, "stage": name, "token": token, "attempt": attempt, "pid": os.getpid()}) + "\n"
        )


def main() -> int:
    """Like `medgr2_jobs.runner.forkserver.main`, without the heavy imports."""
    sys.modules["fake_stage"] = sys.modules[__name__]
    run_instead("fake_stage", stage_names(), ["out.txt"])
    forkserver.PRELOAD = ("medgr2_jobs.runner.main",)
    return forkserver.main()
