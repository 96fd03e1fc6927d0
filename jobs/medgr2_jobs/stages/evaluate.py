"""Stages evaluate and evaluategrpo: what a checkpoint answers to validation and to every benchmark, with controls.

`evaluate` asks the base model (part `models/policy` of prepare) in iteration 0, then the checkpoint of SFT; beside it
`evaluategrpo` asks that of GRPO, also one that does not go on. Under each condition both scorings: `greedy`, what the
model writes (an answer that cannot be parsed is wrong), and `option_logprob`, which offered option it finds likeliest.
The greedy pass yields the rationale that `option_logprob` stands on, so the controls get both scorings as well.
`option_prior` needs no checkpoint: it is in iteration 0 only, under checkpoint `base`.

Publishes table `predictions`: of this shard, which has a contiguous share of the questions under every condition.
Stage measure counts them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Any

import numpy as np

from medgr2_api.stages import EVALUATE_GRPO, GRPO, SFT
from medgr2_api.stages.evaluate import EvaluateParameters
from medgr2_api.training_spec import AnswerFormat

from ..engine.opening import opened
from ..engine.sampler import Sampler
from ..evaluate.checkpoint_answers import answer
from ..evaluate.controls import CONDITION_OF, BlankEncoder, OptionPrior, rows
from ..evaluate.metrics import QuestionSet
from ..evaluate.question_sets import question_sets
from ..models import checkpoint, vlm
from ..models.checkpoint import Checkpoint
from ..models.vlm import Encoder, PromptResponse
from ..prompts import answers
from ..runner.context import StageContext, StageOutcome
from ..runner.parts import Parts
from ..store.images import ImageStore
from ..store.rows import Split
from ..store.rows.evaluation import EvalCondition, Prediction, Scoring
from ..store.rows.prepared import Item

_BASE = "base"
#: Questions that are answered together: what is answered to one may depend, in its last digits, on the others.
_BATCH = 128

Context = StageContext[EvaluateParameters]


def run(ctx: Context) -> StageOutcome:
    """Asks and publishes; goes on from the parts that an earlier attempt finished.

    Raises:
        ConfigError: an iteration after 0 without a checkpoint to ask.
        DataError: prepare made neither validation nor test questions.
        Checkpointed: asked to stop; finished parts stay.
    """
    name, found = _checkpoint(ctx)
    if found is None:
        ctx.writer.table(Prediction, [])
        return StageOutcome(counters={"asked": 0.0}, message="GRPO was skipped: there is no checkpoint of it to ask")
    items = ctx.input("prepare").rows(Item)
    sets = question_sets(items)
    mine = _share(ctx, sets)
    conditions = [EvalCondition.REAL, *(CONDITION_OF[control] for control in ctx.parameters.controls)]
    shown = [condition for condition in conditions if condition is not EvalCondition.OPTION_PRIOR]
    progress = _Progress(ctx, len(shown) * sum(len(batch) for batches in mine.values() for batch in batches))

    predictions: list[Prediction] = []
    with opened(ctx, ctx.parameters.engine) as engine:
        asked = _Asked(engine.sampler(found), found, ctx.images, ctx.parameters.answer_format)
        for questions, batches in mine.items():
            for condition in shown:
                exam = _Exam(name, questions, condition, sets[questions], batches)
                predictions += exam.predictions(asked, progress)
    if ctx.parameters.iteration == 0 and EvalCondition.OPTION_PRIOR in conditions:
        prior = OptionPrior(item for item in items if item.split is Split.TRAIN)
        for questions, batches in mine.items():
            exam = _Exam(_BASE, questions, EvalCondition.OPTION_PRIOR, sets[questions], batches)
            predictions += exam.guesses(prior)
    ctx.writer.table(Prediction, predictions)
    return StageOutcome(counters={"asked": float(progress.total)})


def _checkpoint(ctx: Context) -> tuple[str, Checkpoint | None]:
    """Whom to ask, with the name that predictions have it under; None: GRPO was skipped."""
    if ctx.parameters.iteration == 0:
        return _BASE, checkpoint.base(ctx)
    name = GRPO.name if ctx.request.stage == EVALUATE_GRPO.name else SFT.name
    return name, checkpoint.published(ctx, name) if checkpoint.is_published(ctx.input(name)) else None


def _share(ctx: Context, sets: dict[QuestionSet, list[Item]]) -> dict[QuestionSet, list[range]]:
    """This shard's batches of each set, as indices of its questions."""
    every = [
        (questions, range(start, min(start + _BATCH, len(in_set))))
        for questions, in_set in sets.items()
        for start in range(0, len(in_set), _BATCH)
    ]
    mine: dict[QuestionSet, list[range]] = {}
    for index in ctx.request.shard.part_of(len(every)):
        questions, batch = every[index]
        mine.setdefault(questions, []).append(batch)
    return mine


class _Asked:
    """The checkpoint; nothing of it is loaded where all parts are there already, after a kill."""

    def __init__(self, sampler: Sampler, found: Checkpoint, images: ImageStore, answer_format: AnswerFormat) -> None:
        self.sampler = sampler
        self.answer_format = answer_format
        self._found = found
        self._images = images

    @cached_property
    def _processor(self) -> Any:
        return self._found.processor()

    def encoder(self, condition: EvalCondition) -> Encoder:
        """What shows it pictures under a condition."""
        return (BlankEncoder if condition is EvalCondition.BLANK else vlm.Encoder)(self._processor, self._images)


class _Progress:
    """The parts of the stage, and how many questions are answered over all conditions."""

    def __init__(self, ctx: Context, total: int) -> None:
        self.total = total
        self.parts = Parts(ctx)
        self._ctx = ctx
        self._before = 0

    def next(self, count: int) -> None:
        """A condition of `count` questions is complete."""
        self._before += count

    def told(self, phase: str, done: float) -> None:
        """Of the condition under way so many questions are done; raises Checkpointed when asked to stop."""
        self.parts.check_stop()
        self._ctx.progress(phase, self._before + int(done), self.total)


@dataclass(frozen=True)
class _Exam:
    """A checkpoint on this shard's share of a set of questions, under one condition."""

    checkpoint: str
    questions: QuestionSet
    condition: EvalCondition
    every: Sequence[Item]
    """All of the set: whose picture is shown instead depends on them."""
    batches: Sequence[range]
    """This shard's, of these."""

    @property
    def items(self) -> list[Item]:
        """This shard's."""
        return [self.every[index] for batch in self.batches for index in batch]

    def predictions(self, asked: _Asked, progress: _Progress) -> list[Prediction]:
        """Both scorings; empty when the condition cannot be made here."""
        prompts = rows(self.condition, self.every, asked.answer_format)
        if prompts is None:
            progress.next(len(self.items))
            return []
        made = progress.parts.make(
            self._name,
            self.batches,
            lambda batches, first: self._answers(asked, prompts, batches, self._before(first), progress.told),
            lambda done: progress.told("answering", self._before(done)),
        )
        progress.next(len(self.items))
        texts = list(chain.from_iterable(batch["texts"] for batch in made))
        logprobs = list(chain.from_iterable(batch["logprobs"] for batch in made))
        written = [
            self._prediction(item, Scoring.GREEDY, answers.extract(text, item.options, asked.answer_format), text=text)
            for item, text in zip(self.items, texts, strict=True)
        ]
        likeliest = [
            self._prediction(item, Scoring.OPTION_LOGPROB, int(np.argmax(values)), option_logprobs=values)
            for item, values in zip(self.items, logprobs, strict=True)
        ]
        return written + likeliest

    def guesses(self, prior: OptionPrior) -> list[Prediction]:
        """The option prior's answers."""
        found = [(item, *prior.predict(item)) for item in self.items]
        return [
            self._prediction(item, Scoring.OPTION_LOGPROB, best, option_logprobs=scores) for item, best, scores in found
        ]

    @property
    def _name(self) -> str:
        """Of its parts; the benchmark's name is hashed, for a source may be called anything."""
        mark = hashlib.sha256(self.questions.benchmark.encode()).hexdigest()[:12]
        return f"{self.questions.split}-{mark}-{self.condition}"

    def _before(self, batch: int) -> int:
        """Questions before a batch."""
        return sum(map(len, self.batches[:batch]))

    def _answers(
        self,
        asked: _Asked,
        prompts: Sequence[PromptResponse],
        batches: Sequence[range],
        before: int,
        told: Callable[[str, float], None],
    ) -> list[dict[str, Any]]:
        """What it answers to consecutive batches, before which so many questions are done."""
        some = [index for batch in batches for index in batch]
        answered = answer(
            asked.sampler,
            asked.encoder(self.condition),
            [prompts[index] for index in some],
            [self.every[index].options for index in some],
            asked.answer_format,
            lambda phase, share: told(phase, before + share),
            [len(batch) for batch in batches],
        )
        texts, logprobs = iter(answered.texts), iter(answered.logprobs)
        return [{"texts": [next(texts) for _ in b], "logprobs": [next(logprobs) for _ in b]} for b in batches]

    def _prediction(
        self,
        item: Item,
        scoring: Scoring,
        predicted: int | None,
        *,
        option_logprobs: Sequence[float] = (),
        text: str = "",
    ) -> Prediction:
        return Prediction(
            checkpoint=self.checkpoint,
            split=self.questions.split,
            benchmark=self.questions.benchmark,
            item_id=item.item_id,
            image_sha256=item.image_sha256,
            modality=item.modality,
            question_type=item.question_type,
            condition=self.condition,
            scoring=scoring,
            answer_index=item.answer_index,
            predicted=predicted,
            correct=predicted == item.answer_index,
            option_logprobs=tuple(option_logprobs),
            text=text,
        )
