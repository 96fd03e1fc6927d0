"""Shards of a generate stage that are killed again and again, and what the provider charged for it in the end."""

from __future__ import annotations

import hashlib
import json
import os
import queue
import random
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from medgr2_api.stage_contract import Shard, StageRequest
from medgr2_jobs.generate import journal
from medgr2_jobs.store.artifact import ArtifactWriter
from tests.support.chat_server import Answer, ChatServer
from tests.support.generate_fixtures import PRICES, QUESTION_USD, asked
from tests.support.light_forkserver import LightForkserver

#: Above what a question may cost at most.
ROOM = 0.006


@dataclass
class KillReport:
    """What happened."""

    requests: list[StageRequest]
    kills: int = 0
    spent_out: int = 0
    """Shards that stopped at the first budget."""
    charged_at_first_budget: float = 0.0
    first_budget: float = 0.0
    last_budget: float = 0.0
    seconds: float = 0.0
    failures: list[str] = field(default_factory=list)
    finished: dict[int, int] = field(default_factory=dict)
    """Sampling seed of each row that a kill found finished in the journal → how often it had been charged by then."""


def run(
    root: Path, server: ChatServer, forkserver: LightForkserver, *, rows: int, kills: int, shards: int = 4
) -> KillReport:
    """Runs the shards to their end: `kills` times one of them is killed, and the first budget does not suffice.

    Kills come when a random number of answers has been given, and a random moment later.
    """
    concurrency, rng = 8, random.Random(17)
    waits = random.Random(18)
    server.answer = lambda number, body: Answer(delay=waits.uniform(0, 0.02))
    hanging = kills * concurrency * ROOM
    first = rows * QUESTION_USD / 2 + hanging / 4 + shards * ROOM
    last = rows * QUESTION_USD + 2 * (hanging + shards * concurrency * ROOM) + rows * QUESTION_USD
    requests = [
        asked(
            root,
            server.url,
            candidates=rows,
            concurrency=concurrency,
            about={"prices": PRICES},
            shards=shards,
            shard=Shard(index=index, count=shards),
            generator_budget_usd=first,
        )
        for index in range(shards)
    ]
    report = KillReport(requests, first_budget=first, last_budget=last)
    pids: dict[int, int] = {}
    attempts = [0] * shards
    open_shards = set(range(shards))
    waiting: set[int] = set()
    moments = sorted(rng.sample(range(rows // 50, rows - rows // 50), kills))
    began = time.monotonic()

    def start(index: int) -> None:
        attempts[index] += 1
        request = requests[index].model_copy(update={"attempt": attempts[index]})
        forkserver.start(f"s{index}-a{attempts[index]}", request)

    def restart(index: int) -> None:
        folder = ArtifactWriter(root, requests[index]).shared
        for triplet in finished_rows(folder / journal.NAME):
            seed = sampling_seed(requests[index].parameters["seed"], triplet)
            report.finished.setdefault(seed, server.ledger.charged[seed])
        start(index)

    for index in range(shards):
        start(index)
    while open_shards:
        _events(forkserver, pids, report, open_shards, waiting, restart)
        if waiting and waiting == open_shards:
            report.charged_at_first_budget = server.ledger.charged.total() * QUESTION_USD
            requests = [one.model_copy(update={"generator_budget_usd": last}) for one in requests]
            waiting.clear()
            for index in sorted(open_shards):
                start(index)
        if report.kills < kills and pids and len(server.ledger.charged) >= moments[report.kills]:
            time.sleep(rng.uniform(0, 0.02))
            with suppress(ProcessLookupError):  # it has just ended by itself: another one is killed
                os.kill(pids.pop(rng.choice(sorted(pids))), signal.SIGKILL)
                report.kills += 1
    report.requests = requests
    report.seconds = time.monotonic() - began
    return report


def _events(
    forkserver: LightForkserver,
    pids: dict[int, int],
    report: KillReport,
    open_shards: set[int],
    waiting: set[int],
    restart: Callable[[int], None],
) -> None:
    """Takes note of one start or end, if there is any within a moment."""
    try:
        event = forkserver.events.get(timeout=0.005)
    except queue.Empty:  # nothing started or ended meanwhile
        return
    index = int(event["id"].split("-")[0][1:])
    if "pid" in event:
        pids[index] = event["pid"]
        return
    pids.pop(index, None)
    code = event["exitCode"]
    if code == 0:
        open_shards.discard(index)
    elif code == 75:
        report.spent_out += 1
        waiting.add(index)
    elif code == 128 + signal.SIGKILL:
        restart(index)
    else:
        report.failures.append(forkserver.log(event["id"]))
        open_shards.discard(index)


def finished_rows(path: Path) -> list[str]:
    """Triplet ids of the rows in a journal whose writer was killed: its last line may be torn."""
    lines = path.read_bytes().split(b"\n")[:-1] if path.is_file() else []
    return [str(document["triplet_id"]) for line in lines if "outcome" in (document := json.loads(line))]


def sampling_seed(seed: int, triplet_id: str) -> int:
    """The sampling seed that a row's question is sent with: the server knows it by that."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{triplet_id}".encode()).digest()[:4], "big") >> 1
