"""How close generation comes to what a provider allows, and what a request costs in processor time and memory.

python -m bench.generation [kills]

A loopback server in a process of its own answers after 2 s; one stage process asks it, 64 requests in flight, about
images of 448 x 448 pixels, with prices and a budget, so that every request is booked on the disk. Ideal: 64 answers
every 2 s, from the first request to the last answer. A refusal (429 at once, without Retry-After) takes none of that
time, so the ideal with 10 % refusals is the same. Processor time is the whole stage's, less what it takes with no
question to ask.

`kills`: instead, 5,000 questions over 4 shards that are killed 50 times, and what the server charged for them.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tests.support import jobs_fixtures, kill_run
from tests.support.chat_server import serving
from tests.support.generate_fixtures import PRICES, QUESTION_USD, asked, ledgers
from tests.support.light_forkserver import light_forkserver

from medgr2_api.stage_contract import REQUEST_ENV, SECRETS_ENV, WORKSPACE_ENV
from medgr2_jobs.store.images import ImageStore
from medgr2_jobs.store.rows import Split
from medgr2_jobs.store.rows.candidates import Candidate
from medgr2_jobs.store.rows.prepared import Image as ImageRow

CONCURRENCY, SECONDS, ROUNDS, PICTURES = 64, 2.0, 30, 24
ROWS, KILLS, SHARDS = 5000, 50, 4


@contextmanager
def provider(scratch: Path, refused: float) -> Iterator[str]:
    """The address of a running server."""
    port = scratch / "port"
    port.unlink(missing_ok=True)
    server = subprocess.Popen([sys.executable, "-m", "bench._provider", str(port), str(SECONDS), str(refused)])
    try:
        while not port.exists():
            assert server.poll() is None
            time.sleep(0.05)
        yield f"http://127.0.0.1:{port.read_text()}"
    finally:
        server.kill()
        server.wait()


def pictures(root: Path) -> jobs_fixtures.Prepared:
    """Training images of 448 x 448 pixels, half noise, about 300 KiB each: larger than most."""
    noise, store = np.random.default_rng(0), ImageStore(root)
    rows = []
    for _ in range(PICTURES):
        pixels = noise.integers(0, 255, (448, 448, 3), np.uint8)
        pixels[:224] //= 64
        sha256 = store.add(Image.fromarray(pixels), 10**6).sha256
        rows.append(ImageRow(sha256, 448, 448, "CT", "seed", "", Split.TRAIN, True, "", "", ""))
    return jobs_fixtures.Prepared(rows, [], [])


def run(root: Path, kind: str, url: str, candidates: int) -> Any:
    """Runs the stage in a process of its own; what the kernel says it used."""
    made = asked(
        root,
        url + ("/v1" if kind == "openAI" else ""),
        kind=kind,
        candidates=candidates,
        concurrency=CONCURRENCY,
        prepared=pictures(root),
        about={"prices": PRICES, "external": True},
        generator_budget_usd=1000.0,
    )
    environment = {**os.environ, REQUEST_ENV: json.dumps(made.dump()), WORKSPACE_ENV: str(root)}
    process = subprocess.Popen([sys.executable, "-m", "medgr2_jobs.runner.main"], env=environment)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return used


def throughput(scratch: Path, kind: str, refused: float) -> dict[str, float]:
    """Share of the ideal, milliseconds of processor a request, peak MiB."""
    candidates = CONCURRENCY * ROUNDS
    with provider(scratch, refused) as url:
        idle = run(scratch / f"{kind}-{refused}-idle", kind, url, 0)
        used = run(scratch / f"{kind}-{refused}", kind, url, candidates)
        seen = json.loads(urllib.request.urlopen(f"{url}/seen").read())
    requests = seen["answers"] + seen["refusals"]
    busy = used.ru_utime + used.ru_stime - idle.ru_utime - idle.ru_stime
    ideal = math.ceil(candidates / CONCURRENCY) * SECONDS
    return {
        "share_of_ideal": round(ideal / (seen["last"] - seen["first"]), 3),
        "cpu_ms_per_request": round(1000 * busy / requests, 2),
        "peak_rss_mib": used.ru_maxrss // 1024,
        "refused": round(seen["refusals"] / requests, 3),
    }


def killed(scratch: Path) -> dict[str, float]:
    """What was charged for questions of shards that were killed again and again."""
    root = scratch / "killed"
    root.mkdir()
    with serving() as server, light_forkserver(root) as stages:
        ran = kill_run.run(root, server, stages, rows=ROWS, kills=KILLS, shards=SHARDS)
    assert not ran.failures, ran.failures
    paid, hanging = (sum(both) for both in zip(*ledgers(root, ran.requests[0]).values(), strict=True))
    charged = server.ledger.charged.total()
    rows = jobs_fixtures.reader(root, ran.requests[0]).rows(Candidate)
    return {
        "rows": len(rows),
        "kills": ran.kills,
        "charged_requests": charged,
        "charged_usd": round(charged * QUESTION_USD, 4),
        "ledger_usd": round(paid + hanging, 4),
        "first_budget_usd": ran.first_budget,
        "charged_usd_when_it_was_spent": round(ran.charged_at_first_budget, 4),
        "seconds": round(ran.seconds, 1),
    }


def main() -> None:
    """Prints one line of JSON."""
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        secret = scratch / "secrets" / "provider" / "key"
        secret.parent.mkdir(parents=True)
        secret.write_text("sk-of-the-bench")
        os.environ |= {SECRETS_ENV: str(scratch / "secrets"), "NO_PROXY": "127.0.0.1"}
        figures: dict[str, float] = {}
        if sys.argv[1:] == ["kills"]:
            figures, count = killed(scratch), ROWS
        else:
            count = CONCURRENCY * ROUNDS
            for kind, refused in (("openAI", 0.0), ("openAI", 0.1), ("gemini", 0.0), ("gemini", 0.1)):
                found = throughput(scratch, kind, refused)
                print(kind, refused, found)
                figures |= {f"{kind}_{round(100 * refused)}_{key}": value for key, value in found.items()}
    print(json.dumps({"name": "generation", "figures": figures, "n": count, "cores": os.cpu_count()}))


if __name__ == "__main__":
    main()
