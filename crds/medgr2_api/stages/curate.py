"""Stage curate: which candidates become training data (Algorithm 1, line 3)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from medgr2_api.curation import ResolvedCuration, SelectionStrategy
from medgr2_api.training_spec import AnswerFormat

from .definition import Iterations, Of, Read, Source, StageDefinition, StageParameters

if TYPE_CHECKING:
    from medgr2_api.cycle import ResolvedSpec


class CurateParameters(StageParameters):
    """How the kept candidates are chosen."""

    curation: ResolvedCuration
    """Selection, overlap and balance."""
    review: str = ""
    """sha256 of an expert's decisions on this iteration's triplets; empty: none."""
    answer_format: AnswerFormat
    """What stands between <answer> and </answer>."""


def _build(source: Source) -> CurateParameters:
    return CurateParameters(
        seed=source.seed,
        curation=source.spec.curation,
        review=next((review.sha256 for review in source.spec.reviews if review.iteration == source.iteration), ""),
        answer_format=source.spec.answer_format,
    )


def _corrects(spec: ResolvedSpec) -> bool:
    return spec.curation.correct


def _fits_threshold(spec: ResolvedSpec) -> bool:
    return spec.curation.selection.strategy is SelectionStrategy.FITTED_PRECISION


_RELABELLED = Read("relabel", "relabel", Of.EARLIER, required=False, when=_corrects)

#: What the training set D_gen is read from: the seed, what each iteration so far generated and kept of it, and what has
#: been settled since about those before.
TRAINING_SET = (
    Read("prepare", "prepare", Of.FIRST),
    Read("generate", "generate", Of.EVERY, required=False),
    Read("curate", "curate", Of.EVERY),
    _RELABELLED,
)

CURATE = StageDefinition(
    name="curate",
    sentence="Decides which candidates are kept, with all reasons and an expert's review: these are D_gen"
    " ([curation.md](curation.md)).",
    parameters=CurateParameters,
    build=_build,
    spec_paths={
        "review": "reviews",
    },
    iterations=Iterations.LOOP,
    reads=(
        Read("prepare", "prepare", Of.FIRST),
        Read("generate", "generate", Of.EVERY, required=False),
        Read("curate", "curate", Of.EVERY, required=False),
        _RELABELLED,
        Read("scores", "score", required=False),
        Read("reward", "reward", Of.NEWEST, required=False, when=_fits_threshold),
    ),
    publishes=("decisions.parquet",),
    code_version=4,  # near-duplicates are found exactly; spelling and modality count for what is guessable
)
