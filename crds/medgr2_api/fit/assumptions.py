"""What the figures of time and length rest on, each with where it is from. `medgr2 plan --fit` prints them."""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import StrEnum

from medgr2_api.cycle import ResolvedSpec


class Basis(StrEnum):
    """How well something is known."""

    MEASURED = "measured"
    """Here, by a benchmark of this repository."""
    PUBLISHED = "published"
    """By somebody else; the source says where."""
    ASSUMED = "assumed"
    """By nobody that we know of."""


@dataclass(frozen=True)
class Assumption:
    """One number."""

    value: float
    what: str
    basis: Basis
    source: str


def _measured(value: float, what: str, source: str) -> Assumption:
    return Assumption(value, what, Basis.MEASURED, source)


def _published(value: float, what: str, source: str) -> Assumption:
    return Assumption(value, what, Basis.PUBLISHED, source)


def _assumed(value: float, what: str, source: str = "") -> Assumption:
    return Assumption(value, what, Basis.ASSUMED, source)


@dataclass(frozen=True)
class Assumptions:
    """All of them; another value is given by `dataclasses.replace`."""

    prompt_tokens: Assumption = _assumed(140, "tokens of a question with its options and the instruction")
    answer_tokens: Assumption = _assumed(200, "tokens of an answer with its rationale")
    longest_answer: Assumption = _assumed(1.5, "the longest answer of a batch, in answers of mean length")
    kept: Assumption = _assumed(0.5, "share of the candidates that curation keeps")
    training_use: Assumption = _published(
        0.33,
        "share of a GPU's arithmetic that training reaches",
        "torchtitan, benchmarks/llama3_h100_202412: 33 % for 8B on 8 H100 without torch.compile; lower in EasyR1, "
        "assets/baselines.md: 13.6 to 26.5 % for 7B",
    )
    unpacking: Assumption = _assumed(1.4, "time of a training step on weights of 4 bits, in steps on bfloat16 (QLoRA)")
    reading_use: Assumption = _assumed(
        0.4, "share of a GPU's arithmetic that a forward pass over whole prompts reaches"
    )
    memory_use: Assumption = _assumed(0.6, "share of a GPU's bandwidth that reading weights reaches while sampling")
    layer_seconds: Assumption = _assumed(
        0.8e-3,
        "seconds a layer and token that transformers' generate spends beside reading the weights",
        "35 tokens a second from a 7B model in bfloat16 on an H100, one row",
    )
    server_tokens: Assumption = _published(
        4283,
        "tokens a second that vLLM samples on one H100 from a 7B model, many requests at once",
        "Mellum 2, figure 13: Qwen2.5-7B in throughput mode; scaled by bandwidth and parameters",
    )
    grouped: Assumption = _measured(
        1.0, "image and question of a group of answers are read once by R", "make bench NAME=scoring: exact to 7e-7"
    )
    provider_seconds: Assumption = _assumed(6.0, "seconds of a provider's answer")

    def all(self) -> list[Assumption]:
        """In their order."""
        return [getattr(self, field.name) for field in fields(self)]


def of_data(spec: ResolvedSpec) -> Assumptions:
    """All of them; of drawn pictures questions and answers are a dozen words (`medgr2_jobs.models.tiny`)."""
    if not spec.data.drawn:
        return Assumptions()
    return Assumptions(
        prompt_tokens=_assumed(40, "tokens of a question with its options and the instruction"),
        answer_tokens=_assumed(16, "tokens of an answer with its rationale"),
    )
