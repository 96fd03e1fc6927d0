"""Where each candidate came from, what became of it, and which models learnt from it.

`python -m medgr2_jobs.report.lineage CYCLE TRIPLET` prints one candidate's story as JSON. Read-only and without torch.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from medgr2_api import paths
from medgr2_api.stage_contract import WORKSPACE_ENV, ExitCode
from medgr2_api.training_spec import AnswerFormat

from ..errors import ConfigError, StageError
from ..prompts import answers
from ..store.artifact import ArtifactReader, Inputs
from .cycle_artifacts import CycleArtifacts, NotThere

Row = dict[str, Any]


def lineage_rows(inputs: Inputs, last: int, only: str = "") -> list[Row]:
    """Every candidate so far, and which checkpoints learnt from it.

    `sft@t` has seen what is in D_gen of iteration t. `grpo@t` starts from it, and has also seen the candidates whose
    questions were prompts of its rollouts (of a rejected one the question and the image, not the answer).

    Args:
        inputs: `curate-t`, and where they are there `sft-t`, `grpo-t` and `generate-t`.
        last: newest iteration.
        only: a triplet id: no other candidate.
    """
    newest: list[Row] = []
    seen: dict[str, list[str]] = {}
    for t in range(last + 1):
        if not inputs.has_input(f"curate-{t}"):
            continue
        curate = inputs.input(f"curate-{t}")
        newest = _rows(curate, "lineage", only)  # holds those of the iterations before
        learnt = set(_table(curate, "training", "row_id", only).column("row_id").to_pylist())
        if inputs.has_input(f"sft-{t}"):
            for name in learnt:
                seen.setdefault(name, []).append(f"sft@{t}")
        if inputs.has_input(f"grpo-{t}"):
            for name in learnt | _prompted(inputs, t, only):
                seen.setdefault(name, []).append(f"grpo@{t}")
    return [{**row, "seen_by": seen.get(row["triplet_id"], [])} for row in newest]


def _prompted(inputs: Inputs, iteration: int, only: str) -> set[str]:
    """Candidates of an iteration whose questions GRPO sampled from; empty when that cannot be known."""
    grpo = inputs.input(f"grpo-{iteration}")
    role = f"generate-{iteration}"
    if not inputs.has_input(role) or not grpo.has("rollouts.parquet"):
        return set()
    prompts = set(grpo.table("rollouts").column("prompt_id").to_pylist())
    answer_format = AnswerFormat(grpo.manifest.parameters["answerFormat"])
    return {
        row["triplet_id"]
        for row in _rows(inputs.input(role), "candidates", only)
        if answers.Prompt(
            row["image_sha256"], answers.prompt_text(row["question"], row["options"], answer_format)
        ).prompt_id
        in prompts
    }


def _table(reader: ArtifactReader, name: str, column: str, only: str) -> Any:
    """A table; of one row's id only that row: a cycle may have a million."""
    import pyarrow.compute

    table = reader.table(name)
    return table.filter(pyarrow.compute.field(column) == only) if only else table


def _rows(reader: ArtifactReader, name: str, only: str) -> list[Row]:
    rows: list[Row] = _table(reader, name, "triplet_id", only).to_pylist()
    return rows


def story(root: Path, cycle: str, triplet: str) -> Row:
    """All that is known of a candidate, as JSON; what has not happened yet is null.

    Raises:
        NotThere: no such cycle or candidate.
        CorruptArtifact: an artifact is damaged.
    """
    made = CycleArtifacts(root, cycle)
    asked = next((row for t in range(made.last + 1) if (row := _candidate(made, t, triplet))), None)
    told = next(iter(lineage_rows(made, made.last, triplet)), None)
    known = {**(told or {}), **(asked or {})}
    if not known:
        raise NotThere(f"cycle {cycle!r} has no candidate {triplet!r}; {_which(made)}")
    score = told["score"] if told else _score(made, known["iteration"], triplet)
    scored_by = told["reward_digest"] if told else ""
    return {
        "cycle": cycle,
        "triplet": triplet,
        "iteration": known["iteration"],
        "image": _image(made, known["image_sha256"]),
        "generator": known["generator"],
        "prompt": {"paradigm": known["paradigm"], "templateSha256": known["template_sha256"]},
        "questionType": known.get("question_type"),
        "question": known["question"],
        "options": known.get("options"),
        "answer": _answer(known),
        "rationale": known.get("rationale"),
        "outcome": known.get("outcome"),
        "error": known.get("error") or None,
        "cost": _cost(known),
        "score": score,
        "scoredBy": _reward(made, scored_by),
        "keep": told["keep"] if told else None,
        "reasons": told["reasons"] if told else [],
        "seenBy": told["seen_by"] if told else [],
    }


def _candidate(made: CycleArtifacts, iteration: int, triplet: str) -> Row | None:
    role = f"generate-{iteration}"
    return next(iter(_rows(made.input(role), "candidates", triplet)), None) if made.has_input(role) else None


def _score(made: CycleArtifacts, iteration: int, triplet: str) -> float | None:
    """R's score of a candidate that no curate has seen yet."""
    role = f"score-{iteration}"
    found = _rows(made.input(role), "scores", triplet) if made.has_input(role) else []
    return found[0]["score"] if found else None


def _cost(row: Row) -> Row:
    """What asking for it took; null where nobody counted."""
    return {
        "attempts": row.get("attempts"),
        "inputTokens": row.get("input_tokens"),
        "outputTokens": row.get("output_tokens"),
        "thinkingTokens": row.get("thinking_tokens"),
        "usd": row.get("usd"),
    }


def _answer(row: Row) -> str | None:
    options, index = row.get("options"), row.get("answer_index")
    return options[index] if options and index is not None and 0 <= index < len(options) else None


def _image(made: CycleArtifacts, sha256: str) -> Row:
    import pyarrow.compute

    image: Row = {"sha256": sha256, "path": str(paths.image(sha256))}
    if made.has_input("prepare"):
        table = made.input("prepare").table("images")
        for row in table.filter(pyarrow.compute.field("image_sha256") == sha256).to_pylist():
            image |= {"modality": row["modality"], "source": row["source"], "sourcePath": row["source_path"]}
    return image


def _reward(made: CycleArtifacts, digest: str) -> Row | None:
    """The reward model with this digest; its stage is null when it is not there any more."""
    if not digest:
        return None
    roles = (f"reward-{t}" for t in range(made.last + 1))
    found = next((role for role in roles if made.has_input(role) and made.input(role).digest == digest), None)
    return {"stage": found.replace("-", "@") if found else None, "digest": digest}


def _which(made: CycleArtifacts) -> str:
    """Which candidates there are, for a message."""
    roles = [role for t in range(made.last + 1) if made.has_input(role := f"generate-{t}")]
    names = sorted(name for role in roles for name in made.input(role).table("candidates")["triplet_id"].to_pylist())
    return f"it has {len(names)}, from {names[0]} to {names[-1]}" if names else "nothing has been generated yet"


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="medgr2 lineage", description="The story of one candidate, as JSON.")
    parser.add_argument("cycle")
    parser.add_argument("triplet")
    parser.add_argument("--workspace", type=Path, default=Path(os.environ.get(WORKSPACE_ENV, "/workspace")))
    given = parser.parse_args(arguments)
    try:
        if "/" in given.cycle or given.cycle in ("", ".", ".."):
            raise ConfigError(f"{given.cycle!r} is not the name of a cycle")
        print(json.dumps(story(given.workspace, given.cycle, given.triplet)))
    except StageError as error:
        print(f"medgr2 lineage: {error}", file=sys.stderr)
        return int(error.exit_code)
    return int(ExitCode.OK)


if __name__ == "__main__":
    sys.exit(main())
