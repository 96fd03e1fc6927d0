"""Stage `score`: r(x) for every candidate (Algorithm 1, line 2), in shards that never split an image's rows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from medgr2_api.stage_contract import Shard
from medgr2_api.stages.score import ScoreParameters

from ..errors import CorruptArtifact
from ..models import vlm
from ..reward.model import RewardModel
from ..reward.scorer import answer_row, score
from ..runner.context import StageContext, StageOutcome
from ..store import tables
from ..store.rows.candidates import Candidate, Score, Triplet, triplet_of

#: Rows of one part: what a `kill -9` may cost. A part ends with the image that fills it.
PART_ROWS = 512


def run(ctx: StageContext[ScoreParameters]) -> StageOutcome:
    """Scores this shard's candidates; goes on from the parts that an earlier attempt finished.

    Reads `candidates` and `reward`; publishes table `scores` in candidate order. Only candidates that hold a triplet
    are scored.

    Raises:
        ConfigError: the reward model's folder is incomplete.
        Checkpointed: asked to stop; the finished parts are on the volume.
    """
    triplets = [triplet for row in ctx.input("candidates").rows(Candidate) if (triplet := triplet_of(row))]
    mine = shard_of(triplets, ctx.request.shard)
    parts = _parts(mine)
    paths = [ctx.work / f"scores-{index:05d}.parquet" for index in range(len(parts))]
    results = [_finished(path, part) for path, part in zip(paths, parts, strict=True)]

    done = sum(len(scores) for scores in results if scores is not None)
    if None in results:
        folder = ctx.input("reward").folder_of("model")
        model = RewardModel.load(folder)
        encoder = vlm.Encoder(vlm.load_processor(folder), ctx.images)
        for index, (path, part) in enumerate(zip(paths, parts, strict=True)):
            if results[index] is not None:
                continue
            ctx.check_stop(sum(scores is not None for scores in results))
            values = score(model, encoder, [answer_row(row, ctx.parameters.answer_format) for row in part])
            rows = [Score(row.triplet_id, value) for row, value in zip(part, values.tolist(), strict=True)]
            tables.write(path, Score, rows)
            results[index] = rows
            done += len(part)
            ctx.progress("score", done, len(mine))

    scores = {row.triplet_id: row for part in results for row in part or ()}
    ctx.writer.table(Score, [scores[row.triplet_id] for row in mine])
    return StageOutcome(counters=_counters([row.score for row in scores.values()], len(triplets)))


def shard_of(triplets: Sequence[Triplet], shard: Shard) -> list[Triplet]:
    """This shard's triplets, in candidate order: a contiguous run of images, about an equal share of rows."""
    groups = _by_image(triplets)
    chosen: set[str] = set()
    before = 0
    for image, rows in groups.items():
        if before * shard.count // len(triplets) == shard.index:
            chosen.add(image)
        before += len(rows)
    return [row for row in triplets if row.image_sha256 in chosen]


def _by_image(triplets: Sequence[Triplet]) -> dict[str, list[Triplet]]:
    """Triplets of each image, in the order in which the images first occur."""
    groups: dict[str, list[Triplet]] = {}
    for row in triplets:
        groups.setdefault(row.image_sha256, []).append(row)
    return groups


def _parts(triplets: Sequence[Triplet]) -> list[list[Triplet]]:
    """Whole images, at least PART_ROWS rows each but for the last."""
    parts: list[list[Triplet]] = []
    for rows in _by_image(triplets).values():
        if not parts or len(parts[-1]) >= PART_ROWS:
            parts.append([])
        parts[-1] += rows
    return parts


def _finished(path: Path, part: Sequence[Triplet]) -> list[Score] | None:
    """The scores that an earlier attempt gave to this part; None when it has to be scored."""
    if not path.is_file():
        return None
    try:
        rows = tables.read(path, Score)
    except CorruptArtifact:
        return None
    return rows if {row.triplet_id for row in rows} == {row.triplet_id for row in part} else None


def _counters(scores: Sequence[float], candidates: int) -> dict[str, float]:
    """Of this shard's scores; `candidates` are all that could be scored, over all shards."""
    counters = {"scored": float(len(scores)), "candidates_ok": float(candidates)}
    if scores:
        counters["mean"] = float(np.mean(scores))
        for percent in (5, 25, 50, 75, 95):
            counters[f"q{percent:02d}"] = float(np.percentile(scores, percent))
    return counters
