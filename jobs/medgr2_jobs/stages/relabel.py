"""Stage relabel: R, the policy and the generator cross-examined about the candidates' questions.

The policy answers each question several times, R scores one text per option, the generator has said what it says; the
label model (`relabel/label_model.py`) makes a posterior of the three. Nothing here knows the right answers, but for the
scale of R's scores, which its answers to the validation questions give, and for what an expert has reviewed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from functools import cache
from typing import Any

import numpy as np

from medgr2_api.stages.relabel import RelabelParameters

from ..curate import contamination
from ..duplicates.text_fingerprint import NormalisedText, text_of
from ..engine.opening import opened
from ..engine.sampler import Between, Sampler, SamplerEngine
from ..errors import DataError
from ..models import checkpoint, vlm
from ..models.generation import Decoding
from ..models.vlm import Encoder, PromptResponse
from ..prompts import answers
from ..relabel import label_model
from ..relabel.label_model import TEMPERED, Evidence, Witness
from ..relabel.questions import OpenQuestion, batches, questions
from ..relabel.votes import Votes, rationale_for, spoken, votes
from ..review import import_review
from ..reward.model import RewardModel
from ..reward.option_scores import option_scores
from ..runner.context import StageContext, StageOutcome
from ..runner.parts import Parts
from ..store.rows.candidates import AnswerPosterior, Candidate, Decision, triplet_of
from ..store.rows.prepared import Image, Item
from ..store.rows.training import RewardAnswer

_SAMPLES = 256  # of the policy that are drawn together, with a seed of their own
_TEXTS = 512  # of R that are scored together
_LONGEST = 512  # tokens

Context = StageContext[RelabelParameters]


def run(ctx: Context) -> StageOutcome:
    """Publishes table `posteriors`, a row per question that was asked.

    Goes on from the parts that an earlier attempt finished: a part is the same whether or not the ones before it were
    made in this process.

    Raises:
        DataError: R has no answers to validation questions, so its scores have no scale.
        Checkpointed: asked to stop; finished parts stay.
    """
    asked = _asked(ctx)
    finished = Parts(ctx)
    heard = _ask_policy(ctx, asked, finished)
    scores = _ask_reward(ctx, asked, heard, finished)
    scale = _scale(ctx)
    believed = label_model.posteriors(_evidence(asked, heard, scores), scale)
    held = _held_texts(ctx)
    least = ctx.parameters.cross_examination.min_posterior
    rows = [
        _row(question, said, score, posterior[: len(said.shares)].tolist(), least, held)
        for question, said, score, posterior in zip(asked, heard, scores, believed, strict=True)
    ]
    ctx.writer.table(AnswerPosterior, rows)
    return StageOutcome(counters=_counters(asked, rows, scale))


def _asked(ctx: Context) -> list[OpenQuestion]:
    candidates = ctx.input("candidates").rows(Candidate)
    decisions = {row.triplet_id: row for row in ctx.input("decisions").rows(Decision)}
    sha256 = ctx.parameters.review
    reviews = import_review.by_triplet(import_review.load(ctx.root, sha256, candidates)) if sha256 else {}
    reviewed = {name: review.answer_index for name, review in reviews.items() if review.answer_index is not None}
    left = {name: row for name, row in decisions.items() if name in reviewed or name not in reviews}
    most = ctx.parameters.cross_examination.max_questions
    return questions(candidates, left, reviewed, most, ctx.parameters.seed)


def _ask_policy(ctx: Context, asked: Sequence[OpenQuestion], finished: Parts) -> list[Votes]:
    """What the policy says to each question. Nothing of it runs any more when R is asked: both may need the GPU."""
    settings, answer_format = ctx.parameters.cross_examination, ctx.parameters.answer_format
    units = batches(asked, max(1, _SAMPLES // settings.samples_per_question))

    with opened(ctx, ctx.parameters.engine) as engine:
        policy = _Policy(ctx, engine, finished.check_stop)

        def ask(some: Sequence[Sequence[OpenQuestion]], first: int) -> list[Any]:
            drawn = vlm.chunks(policy.answers(some, first), settings.samples_per_question)
            return [[asdict(votes(next(drawn), row.triplet.options, answer_format)) for row in batch] for batch in some]

        made = finished.make("votes", units, ask, lambda done: ctx.progress("ask the policy", done, len(units)))
    return [Votes(tuple(row["shares"]), tuple(row["rationales"])) for batch in made for row in batch]


class _Policy:
    """The policy, looked up when it is first asked."""

    def __init__(self, ctx: Context, engine: SamplerEngine, between: Between) -> None:
        self._ctx = ctx
        self._engine = engine
        self._between = between
        self._found: tuple[Sampler, Encoder, int] | None = None

    def answers(self, asked: Sequence[Sequence[OpenQuestion]], first: int) -> list[str]:
        """So many sampled answers to each question of consecutive batches; a batch's number is part of its seed."""
        ctx, settings = self._ctx, self._ctx.parameters.cross_examination
        if self._found is None:
            policy = checkpoint.published(ctx, "policy")
            encoder = Encoder(policy.processor(), ctx.images)
            self._found = self._engine.sampler(policy), encoder, _longest(encoder, _taught(ctx))
        sampler, encoder, limit = self._found
        prompts = [answers.prompt_of(row.triplet, ctx.parameters.answer_format) for batch in asked for row in batch]
        turns = [
            PromptResponse(prompt.image_sha256, prompt.text)
            for prompt in prompts
            for _ in range(settings.samples_per_question)
        ]
        return sampler.answers(
            encoder,
            turns,
            max_new_tokens=limit,
            decoding=Decoding(settings.temperature),
            seed=(ctx.parameters.seed + first) % 2**31,
            batches=[len(batch) * settings.samples_per_question for batch in asked],
            between=self._between,
        )


def _taught(ctx: Context) -> Iterator[str]:
    """Answers such as the policy has learnt to write."""
    for row in ctx.input("candidates").rows(Candidate):
        if triplet := triplet_of(row):
            yield triplet.response


def _longest(encoder: Encoder, texts: Iterator[str]) -> int:
    """Tokens an answer may have: half as long again as the longest that is taught, and 8; at most 512."""
    ids = encoder.tokenizer(list(texts), add_special_tokens=False)["input_ids"]
    return min(_LONGEST, math.ceil(1.5 * max(map(len, ids))) + 8)


def _ask_reward(
    ctx: Context, asked: Sequence[OpenQuestion], heard: Sequence[Votes], finished: Parts
) -> list[tuple[float, ...]]:
    """R's score of each option, in a text of the policy's in which the option alone is exchanged."""
    said = {row.triplet.triplet_id: votes for row, votes in zip(asked, heard, strict=True)}

    @cache
    def loaded() -> tuple[RewardModel, Encoder]:
        folder = ctx.input("reward").folder_of("model")
        return RewardModel.load(folder), Encoder(vlm.load_processor(folder), ctx.images)

    def score(batch: Sequence[OpenQuestion]) -> list[tuple[float, ...]]:
        finished.check_stop()
        texts = [spoken(row.triplet, said[row.triplet.triplet_id]) for row in batch]
        rows = [replace(row.triplet, answer_index=at) for row, (at, _) in zip(batch, texts, strict=True)]
        return option_scores(*loaded(), rows, [text for _, text in texts], ctx.parameters.answer_format)

    units = batches(asked, _TEXTS // 4)
    made = finished.make(
        "scores",
        units,
        lambda some, _: [score(batch) for batch in some],
        lambda done: ctx.progress("ask R", done, len(units)),
    )
    return [tuple(row) for batch in made for row in batch]


def _scale(ctx: Context) -> float:
    """What a point of R's score is worth, by its answers to the validation questions."""
    rows = ctx.input("reward").rows(RewardAnswer)
    if not rows:
        raise DataError(
            "the reward model has answered no validation question, so nobody knows what its scores are worth: let data."
            "split.validationFraction leave seed questions for validation, or set curation.correct: false"
        )
    return label_model.fit_scale(
        _padded([row.option_scores for row in rows], -np.inf), np.array([row.answer_index for row in rows])
    )


def _evidence(asked: Sequence[OpenQuestion], heard: Sequence[Votes], scores: Sequence[tuple[float, ...]]) -> Evidence:
    claims = [[float(at == row.triplet.answer_index) for at in range(len(row.triplet.options))] for row in asked]
    return Evidence(
        question_types=[row.triplet.question_type for row in asked],
        options=[row.triplet.options for row in asked],
        scores=_padded(scores, -np.inf),
        witnesses=[
            # the policy has learnt from what the generator says
            Witness(_padded([said.shares for said in heard], 0.0), TEMPERED),
            Witness(_padded(claims, 0.0), TEMPERED),
        ],
        gold=np.array([-1 if row.review is None else row.review for row in asked], dtype=np.int64),
    )


def _padded(rows: Sequence[Sequence[float]], value: float) -> label_model.Floats:
    """(N, K) with K the longest row's length."""
    padded = np.full((len(rows), max(map(len, rows), default=0)), value)
    for index, row in enumerate(rows):
        padded[index, : len(row)] = row
    return padded


def _held_texts(ctx: Context) -> frozenset[NormalisedText]:
    """Texts that would give a held-out question away."""
    prepare = ctx.input("prepare")
    phashes = {row.image_sha256: row.phash for row in prepare.rows(Image) if row.phash}
    held = contamination.held_texts(prepare.rows(Item), phashes, contamination.HAMMING)
    return frozenset().union(*held.values())


def _row(
    question: OpenQuestion,
    said: Votes,
    scores: tuple[float, ...],
    posterior: Sequence[float],
    least: float,
    held: frozenset[NormalisedText],
) -> AnswerPosterior:
    triplet = question.triplet
    best = posterior.index(max(posterior))
    settled: int | None = best if posterior[best] >= least else None
    # curation looked at the claim; another answer may make it a question of the benchmark
    if settled is not None and text_of(replace(triplet, answer_index=settled)) in held:
        settled = None
    picks = [scores.index(max(scores)), triplet.answer_index, *([] if said.silent else [said.pick])]
    return AnswerPosterior(
        triplet_id=triplet.triplet_id,
        posterior=tuple(posterior),
        answer_index=settled,
        rationale="" if settled is None else rationale_for(triplet, said, settled, kept=question.kept),
        claim=triplet.answer_index,
        reward_scores=scores,
        policy_shares=said.shares,
        review=question.review,
        agreed=settled is not None and (picks.count(settled) > 1 or question.review == settled),
    )


def _counters(asked: Sequence[OpenQuestion], rows: Sequence[AnswerPosterior], scale: float) -> dict[str, float]:
    settled = [row for row in rows if row.answer_index is not None]
    kept = [row for question, row in zip(asked, rows, strict=True) if question.kept]
    return {
        "asked": len(rows),
        "asked_rejected": len(rows) - len(kept),
        "settled": len(settled),
        "settled_rejected": len(settled) - sum(row.answer_index is not None for row in kept),
        "against_reward": sum(row.answer_index != row.reward_scores.index(max(row.reward_scores)) for row in settled),
        "against_generator": sum(row.answer_index != row.claim for row in settled),
        "agreed": sum(row.agreed for row in settled),
        "reviewed": sum(row.review is not None for row in rows),
        "policy_silent": sum(not any(row.policy_shares) for row in rows),
        "scale": round(scale, 6),
    }
