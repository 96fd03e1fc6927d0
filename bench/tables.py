"""How many bytes of parquet stages curate and report publish, iteration by iteration.

    make bench NAME=tables        # about a minute

Twenty iterations of 50,000 candidates each, of which four in ten are kept: shapes only, the rows are made up. `joined`
is what the product writes, through its own writers: a decision per candidate, by its id; the training set D_gen and the
lineage are joins made when they are read. `copied` are tables that hold the same as copies: in every iteration D_gen
and the lineage of all candidates so far (curate), and the lineage once more with the checkpoints that learnt from each
(report). What stages generate and score publish is the same in both and not counted.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bench.curation import MODALITIES, Maker
from medgr2_api.stage_contract import CycleRef, StageRequest
from medgr2_api.stages import definition
from medgr2_jobs.store.artifact import ArtifactWriter
from medgr2_jobs.store.rows import TableRow
from medgr2_jobs.store.rows.candidates import Decision

_KEPT = 0.4
_QUESTIONS_PER_IMAGE = 5
_REASONS = ("below_threshold", "duplicate", "near_duplicate", "outcome:wrong_option_count")

_TEXTS = pa.list_(pa.string())
_TRAINING = pa.schema(
    [(name, pa.string()) for name in ("row_id", "origin", "image_sha256", "modality", "question_type", "question")]
    + [("options", _TEXTS), ("answer_index", pa.int64()), ("response", pa.string()), ("score", pa.float64())]
)
_LINEAGE = pa.schema(
    [(name, pa.string()) for name in ("triplet_id", "image_sha256", "question", "paradigm", "template_sha256",
                                      "generator", "reward_digest")]
    + [("iteration", pa.int64()), ("score", pa.float64()), ("keep", pa.bool_()), ("reasons", _TEXTS)]
)  # fmt: skip
_DECISIONS = pa.schema(
    [("triplet_id", pa.string()), ("keep", pa.bool_()), ("score", pa.float64()), ("reasons", _TEXTS)]
)


@dataclass(frozen=True)
class Iteration:
    """What curate says of an iteration's candidates, and the copies of it."""

    number: int
    decisions: list[Decision]
    scores: list[float]
    training: pa.Table
    """Its kept candidates."""
    lineage: pa.Table
    """All its candidates."""


def made_up(number: int, count: int) -> Iteration:
    """An iteration of `count` candidates."""
    maker, dice = Maker(number), random.Random(number)
    decisions, scores, kept, candidates = [], [], [], []
    reward, template = f"{number:064x}", f"{dice.getrandbits(256):064x}"
    images = [f"{dice.getrandbits(256):064x}" for _ in range(-(-count // _QUESTIONS_PER_IMAGE))]
    for place in range(count):
        image, question = images[place // _QUESTIONS_PER_IMAGE], maker.question()
        name = f"t{number:03d}-{place // _QUESTIONS_PER_IMAGE:06d}-{place % _QUESTIONS_PER_IMAGE:02d}"
        keep, score = dice.random() < _KEPT, dice.gauss(3.0, 3.0)
        reasons = () if keep else (dice.choice(_REASONS),)
        order = tuple(dice.sample(range(4), 4)) if keep else None
        decisions.append(Decision(name, keep, reasons, order))
        scores.append(score)
        shared = {"image_sha256": image, "question": question["question"], "score": score}
        candidates.append({**shared, "triplet_id": name, "iteration": number, "paradigm": "MetaCognitive",
                           "template_sha256": template, "generator": "gemini-3-flash", "reward_digest": reward,
                           "keep": keep, "reasons": reasons})  # fmt: skip
        if keep:
            answer = question["options"][question["answer_index"]]
            response = f"<think>The image shows {answer}: {question['question']}</think><answer>A</answer>"
            kept.append({**shared, "row_id": name, "origin": "generated", "modality": dice.choice(MODALITIES),
                         "question_type": "Diagnosis", "options": question["options"],
                         "answer_index": question["answer_index"], "response": response})  # fmt: skip
    return Iteration(
        number,
        decisions,
        scores,
        pa.Table.from_pylist(kept, _TRAINING),
        pa.Table.from_pylist(candidates, _LINEAGE),
    )


def joined(root: Path, iteration: Iteration) -> int:
    """Bytes that the product publishes: every table that curate and report are said to publish, by its own writer."""
    rows: dict[type[TableRow], list[Decision]] = {Decision: iteration.decisions}
    tables = {
        part for stage in ("curate", "report") for part in definition(stage).publishes if part.endswith(".parquet")
    }
    if tables != {f"{kind.TABLE}.parquet" for kind in rows}:
        raise SystemExit(f"curate and report publish {sorted(tables)}: measure all of them here")
    request = StageRequest(
        cycle=CycleRef(name="bench", uid="u"), iteration=iteration.number, stage="curate",
        input_hash=f"{iteration.number:064x}", parameters={},
    )  # fmt: skip
    writer = ArtifactWriter(root, request)
    writer.open()
    for kind, table in rows.items():
        writer.table(kind, table)
    return sum(part.bytes for part in writer.parts())


class Copies:
    """The copies so far, as files; each iteration is a row group of those that follow."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._parts: list[Path] = []
        self._keeps: list[np.ndarray] = []

    def publish(self, iteration: Iteration) -> int:
        """Bytes of the copies that hold everything up to this iteration."""
        part = self._folder / f"part-{iteration.number}"
        part.mkdir()
        self._parts.append(part)
        self._keeps.append(np.array([row.keep for row in iteration.decisions]))
        _write(part / "training", [iteration.training])
        _write(part / "lineage", [iteration.lineage])
        decisions = pa.Table.from_pylist(
            [
                {"triplet_id": row.triplet_id, "keep": row.keep, "score": score, "reasons": row.reasons}
                for row, score in zip(iteration.decisions, iteration.scores, strict=True)
            ],
            _DECISIONS,
        )
        whole = self._folder / "whole"
        return (
            _write(whole, [decisions])
            + _write(whole, (pq.read_table(part / "training") for part in self._parts))
            + _write(whole, (pq.read_table(part / "lineage") for part in self._parts))
            + _write(whole, self._with_learners())
        )

    def _with_learners(self) -> Iterator[pa.Table]:
        """The lineage with the checkpoints that learnt from each candidate."""
        newest = len(self._parts)
        for number, (part, keep) in enumerate(zip(self._parts, self._keeps, strict=True), 1):
            names = [f"{stage}@{t}" for t in range(number, newest + 1) for stage in ("sft", "grpo")]
            offsets = np.concatenate([[0], np.cumsum(keep * len(names))])
            values = pa.array(names).take(pa.array(np.tile(np.arange(len(names)), int(keep.sum()))))
            learners = pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), values)
            yield pq.read_table(part / "lineage").append_column("seen_by", learners)


def _write(path: Path, pieces: Iterator[pa.Table] | list[pa.Table]) -> int:
    """Writes a table, a row group per piece; returns its bytes."""
    writer = None
    for piece in pieces:
        writer = writer or pq.ParquetWriter(path, piece.schema, compression="zstd")
        writer.write_table(piece)
    assert writer is not None
    writer.close()
    return path.stat().st_size


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--iterations", type=int, default=20)
    parser.add_argument("--candidates", type=int, default=50_000)
    asked = parser.parse_args()
    new, old = [], []
    with tempfile.TemporaryDirectory(prefix="medgr2-bench-") as folder:
        root = Path(folder)
        copies = Copies(root)
        for number in range(1, asked.iterations + 1):
            iteration = made_up(number, asked.candidates)
            new.append(joined(root, iteration))
            old.append(copies.publish(iteration))
            print(f"iteration {number}: joined {new[-1]:,} bytes, copied {old[-1]:,}", file=sys.stderr, flush=True)
    mib = {name: [round(size / 2**20, 2) for size in sizes] for name, sizes in (("joined", new), ("copied", old))}
    figures = {
        **{
            f"{name}_mib": {"first": sizes[0], "last": sizes[-1], "all": round(sum(sizes), 1)}
            for name, sizes in mib.items()
        },
        "joined_last_per_first": round(new[-1] / new[0], 2),
        "copied_last_per_first": round(old[-1] / old[0], 2),
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }
    print(
        json.dumps(
            {"name": "tables", "figures": figures, "n": asked.iterations * asked.candidates, "cores": os.cpu_count()}
        )
    )


if __name__ == "__main__":
    main()
