"""What stage relabel made of an iteration's candidates: how many questions it settled, and what D_gen is since."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from medgr2_api.percent import percent

from ..curate.training_set import Origin, becomes, capped
from ..store.rows.candidates import AnswerPosterior
from .cycle_frame import CycleFrame
from .known_truth import right_options, share_right
from .markdown_table import table


@dataclass(frozen=True, slots=True)
class CorrectionRow:
    """An iteration's questions, asked again; and its part of D_gen before and after. Shares of right answers are None
    where the truth is not known."""

    iteration: int
    asked: int
    settled: int
    against_reward: int
    """Settled answers that are not R's own."""
    against_generator: int
    """Settled answers that are not the generator's."""
    agreed: int
    """Settled answers that two of R, policy and generator give, or an expert."""
    reviewed: int
    """Questions that an expert has answered."""
    settled_precision: float | None
    in_use: bool
    """Later iterations learn from the corrected set. If not, only R learns from what is settled."""
    kept: int
    """Rows that curation kept."""
    confirmed: int
    """Of these: still there, with the generator's answer."""
    corrected: int
    """There with another answer: kept ones, and those whose answer an expert has replaced."""
    withdrawn: int
    """Kept ones that are not there any more."""
    rescued: int
    """Rejected ones that are there now."""
    balanced_out: int
    """Corrected or rescued ones for which `curation.balance` has no room."""
    kept_precision: float | None
    """Share of right answers in the iteration's part of D_gen as curation kept it."""
    corrected_precision: float | None
    """The same since."""


def rows(frame: CycleFrame) -> list[CorrectionRow]:
    """A row per iteration whose questions were asked again."""
    return [_row(frame, t) for t in frame.iterations("relabel") if frame.has("curate", t)]


def _row(frame: CycleFrame, iteration: int) -> CorrectionRow:
    found = frame.posteriors(iteration)
    decisions = frame.decisions(iteration)
    left_out = capped(frame.artifacts, iteration)
    right = right_options(frame, iteration)
    settled = {name: row.answer_index for name, row in found.items() if row.answer_index is not None}
    claims = {name: row.claim for name, row in found.items()}
    kept = {row.triplet_id for row in decisions if row.keep}
    there: dict[str, Origin] = {}
    for row in decisions:
        origin = becomes(row, found.get(row.triplet_id))
        if origin is not None and row.triplet_id not in left_out:
            there[row.triplet_id] = origin
    count = Counter(there.values())
    return CorrectionRow(
        iteration=iteration,
        asked=len(found),
        settled=len(settled),
        against_reward=sum(index != _best(found[name]) for name, index in settled.items()),
        against_generator=sum(index != found[name].claim for name, index in settled.items()),
        agreed=sum(found[name].agreed for name in settled),
        reviewed=sum(row.review is not None for row in found.values()),
        settled_precision=share_right(settled, right),
        in_use=any(frame.learnt_corrected("sft", t, iteration) for t in frame.iterations("sft")),
        kept=len(kept),
        confirmed=count[Origin.GENERATED],
        corrected=count[Origin.CORRECTED],
        withdrawn=len(kept - there.keys()),
        rescued=count[Origin.RESCUED],
        balanced_out=len(left_out),
        # what was kept and not asked has a claim, too, which only `Candidate` knows: it is in neither share
        kept_precision=share_right({name: claims[name] for name in kept & claims.keys()}, right),
        corrected_precision=share_right({name: settled[name] for name in there.keys() & settled.keys()}, right),
    )


def _best(row: AnswerPosterior) -> int:
    return row.reward_scores.index(max(row.reward_scores))


def markdown(corrections: Sequence[CorrectionRow]) -> list[str]:
    """The report's section on corrected training data."""
    if not corrections:
        return []
    known = any(row.settled_precision is not None for row in corrections)
    head = ["iteration", "asked", "settled", "against the reward model", "against the generator", "by two or an expert"]
    head += ["settled rightly, %"] if known else []
    asked = [
        [
            str(row.iteration), *(f"{number:,}" for number in (
                row.asked, row.settled, row.against_reward, row.against_generator, row.agreed,
            )),
            *([percent(row.settled_precision)] if known else []),
        ]
        for row in corrections
    ]  # fmt: skip
    parts = [
        "## Questions asked again",
        "The candidates' questions are put to the reward model, the policy and the generator; where one answer is "
        "likely enough, the question is settled.",
        table(head, asked),
    ]
    used = [row for row in corrections if row.in_use]
    if not used:
        return parts
    head = ["iteration", "kept", "as they were", "with another answer", "withdrawn", "rescued", "rows since"]
    head += ["right before, %", "right since, %"] if known else []
    since = [
        [
            str(row.iteration), *(f"{number:,}" for number in (
                row.kept, row.confirmed, row.corrected, row.withdrawn, row.rescued,
                row.confirmed + row.corrected + row.rescued,
            )),
            *([percent(row.kept_precision), percent(row.corrected_precision)] if known else []),
        ]
        for row in used
    ]  # fmt: skip
    text = (
        "**The training set since**: what later iterations learn from an iteration's candidates. Withdrawn: nobody is "
        "sure of the answer any more. Rescued: rejected for its score alone, and settled since."
    )
    return [*parts, text, table(head, since)]
