"""Stage curate: which candidates become training data (Algorithm 1, line 3)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from medgr2_api.curation import ResolvedCuration, SelectionStrategy

from .definition import Iterations, Of, Read, Source, StageDefinition, StageParameters

if TYPE_CHECKING:
    from medgr2_api.cycle import ResolvedSpec


class CurateParameters(StageParameters):
    """How the kept candidates are chosen."""

    curation: ResolvedCuration
    """Selection, overlap and balance."""
    review: str = ""
    """sha256 of an expert's decisions on this iteration's triplets; empty: none."""


def _build(source: Source) -> dict[str, Any]:
    return {
        "curation": source.spec.curation.dump(),
        "review": next((review.sha256 for review in source.spec.reviews if review.iteration == source.iteration), ""),
    }


def _fits_threshold(spec: ResolvedSpec) -> bool:
    return spec.curation.selection.strategy is SelectionStrategy.FITTED_PRECISION


CURATE = StageDefinition(
    name="curate",
    sentence="Decides which candidates are kept, with all reasons and an expert's review, and adds them to D_gen"
    " ([curation.md](curation.md)).",
    parameters=CurateParameters,
    build=_build,
    spec_paths={
        "review": "reviews",
    },
    iterations=Iterations.LOOP,
    reads=(
        Read("prepare", "prepare", Of.FIRST),
        Read("candidates", "generate", required=False),
        Read("scores", "score", required=False),
        Read("previous", "curate", Of.PREVIOUS, required=False),
        Read("reward", "reward", Of.NEWEST, required=False, when=_fits_threshold),
    ),
    publishes=("decisions.parquet", "training.parquet", "lineage.parquet"),
    code_version=2,  # near-duplicates, near images of benchmarks, guessable items, balance, reviews
)
