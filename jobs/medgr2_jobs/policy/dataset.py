"""What the policy learns from: supervised examples for SFT, prompts with or without a trusted answer for GRPO."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from datasets import Dataset

from medgr2_api.policy import PromptSource
from medgr2_api.training_spec import AnswerFormat

from ..curate.training_set import Origin, TrainingRow
from ..errors import DataError
from ..models.vlm import Encoder, PromptResponse
from ..prompts import answers
from ..prompts.answers import Prompt
from ..store.images import ImageStore
from ..store.rows import AnsweredQuestion
from ..store.rows.candidates import Triplet

_IMAGES_IN_MEMORY = 1024  # pictures; TRL asks for each one G times in a row


@dataclass(frozen=True)
class GRPOPrompt:
    """What GRPO samples from, and how its completions are judged."""

    prompt: Prompt
    options: tuple[str, ...]
    answer_index: int | None
    """The trusted answer (seed gold, or a candidate the filter kept); None: there is none."""
    gold: bool = False
    """The answer is the seed's."""


def sft_rows(training: Sequence[TrainingRow], answer_format: AnswerFormat) -> list[tuple[str, PromptResponse]]:
    """(row_id, row) of each row of D_gen, in its order.

    Raises:
        DataError: D_gen is empty.
    """
    if not training:
        raise DataError(
            "the training set is empty: neither seed questions nor kept candidates; look at curate's report"
        )
    prompts = [answers.prompt_of(row, answer_format) for row in training]
    return [
        (row.row_id, PromptResponse(prompt.image_sha256, prompt.text, row.response))
        for row, prompt in zip(training, prompts, strict=True)
    ]


def sft_dataset(rows: Iterable[tuple[str, PromptResponse]]) -> Dataset:
    """Prompt/completion rows for TRL; `images` holds names, which `CompletionCollator` looks up."""
    return Dataset.from_list(
        [{"images": [row.image_sha256], "prompt": row.prompt, "completion": row.response} for _, row in rows]
    )


class CompletionCollator:
    """Batches for SFTTrainer: the tensors of TRL's own collator, but each image is preprocessed once, not once a batch.

    As with TRL, the supervised tokens are the answer and all that the chat template puts behind it (for Qwen
    `<|im_end|>` and a newline); `tests/unit/jobs/policy/test_dataset.py` compares the two collators tensor by tensor.
    """

    def __init__(self, encoder: Encoder) -> None:
        self.encoder = encoder
        self.turn_end = encoder.turn_end

    def __call__(self, examples: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """A right-padded batch of B rows and T tokens: model inputs and `labels` int64 (B, T), -100 off the answer."""
        rows = [
            PromptResponse(item["images"][0], item["prompt"], item["completion"] + self.turn_end) for item in examples
        ]
        batch = self.encoder.batch(rows, end=False)
        return {**batch.inputs, "labels": batch.labels}

    def check(self, rows: Iterable[tuple[str, PromptResponse]]) -> None:
        """Looks at every row before the first step, so that no row trains on nothing or on a torn image.

        Raises:
            DataError: an answer without a token, or a text that itself contains an image token; names the row.
        """
        rows = list(rows)
        placeholder = self.encoder.tokenizer.convert_tokens_to_ids(self.encoder.processor.image_token)
        own = self.encoder.own_image_tokens
        prompts = self._tokenise([self.encoder.chat(row.prompt, with_image=True) for _, row in rows])
        responses = self._tokenise([row.response for _, row in rows])
        for (row_id, row), prompt, response in zip(rows, prompts, responses, strict=True):
            if not row.response.strip() or not response:
                raise DataError(f"training row {row_id}: its response is empty, there is nothing to learn from it")
            if prompt.count(placeholder) != 1 or not own.isdisjoint(response) or len(own.intersection(prompt)) != 1:
                raise DataError(
                    f"training row {row_id}: its text contains the model's own image token "
                    f"({self.encoder.processor.image_token}); remove it from the question or the response"
                )

    def _tokenise(self, texts: list[str]) -> list[list[int]]:
        ids: list[list[int]] = self.encoder.tokenizer(texts, add_special_tokens=False)["input_ids"]
        return ids


def grpo_prompts(
    training: Sequence[TrainingRow], triplets: Sequence[Triplet], answer_format: AnswerFormat, source: PromptSource
) -> list[GRPOPrompt]:
    """The prompts GRPO samples from, identical ones merged, in the order of their first appearance.

    A rejected candidate's question and image are used, its answer never (docs/decisions.md). Where seed and candidates
    disagree the seed is right; where only kept candidates disagree no answer is trusted, and a student's alone is none
    (`TrainingRow.trusted`). A kept candidate is asked as D_gen has it: curate may have dealt its options anew.

    Args:
        training: D_gen: the seed and the kept candidates of this and earlier iterations.
        triplets: this iteration's, kept and rejected.
        answer_format: how questions are put.
        source: Kept: D_gen only; Candidates: the seed and all of this iteration's triplets.
    """
    seed: dict[Prompt, int] = {}
    kept: dict[Prompt, set[int]] = {}
    question_by_prompt: dict[Prompt, AnsweredQuestion] = {}
    for row in training:
        prompt = answers.prompt_of(row, answer_format)
        if row.origin is Origin.SEED:
            seed.setdefault(prompt, row.answer_index)
        elif row.trusted:
            kept.setdefault(prompt, set()).add(row.answer_index)
        if source is PromptSource.KEPT or row.origin is Origin.SEED:
            question_by_prompt.setdefault(prompt, row)
    if source is PromptSource.CANDIDATES:
        learnt = {row.row_id: row for row in training if row.origin is Origin.GENERATED}
        for triplet in triplets:
            question = learnt.get(triplet.triplet_id, triplet)
            question_by_prompt.setdefault(answers.prompt_of(question, answer_format), question)

    def trusted(prompt: Prompt) -> int | None:
        if prompt in seed:
            return seed[prompt]
        believed = kept.get(prompt, set())
        return next(iter(believed)) if len(believed) == 1 else None

    return [
        GRPOPrompt(prompt, question.options, trusted(prompt), gold=prompt in seed)
        for prompt, question in question_by_prompt.items()
    ]


def with_seed_share(prompts: Sequence[GRPOPrompt], fraction: float) -> list[GRPOPrompt]:
    """The prompts, with the seed's repeated as a whole until they make up at least `fraction`.

    The seed's answers are right for certain; the more of them, the less R's errors weigh.
    """
    gold = [prompt for prompt in prompts if prompt.gold]
    others = len(prompts) - len(gold)
    if not gold or not others:
        return list(prompts)
    copies = math.ceil(fraction * others / ((1 - fraction) * len(gold)))
    return [*prompts, *gold * max(0, copies - 1)]


def grpo_dataset(prompts: Sequence[GRPOPrompt], images: ImageStore) -> Dataset:
    """Conversational rows for GRPOTrainer; pictures are read when a row is, and the last ones stay in memory."""
    load = lru_cache(maxsize=_IMAGES_IN_MEMORY)(images.load)
    dataset = Dataset.from_list(
        [
            {
                "prompt_id": row.prompt.prompt_id,
                "image_sha256": row.prompt.image_sha256,
                "text": row.prompt.text,
                "options": list(row.options),
                "answer_index": row.answer_index,
            }
            for row in prompts
        ]
    )
    return dataset.with_transform(_conversations(load))


def _conversations(load: Callable[[str], Any]) -> Callable[[dict[str, list[Any]]], dict[str, list[Any]]]:
    def transform(columns: dict[str, list[Any]]) -> dict[str, list[Any]]:
        return {
            **columns,
            "image": [load(sha256) for sha256 in columns["image_sha256"]],
            "prompt": [[{"role": "user", "content": text}] for text in columns["text"]],
        }

    return transform
