"""Stages that read a model: generate, score, relabel, preferences and evaluate."""

from __future__ import annotations

import math

from medgr2_api.evaluation import Control
from medgr2_api.reward_model import RetrainOn
from medgr2_api.stages import EVALUATE, EVALUATE_GRPO, GENERATE, GRPO, PREFERENCES, RELABEL, SCORE
from medgr2_api.training_spec import AnswerFormat

from . import memory, work
from .gpus import GPU
from .memory import GIB, BatchSize, MemoryPart, Need
from .result import StageFit
from .setting import Setting, StagePlace
from .shapes import ModelShape

#: Tokens of a batch that R scores (`medgr2_jobs.reward.scorer`), and that the policy samples on, with most rows
#: (`medgr2_jobs.engine.in_process`).
_SCORED_GPU, _SCORED_CPU, _SAMPLED, _SAMPLED_ROWS = 32_768, 8_192, 65_536, 256
#: Samples that stages preferences and relabel draw together: of these the model holds what `_SAMPLED` allows.
_PREFERENCES, _RELABEL = 128, 256
#: Longest answer of an evaluation (`medgr2_jobs.evaluate.scoring`).
_EVALUATED = {AnswerFormat.LETTER: 512, AnswerFormat.OPTION_TEXT: 32}
#: Options of a question, each of which R scores.
_OPTIONS = 4
#: Part of a GPU's memory that vLLM takes: its default.
_SERVER_SHARE = 0.9


def generate(setting: Setting) -> StageFit | None:
    """Waits for a provider, or holds the GPUs of the vLLM beside it; None: the generator is made of code."""
    generator, place = setting.spec.generator, setting.place(GENERATE.name)
    if generator.chosen.kind == "scripted":
        return None
    candidates, model = setting.counts.candidates, setting.models.generator
    if not generator.chosen.beside_stage:
        rounds = candidates / (generator.concurrency * place.settings.shards)
        need = Need((MemoryPart("process", memory.PROCESS),))
        waiting = StagePlace(place.settings, 0.0, None, place.host_limit, place.host_limit, place.per_node)
        return setting.stage(GENERATE.name, waiting, need, rounds * setting.known.provider_seconds.value, model=None)
    if model is None or place.gpu is None:
        return setting.stage(GENERATE.name, place, Need((MemoryPart("vLLM", 0.0),)), math.nan, model=None)
    each = max(1.0, place.gpus / place.settings.shards)  # GPUs over which one server divides its model
    need = Need(
        (MemoryPart("weights", model.parameters * 2 / each), MemoryPart("CUDA and fragmentation", memory.CUDA_CONTEXT))
    )
    prompt = setting.prompt(model)
    tower = work.vision_flops(model, setting.image_tokens(model))
    seconds = candidates * work.reading_seconds(work.text_flops(model, prompt) + tower, place.gpu, setting.known)
    seconds += work.server_seconds(model, candidates * setting.answer(), place.gpu, setting.known)
    advice: tuple[str, ...] = ()
    if need.total > place.limit * _SERVER_SHARE:
        more = math.ceil(model.parameters * 2 / (place.limit * _SERVER_SHARE - memory.CUDA_CONTEXT))
        advice = (f"stages[generate].resources: {{limits: {{nvidia.com/gpu: {more}}}}}",)
    return setting.stage(GENERATE.name, place, need, seconds / place.gpus, model=None, advice=advice)


def score(setting: Setting) -> StageFit:
    """R reads every candidate; what the questions about a picture share is read once."""
    place, model = setting.place(SCORE.name), setting.models.reward
    group = setting.spec.generator.questions_per_image
    seconds = math.nan
    if place.gpu is not None:
        groups = setting.counts.candidates / group
        seconds = scoring_seconds(setting, place.gpu, groups, group, same_question=False) / place.settings.shards
    tokens = setting.prompt(model) + setting.longest()
    rows = max(1, (_SCORED_GPU if place.on_gpu else _SCORED_CPU) // tokens)
    return _read(setting, SCORE.name, place, model, BatchSize(rows, tokens, setting.image_tokens(model), rows), seconds)


def relabel(setting: Setting) -> StageFit | None:
    """The policy answers questions several times, and R scores their options; None: nothing reads it."""
    spec, model = setting.spec, setting.models.policy
    if not (spec.curation.correct or spec.reward_model.retrain_on is RetrainOn.CROSS_EXAMINED):
        return None
    place, asked = setting.place(RELABEL.name), setting.counts.asked
    answers = asked * spec.cross_examination.samples_per_question
    rows = _rows(setting, _limit(setting), _RELABEL, round(answers))
    seconds = sampling_seconds(setting, place, model, answers, _limit(setting), rows)
    if place.gpu is not None:
        seconds += scoring_seconds(setting, place.gpu, asked, _OPTIONS)
    beside = MemoryPart("R", setting.models.reward.parameters * (2 if place.on_gpu else 4))
    return _sampled(setting, RELABEL.name, place, rows, seconds, beside)


def preferences(setting: Setting) -> StageFit | None:
    """The policy's own answers for the next R; None: R does not learn from them."""
    if setting.spec.reward_model.retrain_on is not RetrainOn.POLICY_ANSWERS:
        return None
    settings, place = setting.spec.policy.preferences, setting.place(PREFERENCES.name)
    answers = settings.prompts * settings.samples_per_prompt
    rows = _rows(setting, _limit(setting), _PREFERENCES, answers)
    seconds = sampling_seconds(setting, place, setting.models.policy, answers, _limit(setting), rows)
    return _sampled(setting, PREFERENCES.name, place, rows, seconds)


def evaluate(setting: Setting) -> StageFit:
    """The checkpoint of SFT answers."""
    return _evaluate(setting, EVALUATE.name)


def evaluate_grpo(setting: Setting) -> StageFit | None:
    """That of GRPO; None: there is none."""
    return _evaluate(setting, EVALUATE_GRPO.name) if setting.spec.stage(GRPO.name).enabled else None


def _evaluate(setting: Setting, name: str) -> StageFit:
    """A checkpoint under every condition writes an answer to every question, and its options are scored."""
    spec, model, counts = setting.spec, setting.models.policy, setting.counts
    place, limit = setting.place(name), _EVALUATED[setting.spec.answer_format]
    conditions = 1 + sum(control is not Control.OPTION_PRIOR for control in spec.evaluation.controls)
    row = setting.prompt(model) + limit
    rows = _rows(setting, limit, _SAMPLED_ROWS, counts.evaluated)
    answers = counts.evaluated * conditions
    seconds = sampling_seconds(setting, place, model, answers, limit, rows, again=1.0)
    if setting.asks_vllm or setting.asks_on_site:
        return _asked(setting, name, place, seconds)
    batch = BatchSize(rows, setting.prompt(model), setting.image_tokens(model), rows)
    return _read(setting, name, place, model, batch, seconds, cached=rows * row)


def scoring_seconds(setting: Setting, gpu: GPU, groups: float, group: int, *, same_question: bool = True) -> float:
    """Of one GPU: R reads groups of answers, the picture and what else they share once.

    Args:
        setting: the cycle's.
        gpu: on which.
        groups: how many.
        group: answers of each.
        same_question: whether they answer one question, as GRPO's do, or only share a picture.
    """
    model, image = setting.models.reward, setting.image_tokens(setting.models.reward)
    shared = setting.prompt(model) if same_question else image
    rest = setting.answer() + (0 if same_question else setting.prompt(model) - image)
    flops = work.text_flops(model, shared) + work.vision_flops(model, image)
    flops += group * work.text_flops(model, rest, after=shared)
    return groups * work.reading_seconds(flops, gpu, setting.known)


def sampling_seconds(
    setting: Setting, place: StagePlace, model: ModelShape, answers: float, limit: int, rows: int, again: float = 0.0
) -> float:
    """On the clock, for answers by transformers' generate in one process of each shard, or by vLLM on all GPUs.

    Args:
        setting: the cycle's.
        place: where; without a GPU the result is NaN.
        model: that answers.
        answers: how many.
        limit: longest answer in tokens.
        rows: of a batch.
        again: further forward passes over each row.
    """
    if place.gpu is None or setting.asks_on_site:
        return math.nan
    prompt = setting.prompt(model)
    flops = work.text_flops(model, prompt) + work.vision_flops(model, setting.image_tokens(model))
    if setting.asks_vllm:  # what was read once is in its prefix cache
        flops += again * work.text_flops(model, setting.answer(), after=prompt)
        seconds = answers * work.reading_seconds(flops, place.gpu, setting.known)
        seconds += work.server_seconds(model, answers * min(limit, setting.answer()), place.gpu, setting.known)
        return seconds / max(place.settings.shards, place.gpus)
    longest = min(limit, setting.longest())
    batches = math.ceil(answers / rows)
    seconds = answers * (1 + again) * work.reading_seconds(flops, place.gpu, setting.known)
    seconds += batches * work.generate_seconds(model, longest, place.gpu, setting.known)
    return seconds / place.settings.shards


def _rows(setting: Setting, limit: int, most: int, answers: int) -> int:
    """That the policy samples on at a time (`medgr2_jobs.engine.in_process`)."""
    return max(1, min(_SAMPLED // (setting.prompt(setting.models.policy) + limit), most, answers))


def _limit(setting: Setting) -> int:
    """Of a sampled answer: half as long again as the longest that was taught, and 8 (`longest_answer`)."""
    return min(512, round(setting.longest() * 1.5) + 8)


def _sampled(
    setting: Setting, name: str, place: StagePlace, rows: int, seconds: float, *beside: MemoryPart
) -> StageFit:
    model = setting.models.policy
    if setting.asks_vllm or setting.asks_on_site:
        return _asked(setting, name, place, seconds, reads_reward=bool(beside))
    batch = BatchSize(rows, setting.prompt(model), setting.image_tokens(model), rows)
    cached = rows * (batch.tokens + _limit(setting))
    return _read(setting, name, place, model, batch, seconds, cached=cached, beside=beside)


def _asked(setting: Setting, name: str, place: StagePlace, seconds: float, *, reads_reward: bool = False) -> StageFit:
    """A stage whose policy a vLLM serves: what the stage's own GPUs hold of it, and then of R (docs/engine.md)."""
    policy, reward = setting.models.policy, setting.models.reward
    own = Need((MemoryPart("process", memory.PROCESS),))
    scored = 1 + _SCORED_GPU // (setting.prompt(reward) + setting.longest())
    batch = BatchSize(scored, setting.prompt(reward) + setting.longest(), setting.image_tokens(reward), scored)
    after = memory.reading_need(reward, batch, on_gpu=place.on_gpu) if reads_reward else own
    if setting.asks_on_site:
        return setting.stage(name, place, after, seconds, model=reward if reads_reward else None)
    rows = memory.keys_and_values(policy, _SAMPLED, on_gpu=place.on_gpu)
    served = Need(
        (
            MemoryPart("weights", policy.parameters * (2 if place.on_gpu else 4)),
            MemoryPart("keys and values", rows),
            MemoryPart("CUDA and fragmentation" if place.on_gpu else "process", memory.CUDA_CONTEXT),
        )
    )
    need = max(served, after, key=lambda found: found.total)
    host = memory.host_need(policy, 1, trained_whole=False, zero=0) if place.on_gpu else None
    return setting.stage(name, place, need, seconds, model=policy, host=host)


def _read(
    setting: Setting,
    name: str,
    place: StagePlace,
    model: ModelShape,
    batch: BatchSize,
    seconds: float,
    *,
    cached: int = 0,
    beside: tuple[MemoryPart, ...] = (),
) -> StageFit:
    need = memory.reading_need(model, batch, on_gpu=place.on_gpu, cached_tokens=cached, beside=beside)
    host = memory.host_need(model, 1, trained_whole=False, zero=0) if place.on_gpu else None
    advice: tuple[str, ...] = ()
    if 0 < place.limit < need.total:
        smaller = memory.reading_need(model, batch, on_gpu=place.on_gpu, beside=beside).least
        fewer = "" if smaller > place.limit else ", or a lower data.maxPixels"
        advice = (f"a GPU with {need.total / GIB:,.0f} GiB or more, or a smaller model{fewer}",)
    return setting.stage(name, place, need, seconds, model=model, host=host, advice=advice)
