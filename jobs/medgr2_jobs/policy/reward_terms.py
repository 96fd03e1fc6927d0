"""The terms of GRPO's reward, one function each: R, the match with a trusted answer, and those of other packages."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from medgr2_api.plugin import PluginGroup, PluginRef
from medgr2_api.policy import RewardTerm, RewardTermType

from .. import plugins
from ..errors import ConfigError
from ..models.vlm import PromptResponse

#: Names of the built-in terms in figures.
REWARD_MODEL, MATCH = "reward_model", "match"
#: What the names of others begin with.
OTHERS = "plugin_"


@dataclass(frozen=True)
class Completion:
    """One answer of the policy."""

    image_sha256: str
    prompt: str
    """The user turn, without the image."""
    options: tuple[str, ...]
    text: str
    """All that the policy wrote."""
    picked: int | None
    """The option that it comes down to; None: it cannot be read."""
    answer_index: int | None
    """The trusted answer; None: there is none."""

    @property
    def row(self) -> PromptResponse:
        """As R reads it."""
        return PromptResponse(self.image_sha256, self.prompt, self.text)


Values = Callable[[Sequence[Completion]], Sequence[float] | np.ndarray]
"""A term: n completions → n values, before they are weighted."""
Scorer = Callable[[Sequence[PromptResponse]], np.ndarray]
"""R: scores float (n,) in [-6, 10] of n rows; equal rows are scored once."""


@dataclass(frozen=True)
class RewardTermFunction:
    """One term, ready to be used."""

    spec: RewardTerm
    name: str
    """In figures."""
    values: Values


def reward_model(completions: Sequence[Completion], score: Scorer) -> np.ndarray:
    """R(I, q, a'), float (n,) in [-6, 10]."""
    return score([completion.row for completion in completions])


def answer_match(completions: Sequence[Completion]) -> np.ndarray:
    """1 where the answer equals the trusted one, else 0; float (n,)."""
    return np.array([c.picked is not None and c.picked == c.answer_index for c in completions], dtype=float)


class RememberedScores:
    """R, which scores nothing twice in a row: what is asked anew stands among what is not."""

    def __init__(self, score: Scorer) -> None:
        self._score = score
        self._known: dict[PromptResponse, float] = {}

    def __call__(self, rows: Sequence[PromptResponse]) -> np.ndarray:
        """As `Scorer`; remembers these rows, and forgets the others."""
        new = [row for row in dict.fromkeys(rows) if row not in self._known]
        known = self._known | dict(zip(new, self._score(new).tolist() if new else [], strict=True))
        self._known = {row: known[row] for row in rows}
        return np.array([known[row] for row in rows], dtype=float)


def make_term(spec: RewardTerm, score: Scorer | None = None) -> RewardTermFunction:
    """A term by its description.

    Args:
        spec: which, and how much it weighs.
        score: R; needed for RewardModel.

    Raises:
        ConfigError: it is of another package, and is not there.
    """
    if spec.plugin is not None:
        return RewardTermFunction(spec, f"{OTHERS}{spec.plugin.name}", _of_plugin(spec.plugin))
    if spec.type is RewardTermType.ANSWER_MATCH:
        return RewardTermFunction(spec, MATCH, answer_match)
    assert score is not None
    return RewardTermFunction(spec, REWARD_MODEL, partial(reward_model, score=score))


def _of_plugin(plugin: PluginRef) -> Values:
    where = f"policy.grpo.rewards[{plugin.name}]"
    loaded: Values = plugins.load(PluginGroup.REWARDS, plugin, where)

    def checked(completions: Sequence[Completion]) -> np.ndarray:
        values = np.asarray(loaded(completions), dtype=float)
        if values.shape != (len(completions),) or not np.isfinite(values).all():
            bad = int((~np.isfinite(values)).sum())
            raise ConfigError(
                f"{where}: gave values of shape {values.shape}, {bad} of them not finite, for {len(completions)} "
                "completions; it must give one finite number for each: correct the plugin"
            )
        return values

    return checked


def trusted_terms(terms: Sequence[RewardTerm]) -> list[RewardTerm]:
    """The terms of the reward without R; where none of them matches the trusted answers, with one that does."""
    others = [term for term in terms if term.type is not RewardTermType.REWARD_MODEL]
    if any(term.type is RewardTermType.ANSWER_MATCH and term.weight for term in others):
        return others
    others = [term for term in others if term.type is not RewardTermType.ANSWER_MATCH]
    return [*others, RewardTerm(type=RewardTermType.ANSWER_MATCH, weight=1.0)]
