"""Where each candidate came from, what became of it, and which models learnt from it: a join made when it is read.

`python -m medgr2_jobs.report.lineage CYCLE [TRIPLET]` prints one candidate's lineage as JSON, or that of all candidates
as JSON lines. Read-only and without torch.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from medgr2_api import command_line, paths
from medgr2_api.stage_contract import WORKSPACE_ENV, ExitCode
from medgr2_api.stages.grpo import GRPOParameters
from medgr2_api.training_spec import AnswerFormat

from ..curate.training_set import Origin, becomes, capped
from ..errors import ConfigError, StageError
from ..prompts import answers
from ..store.rows import TableRow
from ..store.rows.candidates import AnswerPosterior, Candidate, Decision, Score, is_student, triplet_of
from ..store.rows.training import TaughtRow
from .cycle_artifacts import CycleArtifacts, CycleNotFound
from .cycle_frame import CycleFrame
from .students import learnt_from

R = TypeVar("R", bound=TableRow)


@dataclass(frozen=True, slots=True)
class CandidateLineage:
    """A candidate with all that the loop says of it; what has not happened yet is None."""

    triplet_id: str
    iteration: int
    candidate: Candidate | None
    """None: what generate published is not there any more."""
    score: float | None
    scored_by: str
    """Digest of the reward model; empty: nothing is scored in this iteration."""
    decision: Decision | None
    found: AnswerPosterior | None
    """What relabel has found out about its question."""
    becomes: Origin | None
    """What it is in the D_gen that relabel has corrected; None: it is not in it, or it was not asked."""
    seen_by: tuple[str, ...]
    """Checkpoints that learnt from it, such as `sft@1`."""


def lineage(frame: CycleFrame, iteration: int, triplet: str = "") -> Iterator[CandidateLineage]:
    """Every candidate of an iteration, in their order.

    `sft@t` has seen what is in D_gen of iteration t: what was kept in t, and what was kept or rescued before, with the
    answers that were settled since. `grpo@t` starts from it, and has also seen the candidates of t whose questions were
    prompts of its rollouts (of a rejected one the question and the image, not the answer). A student has seen
    the rows that its table says.

    Args:
        frame: the cycle.
        iteration: whose candidates.
        triplet: a triplet id: no other candidate. Empty: all; only what is told of them is kept in memory.
    """
    scores = {row.triplet_id: row.score for row in _rows(frame, "score", iteration, Score, triplet)}
    decisions = {row.triplet_id: row for row in _rows(frame, "curate", iteration, Decision, triplet)}
    posteriors = {row.triplet_id: row for row in _rows(frame, "relabel", iteration, AnswerPosterior, triplet)}
    scored_by = _reward_of(frame, iteration)
    learners = _Learners(frame, iteration)
    left_out = capped(frame.artifacts, iteration) if posteriors else frozenset()

    def told(name: str, candidate: Candidate | None) -> CandidateLineage:
        score, decision, found = scores.get(name), decisions.get(name), posteriors.get(name)
        later = becomes(decision, found) if decision is not None and name not in left_out else None
        kept = decision is not None and decision.keep
        seen_by = learners.of(name, candidate, kept=kept, kept_later=later is not None)
        score = score if score is not None and math.isfinite(score) else None
        later = later if found is not None else None
        return CandidateLineage(name, iteration, candidate, score, scored_by, decision, found, later, seen_by)

    if not frame.has("generate", iteration):
        yield from (told(name, None) for name in decisions)
    for candidate in _rows(frame, "generate", iteration, Candidate, triplet):
        yield told(candidate.triplet_id, candidate)


def _rows(frame: CycleFrame, stage: str, iteration: int, kind: type[R], triplet: str) -> Iterator[R]:
    """A stage's rows about one triplet, or about all of them: a cycle may have a million, so they are not kept."""
    if not frame.has(stage, iteration):
        return
    where = ("triplet_id", [triplet]) if triplet else None
    for batch in frame.artifact(stage, iteration).batches(kind, where):
        yield from batch


def _reward_of(frame: CycleFrame, iteration: int) -> str:
    if not frame.has("score", iteration):
        return ""
    return frame.artifact("score", iteration).manifest.inputs.get("reward", "")


def _taught(frame: CycleFrame, iteration: int) -> set[str]:
    """Names of the rows that the student of an iteration has learnt from."""
    rows = frame.artifact("distill", iteration).batches(TaughtRow)
    return {row.row_id for batch in rows for row in batch}


class _Learners:
    """Which checkpoints learnt from a candidate of an iteration."""

    def __init__(self, frame: CycleFrame, iteration: int) -> None:
        self._frame = frame
        self._iteration = iteration
        later = range(iteration, frame.last + 1)
        self._taught = {t: _taught(frame, t) for t in later if frame.has("distill", t)}
        #: Those that learnt from D_gen, in the order in which the loop made them, and whether it was corrected.
        self._of_training_set = tuple(
            (f"{stage}@{t}", frame.learnt_corrected(stage, t, iteration))
            for t in later
            for stage in ("sft", "grpo")
            if frame.trained(stage, t)
        )

    def of(self, name: str, candidate: Candidate | None, *, kept: bool, kept_later: bool) -> tuple[str, ...]:
        """Names such as `sft@1`.

        Args:
            name: of the candidate.
            candidate: None: it is not there any more.
            kept: by curation.
            kept_later: it is in D_gen as relabel has corrected it.
        """
        names = [name for name, corrected in self._of_training_set if (kept_later if corrected else kept)]
        prompted = not kept and candidate is not None and self._was_prompt(candidate)
        students = [f"distill@{t}" for t, taught in self._taught.items() if name in taught]
        return (*[f"grpo@{self._iteration}"] * prompted, *names, *students)

    def _was_prompt(self, candidate: Candidate) -> bool:
        """Whether GRPO sampled from its question; False when that cannot be known."""
        triplet = triplet_of(candidate) if self._prompts else None
        if triplet is None:
            return False
        return answers.prompt_of(triplet, self._answer_format).prompt_id in self._prompts

    @cached_property
    def _prompts(self) -> set[str]:
        return self._frame.prompts(self._iteration)

    @cached_property
    def _answer_format(self) -> AnswerFormat:
        return self._frame.artifact("grpo", self._iteration).parameters(GRPOParameters).answer_format


def lineage_json(root: Path, cycle: str, triplet: str = "") -> Iterator[dict[str, Any]]:
    """All that is known of one candidate, or of each, as JSON; what has not happened yet is null.

    Args:
        root: the workspace.
        cycle: name of the cycle.
        triplet: a triplet id: no other candidate.

    Raises:
        NotThere: no such cycle or candidate.
        CorruptArtifact: an artifact is damaged.
    """
    artifacts = CycleArtifacts(root, cycle)
    frame = CycleFrame(artifacts, artifacts.last)
    rewards = {frame.artifact("reward", t).digest: f"reward@{t}" for t in reversed(frame.iterations("reward"))}
    nothing = True
    for iteration in range(1, frame.last + 1):
        for row in lineage(frame, iteration, triplet):
            nothing = False
            yield {"cycle": cycle, **_json(frame, row, rewards)}
    if nothing and triplet:
        raise CycleNotFound(f"cycle {cycle!r} has no candidate {triplet!r}; {_which(frame)}")


def _json(frame: CycleFrame, row: CandidateLineage, rewards: dict[str, str]) -> dict[str, Any]:
    candidate, decision = row.candidate, row.decision
    return {
        "triplet": row.triplet_id,
        "iteration": row.iteration,
        **_candidate(frame, candidate),
        "score": row.score,
        "scoredBy": {"stage": rewards.get(row.scored_by), "digest": row.scored_by} if row.scored_by else None,
        "keep": decision.keep if decision else None,
        "reasons": list(decision.reasons) if decision else [],
        "settled": _settled(row),
        "seenBy": list(row.seen_by),
    }


def _candidate(frame: CycleFrame, candidate: Candidate | None) -> dict[str, Any]:
    """What the generator was asked, what it said and what that took."""
    if candidate is None:
        names = ("image", "generator", "prompt", "questionType", "question", "options", "answer", "rationale",
                 "outcome", "error", "cost")  # fmt: skip
        return dict.fromkeys(names)
    return {
        "image": _image(frame, candidate.image_sha256),
        "generator": candidate.generator,
        **_student(frame, candidate.generator),
        "prompt": {"paradigm": candidate.paradigm, "templateSha256": candidate.template_sha256},
        "questionType": candidate.question_type,
        "question": candidate.question,
        "options": candidate.options and list(candidate.options),
        "answer": _answer(candidate),
        "rationale": candidate.rationale,
        "outcome": candidate.outcome,
        "error": candidate.error or None,
        "cost": {
            "attempts": candidate.attempts,
            "inputTokens": candidate.input_tokens,
            "outputTokens": candidate.output_tokens,
            "thinkingTokens": candidate.thinking_tokens,
            "usd": candidate.usd,
        },
    }


def _settled(row: CandidateLineage) -> dict[str, Any] | None:
    """What the cross-examination has found out, and who said what."""
    found, options = row.found, row.candidate.options if row.candidate else None
    if found is None:
        return None

    def named(index: int | None) -> str | int | None:
        return index if index is None or not options else options[index]

    return {
        "answer": named(found.answer_index),
        "posterior": list(found.posterior),
        "agreed": found.agreed,
        "trainingSet": row.becomes,
        "generator": named(found.claim),
        "policy": list(found.policy_shares),
        "reward": list(found.reward_scores),
        "expert": named(found.review),
    }


def _student(frame: CycleFrame, generator: str) -> dict[str, Any]:
    """Of a student, whose pictures it learnt from."""
    if not is_student(generator):
        return {}
    learnt = learnt_from(frame, generator)
    return {"student": {"stage": learnt.stage, "sources": learnt.sources, "mayLeave": learnt.may_leave}}


def _answer(candidate: Candidate) -> str | None:
    options, index = candidate.options, candidate.answer_index
    return options[index] if options and index is not None and 0 <= index < len(options) else None


def _image(frame: CycleFrame, sha256: str) -> dict[str, str]:
    image = {"sha256": sha256, "path": str(paths.image(sha256))}
    stored = frame.images.get(sha256)
    if stored is not None:
        image |= {"modality": stored.modality, "source": stored.source, "sourcePath": stored.source_path}
    return image


def _which(frame: CycleFrame) -> str:
    """Which candidates there are, for a message."""
    names = sorted(row.triplet_id for t in frame.iterations("generate") for row in frame.candidates(t))
    return f"it has {len(names)}, from {names[0]} to {names[-1]}" if names else "nothing has been generated yet"


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="medgr2 lineage", description="The lineage of one candidate as JSON, or of all of them as JSON lines."
    )
    parser.add_argument("cycle")
    parser.add_argument("triplet", nargs="?", default="")
    parser.add_argument("--workspace", type=Path, default=Path(os.environ.get(WORKSPACE_ENV, "/workspace")))
    options = parser.parse_args(arguments)
    try:
        if "/" in options.cycle or options.cycle in ("", ".", ".."):
            raise ConfigError(f"{options.cycle!r} is not the name of a cycle")
        for document in lineage_json(options.workspace, options.cycle, options.triplet):
            print(json.dumps(document))
        sys.stdout.flush()
    except StageError as error:
        print(f"medgr2 lineage: {error}", file=sys.stderr)
        return int(error.exit_code)
    except BrokenPipeError:  # whoever reads has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return int(ExitCode.OK)


if __name__ == "__main__":
    command_line.end(main)
