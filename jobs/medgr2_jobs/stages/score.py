"""Stage `score`: r(x) for every candidate (Algorithm 1, line 2), in shards that never split an image's rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from medgr2_api.stage_contract import Shard
from medgr2_api.stages.score import ScoreParameters

from ..errors import CorruptArtifact
from ..models import vlm
from ..reward.model import RewardModel
from ..reward.scorer import score
from ..runner.context import Outcome, StageContext
from ..store import legacy_tables as tables
from .reward import graded_row

#: Rows of one part: what a `kill -9` may cost. A part ends with the image that fills it.
PART_ROWS = 512

Candidate = Mapping[str, Any]


def run(ctx: StageContext[ScoreParameters]) -> Outcome:
    """Scores this shard's candidates; goes on from the parts that an earlier attempt finished.

    Reads `candidates` and `reward`; publishes table `scores` in candidate order. Only candidates whose outcome is
    "ok" are scored.

    Raises:
        ConfigError: the reward model's folder is incomplete.
        Checkpointed: asked to stop; the finished parts are on the volume.
    """
    candidates = [row for row in ctx.input("candidates").rows("candidates") if row["outcome"] == "ok"]
    mine = shard_of(candidates, ctx.request.shard)
    parts = _parts(mine)
    paths = [ctx.work / f"scores-{index:05d}.parquet" for index in range(len(parts))]
    found = [_finished(path, part) for path, part in zip(paths, parts, strict=True)]

    done = sum(len(scores) for scores in found if scores is not None)
    if None in found:
        folder = ctx.input("reward").folder_of("model")
        model = RewardModel.load(folder)
        encoder = vlm.Encoder(vlm.load_processor(folder), ctx.images)
        for index, (path, part) in enumerate(zip(paths, parts, strict=True)):
            if found[index] is not None:
                continue
            ctx.check_stop(sum(scores is not None for scores in found))
            values = score(model, encoder, [graded_row(row, ctx.parameters.answer_format) for row in part])
            found[index] = {row["triplet_id"]: value for row, value in zip(part, values.tolist(), strict=True)}
            tables.write(path, "scores", _rows(part, found[index] or {}))
            done += len(part)
            ctx.progress("score", done, len(mine))

    scores = {key: value for part in found for key, value in (part or {}).items()}
    ctx.writer.table("scores", _rows(mine, scores))
    return Outcome(counters=_counters(list(scores.values()), len(candidates)))


def shard_of(candidates: Sequence[Candidate], shard: Shard) -> list[Candidate]:
    """This shard's candidates, in candidate order: a contiguous run of images, about an equal share of rows."""
    groups = _by_image(candidates)
    chosen: set[str] = set()
    before = 0
    for image, rows in groups.items():
        if before * shard.count // len(candidates) == shard.index:
            chosen.add(image)
        before += len(rows)
    return [row for row in candidates if row["image_sha256"] in chosen]


def _by_image(candidates: Sequence[Candidate]) -> dict[str, list[Candidate]]:
    """Candidates of each image, in the order in which the images first occur."""
    groups: dict[str, list[Candidate]] = {}
    for row in candidates:
        groups.setdefault(row["image_sha256"], []).append(row)
    return groups


def _parts(candidates: Sequence[Candidate]) -> list[list[Candidate]]:
    """Whole images, at least PART_ROWS rows each but for the last."""
    parts: list[list[Candidate]] = []
    for rows in _by_image(candidates).values():
        if not parts or len(parts[-1]) >= PART_ROWS:
            parts.append([])
        parts[-1] += rows
    return parts


def _finished(path: Path, part: Sequence[Candidate]) -> dict[str, float] | None:
    """What an earlier attempt found for this part; None when it has to be scored."""
    if not path.is_file():
        return None
    try:
        table: pa.Table = tables.read(path, "scores")
    except CorruptArtifact:
        return None
    scores = dict(zip(table["triplet_id"].to_pylist(), table["score"].to_pylist(), strict=True))
    return scores if scores.keys() == {row["triplet_id"] for row in part} else None


def _rows(candidates: Sequence[Candidate], scores: Mapping[str, float]) -> list[dict[str, Any]]:
    return [{"triplet_id": row["triplet_id"], "score": scores[row["triplet_id"]]} for row in candidates]


def _counters(scores: Sequence[float], candidates: int) -> dict[str, float]:
    """Of this shard's scores; `candidates` are all that could be scored, over all shards."""
    counters = {"scored": float(len(scores)), "candidates_ok": float(candidates)}
    if scores:
        counters["mean"] = float(np.mean(scores))
        for percent in (5, 25, 50, 75, 95):
            counters[f"q{percent:02d}"] = float(np.percentile(scores, percent))
    return counters
