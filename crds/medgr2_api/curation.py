"""The `curation` part of a cycle's spec: which candidates become training data.

A field whose value a preset owns is optional and has no default here: `presets.py` fills it in, and the model's
`Resolved` form requires it.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from .cel_rules import Keyed, Rule
from .hashing import NOT_HASHED, Since
from .model import ApiEnum, Model
from .plugin import PluginRef
from .types import Fraction


class SelectionStrategy(ApiEnum):
    """How the kept candidates are chosen."""

    ALL = "All"
    THRESHOLD = "Threshold"
    FITTED_PRECISION = "FittedPrecision"
    TOP_K = "TopK"
    RANDOM_K = "RandomK"


Precision = Annotated[float, Field(gt=0, lt=1)]
KeptAtMost = Annotated[int, Field(ge=0)]


class Selection(Model):
    """How the candidates that are kept are selected."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "!has(self.threshold) || !has(self.strategy) || self.strategy == 'Threshold'",
            "'threshold' is only used by strategy Threshold",
            lambda s: s.threshold is None or s.strategy in (None, SelectionStrategy.THRESHOLD),
        ),
        Rule(
            "!has(self.precision) || (has(self.strategy) && self.strategy == 'FittedPrecision')",
            "'precision' is only used by strategy FittedPrecision: name the strategy beside it",
            lambda s: s.precision is None or s.strategy is SelectionStrategy.FITTED_PRECISION,
        ),
        Rule(
            "!has(self.k) || (has(self.strategy) && self.strategy in ['TopK', 'RandomK'])",
            "'k' is only used by the strategies TopK and RandomK: name one beside it",
            lambda s: s.k is None or s.strategy in (SelectionStrategy.TOP_K, SelectionStrategy.RANDOM_K),
        ),
    )

    strategy: SelectionStrategy | None = None
    """All; Threshold: score above it; FittedPrecision: the threshold that reaches the precision on held-out grades;
    TopK: the k best; RandomK: k at random."""
    threshold: float | None = None
    """For Threshold: τ, in R's units [-6, 10]."""
    precision: Precision | None = None
    """For FittedPrecision: share of the kept that shall be right."""
    k: KeptAtMost | None = None
    """Number of candidates to keep; strategies TopK and RandomK only."""


class SelectAll(Selection):
    """Strategy All."""

    strategy: Literal[SelectionStrategy.ALL]


class SelectByThreshold(Selection):
    """Strategy Threshold."""

    strategy: Literal[SelectionStrategy.THRESHOLD]
    threshold: float


class SelectByPrecision(Selection):
    """Strategy FittedPrecision."""

    strategy: Literal[SelectionStrategy.FITTED_PRECISION]
    precision: Precision


class SelectTopK(Selection):
    """Strategy TopK."""

    strategy: Literal[SelectionStrategy.TOP_K]
    k: KeptAtMost


class SelectRandomK(Selection):
    """Strategy RandomK."""

    strategy: Literal[SelectionStrategy.RANDOM_K]
    k: KeptAtMost


#: With its strategy, and what that strategy uses.
ResolvedSelection = SelectAll | SelectByThreshold | SelectByPrecision | SelectTopK | SelectRandomK


class NearDuplicates(Model):
    """When two triplets count as the same."""

    image_hamming: Annotated[int, Field(ge=0, le=64)] = 4
    """Most bits in which the perceptual hashes of the two images may differ."""
    text_jaccard: Fraction = 0.8
    """Least similarity of the two texts; both limits must be met."""


class Balance(Model):
    """Caps so that no group fills the training set."""

    by: Annotated[list[Literal["modality", "questionType"]], Field(max_length=2), Keyed()] = []
    """Fields whose values make up a group, such as modality."""
    max_share: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Largest share of the kept candidates that one group may have."""


class Review(Model):
    """An expert's decisions on the kept triplets of an iteration."""

    iteration: Annotated[int, Field(ge=1, le=20)]
    """Number of the iteration, counted from 1."""
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    """Which review: it lies in the workspace as reviews/<sha256>.jsonl (`medgr2 review import` puts it there)."""


class Curation(Model):
    """From scored candidates to training data."""

    selection: Selection = Selection()
    """How the candidates that are kept are selected."""
    allow_overlap: bool = False
    """Keep candidates that are already in the training set (paper: allow_overlap). Benchmarks are always kept out."""
    near_duplicates: NearDuplicates | None = None
    """Drop near-duplicates too, within the batch and of the training set; absent: only exact ones."""
    reject_guessable: bool = False
    """Drop what the options alone give away: an option prior fitted on the training set answers it."""
    balance: Balance | None = None
    """Cap the share of a group; absent: no cap."""
    # not hashed: what is settled is among the inputs of whoever reads the training set
    correct: Annotated[bool | None, NOT_HASHED] = None
    """Give the training data of earlier iterations the answers that stage relabel has settled: kept candidates are
    corrected, and those that were rejected by their score alone come in."""
    further_rules: Annotated[list[PluginRef], Field(max_length=16, alias="rules"), Keyed(("name",))] = []
    """Further rules that drop candidates, from other packages (entry points medgr2.curation_rules)."""


class ResolvedCuration(Curation):
    """With everything that the presets own."""

    selection: ResolvedSelection
    correct: Annotated[bool, NOT_HASHED, Since(False)]
