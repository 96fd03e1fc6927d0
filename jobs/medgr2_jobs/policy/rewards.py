"""GRPO's reward: r = α·R'(I, q, a') + β·match(a') + other terms, and a sample of the rollouts.

All terms (`reward_terms.py`) are added here and TRL sees one function, because the weights depend on the row: where no
answer is trusted the match term does not count and the rest is weighted up (docs/decisions.md, 20). TRL's own
`reward_weights` cannot do that: a term that is None counts as 0 there.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from medgr2_api.policy import Normalization, RewardTerm, RewardTermType
from medgr2_api.training_spec import AnswerFormat

from ..errors import ConfigError
from ..prompts import answers
from ..reward.model import SCORE_MAX, SCORE_MIN
from ..store import atomic
from ..store.rows.training import Rollout
from .reward_terms import MATCH, OTHERS, REWARD_MODEL, Completion, Scorer, answer_match, make_term

_ROLLOUTS = "medgr2-rollouts.json"
_NO_VARIANCE = 1e-6  # standard deviation of the rewards of a group that are one and the same
_ASKED = ("image_sha256", "text", "options", "answer_index")  # columns of the data set by which answers are judged
_SAMPLED_STEPS = 32  # steps of a run whose rollouts are kept: one group each


def check_terms(terms: Sequence[RewardTerm], has_reward: bool, field_name: str) -> None:
    """Refuses what cannot be rewarded.

    Raises:
        ConfigError: R or another package's term is asked for but not there, a term is named twice, or the weights are 0
            or add up to 0.
    """
    kinds = [term.type for term in terms]
    if len({(term.type, term.plugin and term.plugin.name) for term in terms}) != len(terms):
        raise ConfigError(f"{field_name}: a term is named twice")
    if not any(term.weight for term in terms):
        raise ConfigError(f"{field_name}: every weight is 0; nothing would be learnt")
    others = [term.weight for term in terms if term.type is not RewardTermType.ANSWER_MATCH]
    # where no answer is trusted the others take over the whole weight
    if abs(sum(term.weight for term in terms)) < 1e-9:
        raise ConfigError(f"{field_name}: the weights add up to 0; prompts without a trusted answer would earn nothing")
    if any(others) and abs(sum(others)) < 1e-9:
        raise ConfigError(
            f"{field_name}: the weights beside AnswerMatch add up to 0; where no answer is trusted they could not take "
            "over its weight in proportion to their own"
        )
    for declared in terms:
        if declared.plugin is not None:
            make_term(declared)
    if RewardTermType.REWARD_MODEL in kinds and not has_reward:
        raise ConfigError(
            f"{field_name}: has a RewardModel term, but this cycle trains no reward model (stage reward is disabled "
            "and no checkpoint is given); keep AnswerMatch only, or enable the stage"
        )


@dataclass
class Rollouts:
    """One group of completions from each of some steps, carried along in the checkpoints. Of several processes the main
    one's count: a group is never divided among them."""

    rows: list[Rollout] = field(default_factory=list)

    def should_sample(self, step: int, total: int) -> bool:
        """Whether a step's rollouts are kept: `_SAMPLED_STEPS` of them, evenly spread."""
        sampled = bool(self.rows) and self.rows[-1].step == step  # a step may be sampled for in several parts
        return step % max(1, total // _SAMPLED_STEPS) == 0 and not sampled

    def save(self, checkpoint: Path) -> None:
        """Puts the rows so far into a checkpoint."""
        atomic.write_text(checkpoint / _ROLLOUTS, json.dumps([asdict(row) for row in self.rows]))

    def load(self, checkpoint: Path) -> None:
        """Goes on from a checkpoint."""
        self.rows = [Rollout(**row) for row in json.loads((checkpoint / _ROLLOUTS).read_text())]


@dataclass(frozen=True)
class _Graded:
    """B completions and what they earn."""

    completed: list[Completion]
    values: dict[str, np.ndarray]
    """Of each term, float (B,)."""
    parts: dict[str, np.ndarray]
    """Each term's weighted share of the reward, float (B,)."""
    total: np.ndarray
    """float (B,)."""


class PolicyReward:
    """The reward function that TRL calls once per generation batch."""

    def __init__(
        self,
        terms: Sequence[RewardTerm],
        group_size: int,
        score: Scorer | None,
        rollouts: Rollouts,
        answer_format: AnswerFormat,
        answered: Callable[[str], str] = str,
    ) -> None:
        """
        Args:
            terms: α, β and further ones, and how they are scaled.
            group_size: G; a prompt's completions stand side by side.
            score: R; None when no term asks for it.
            rollouts: takes the sample.
            answer_format: what the prompts ask for.
            answered: makes the whole answer of what TRL took for one (`vlm.Encoder.answered`).
        """
        self.terms = [make_term(spec, score) for spec in terms]
        self.group_size = group_size
        self.rollouts = rollouts
        self.answer_format = answer_format
        self.answered = answered

    def reward(
        self,
        completions: list[list[dict[str, str]]],
        image_sha256: list[str],
        text: list[str],
        options: list[list[str]],
        answer_index: list[int | None],
        prompt_id: list[str],
        trainer_state: Any,
        log_metric: Callable[[str, float], None],
        **_: Any,
    ) -> list[float | None]:
        """Rewards of B completions; dataset columns come as lists of the same length.

        Args:
            completions: one assistant message each.
            image_sha256: the image of each completion's own prompt.
            text: its user turn.
            options: its options.
            answer_index: its trusted answer; None: there is none.
            prompt_id: its name.
            trainer_state: tells the step.
            log_metric: takes a figure into the trainer's log.
        """
        graded = self._graded(
            [message[0]["content"] for message in completions], image_sha256, text, options, answer_index
        )
        completed, values, parts, total = graded.completed, graded.values, graded.parts, graded.total
        texts, picked = [one.text for one in completed], [one.picked for one in completed]
        trusted = np.array([index is not None for index in answer_index])

        figures = self._figures(parts, total)
        figures |= {name: float(values_of_term.mean()) for name, values_of_term in values.items() if name != MATCH}
        match, scores = answer_match(completed), values.get(REWARD_MODEL)
        if trusted.any():
            figures[MATCH] = float(match[trusted].mean())
        if scores is not None:
            rows = [completion.row for completion in completed]
            figures["unique_completions"] = len(set(rows)) / len(rows)
        figures["parse_failures"] = sum(p is None for p in picked) / len(picked)
        figures["well_formed"] = sum(map(answers.well_formed, texts)) / len(texts)
        for name, value in figures.items():
            log_metric(name, value)

        step = trainer_state.global_step
        if self.rollouts.should_sample(step, trainer_state.max_steps):
            self.rollouts.rows += [
                Rollout(
                    step=step,
                    prompt_id=prompt_id[i],
                    completion=texts[i],
                    reward=float(total[i]),
                    reward_model=None if scores is None else float(scores[i]),
                    match=float(match[i]) if trusted[i] else None,
                    parsed=picked[i] is not None,
                )
                for i in range(self.group_size)
            ]
        return [float(value) for value in total]

    def same_reward(self, groups: Sequence[Sequence[str]], rows: Sequence[dict[str, Any]]) -> list[bool]:
        """Whether all completions of a group earn one reward; TRL is told nothing of it.

        Args:
            groups: what the policy wrote, G texts for each of N prompts.
            rows: the prompts' rows of the data set.
        """
        size = self.group_size
        columns = [[row[name] for row in rows for _ in range(size)] for name in _ASKED]
        graded = self._graded([text for group in groups for text in group], *columns)
        found: list[bool] = (graded.total.reshape(-1, size).std(1) < _NO_VARIANCE).tolist()
        return found

    def _graded(
        self,
        written: Sequence[str],
        image_sha256: Sequence[str],
        text: Sequence[str],
        options: Sequence[list[str]],
        answer_index: Sequence[int | None],
    ) -> _Graded:
        texts = [self.answered(one) for one in written]
        completed = [
            Completion(
                image, asked, tuple(offered), answer, answers.extract(answer, offered, self.answer_format), right
            )
            for image, asked, offered, answer, right in zip(
                image_sha256, text, options, texts, answer_index, strict=True
            )
        ]
        values = {one.name: np.asarray(one.values(completed)) for one in self.terms}
        parts = self._parts(values, np.array([index is not None for index in answer_index]))
        return _Graded(completed, values, parts, np.sum(list(parts.values()), axis=0))

    def _parts(self, values: dict[str, np.ndarray], trusted: np.ndarray) -> dict[str, np.ndarray]:
        """Each term's weighted share of the reward, float (B,).

        Without a trusted answer the other terms take over the weight of the match, in proportion to their own
        (evenly, when those are 0), so that rewards of both kinds of prompt have the same range.
        """
        whole = sum(one.spec.weight for one in self.terms)
        others = [one.spec.weight for one in self.terms if one.name != MATCH]
        parts: dict[str, np.ndarray] = {}
        for one in self.terms:
            value, weight = values[one.name], one.spec.weight
            if one.name == REWARD_MODEL and one.spec.normalization is Normalization.MIN_MAX:
                value = (value - SCORE_MIN) / (SCORE_MAX - SCORE_MIN)
            share = weight / sum(others) if any(others) else 1 / len(others or [1])
            parts[one.name] = np.where(trusted, weight, 0.0 if one.name == MATCH else share * whole) * value
        return parts

    def _figures(self, parts: dict[str, np.ndarray], total: np.ndarray) -> dict[str, float]:
        """Share of zero-variance groups, and each term's share of the variance within groups.

        The share of term k is Σ cov(part_k, r) / Σ var(r) over the groups: the shares of all terms add up to 1.
        """
        groups = total.reshape(-1, self.group_size)
        centred = groups - groups.mean(1, keepdims=True)
        variance = float((centred**2).sum())
        figures = {_ZERO_VARIANCE: float((groups.std(1) < _NO_VARIANCE).mean())}
        if variance > 0:
            for name, part in parts.items():
                covariance = float((centred * part.reshape(-1, self.group_size)).sum())
                figures[f"variance_share_{name}"] = covariance / variance
        return figures


def summary(history: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Counters of a run from the trainer's log: the reward's mean over the first and the last fifth of the steps, the
    other figures' mean over the last fifth (of the steps that have them)."""
    steps = [entry for entry in history if "reward" in entry]
    fifth = max(1, len(steps) // 5)
    others = sorted({key for entry in steps for key in entry if key.removeprefix("variance_share_").startswith(OTHERS)})
    figures: dict[str, float] = {}
    for name, key, part in (
        ("reward_first", "reward", steps[:fifth]),
        ("reward_last", "reward", steps[-fifth:]),
        ("reward_model_first", "reward_model", steps[:fifth]),
        ("reward_model_last", "reward_model", steps[-fifth:]),
        *((key.split("/")[-1], key, steps[-fifth:]) for key in (*_SUMMARISED, *others)),
    ):
        values = [entry[key] for entry in part if entry.get(key) is not None]
        if values:
            figures[name] = round(float(np.mean(values)), 6)
    return figures


def zero_variance(history: Sequence[dict[str, Any]], prompts: float) -> dict[str, float]:
    """Counters of a run from the trainer's log: groups that were sampled, and those that taught nothing, because all
    completions of the group got the same reward.

    Args:
        history: the log, an entry a step.
        prompts: of each step.
    """
    shares = [float(entry[_ZERO_VARIANCE]) for entry in history if entry.get(_ZERO_VARIANCE) is not None]
    return {"groups": round(len(shares) * prompts), "groups_without_variance": round(sum(shares) * prompts)}


_ZERO_VARIANCE = "zero_variance_groups"
_SUMMARISED = (
    "match",
    "parse_failures",
    "well_formed",
    _ZERO_VARIANCE,
    "variance_share_reward_model",
    "variance_share_match",
    "unique_completions",
    "completions/mean_length",
    "completions/clipped_ratio",
    "kl",
)
