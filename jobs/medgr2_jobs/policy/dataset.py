"""What the policy learns from: supervised examples for SFT, prompts with or without a trusted answer for GRPO."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from datasets import Dataset

from medgr2_api.training_spec import AnswerFormat, PromptSource

from ..errors import DataError
from ..models.vlm import Encoder, Row
from ..prompts import answers
from ..store.images import ImageStore

_IMAGES_IN_MEMORY = 1024  # pictures; TRL asks for each one G times in a row

Records = Sequence[dict[str, Any]]


@dataclass(frozen=True)
class Prompt:
    """One question about one image."""

    prompt_id: str
    """16 hex digits of sha256 over image and prompt text: equal exactly for identical prompts."""
    image_sha256: str
    text: str
    """The user turn, without the image."""
    question: str
    options: tuple[str, ...]
    answer_index: int | None
    """The trusted answer (seed gold, or a candidate the filter kept); None: there is none."""
    gold: bool = False
    """The answer is the seed's."""


def sft_rows(training: Records, answer_format: AnswerFormat) -> list[tuple[str, Row]]:
    """(row_id, row) of each row of D_gen, in its order.

    Raises:
        DataError: D_gen is empty.
    """
    if not training:
        raise DataError(
            "the training set is empty: neither seed questions nor kept candidates; look at curate's report"
        )
    return [
        (
            record["row_id"],
            Row(
                record["image_sha256"],
                answers.prompt_text(record["question"], record["options"], answer_format),
                record["response"] or "",
            ),
        )
        for record in training
    ]


def sft_dataset(rows: Iterable[tuple[str, Row]]) -> Dataset:
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
        self.turn_end = _turn_end(encoder)

    def __call__(self, examples: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """A right-padded batch of B rows and T tokens: model inputs and `labels` int64 (B, T), -100 off the answer."""
        rows = [Row(item["images"][0], item["prompt"], item["completion"] + self.turn_end) for item in examples]
        batch = self.encoder.batch(rows, end=False)
        return {**batch.inputs, "labels": batch.labels}

    def check(self, rows: Iterable[tuple[str, Row]]) -> None:
        """Looks at every row before the first step, so that no row trains on nothing or on a torn image.

        Raises:
            DataError: an answer without a token, or a text that itself contains an image token; names the row.
        """
        rows = list(rows)
        image = self.encoder.image_token_id
        prompts = self._tokenise([self.encoder.chat(row.prompt, with_image=True) for _, row in rows])
        responses = self._tokenise([row.response for _, row in rows])
        for (row_id, row), prompt, response in zip(rows, prompts, responses, strict=True):
            if not row.response.strip() or not response:
                raise DataError(f"training row {row_id}: its response is empty, there is nothing to learn from it")
            if prompt.count(image) != 1 or image in response:
                raise DataError(
                    f"training row {row_id}: its text contains the model's own image token "
                    f"({self.encoder.processor.image_token}); remove it from the question or the response"
                )

    def _tokenise(self, texts: list[str]) -> list[list[int]]:
        ids: list[list[int]] = self.encoder.tokenizer(texts, add_special_tokens=False)["input_ids"]
        return ids


def _turn_end(encoder: Encoder) -> str:
    """What the chat template puts behind an assistant's answer."""
    mark = "medgr2-answer"
    turns = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": mark}]},
    ]
    text: str = encoder.processor.apply_chat_template([turns], tokenize=False)[0]
    return text.split(mark, 1)[1]


def grpo_prompts(
    training: Records, candidates: Records, answer_format: AnswerFormat, source: PromptSource
) -> list[Prompt]:
    """The prompts GRPO samples from, identical ones merged, in the order of their first appearance.

    A rejected candidate's question and image are used, its answer never (DECISIONS 20). Where seed and candidates
    disagree the seed is right; where only kept candidates disagree no answer is trusted. A kept candidate is asked as
    D_gen has it: curate may have dealt its options anew.

    Args:
        training: D_gen: the seed and the kept candidates of this and earlier iterations.
        candidates: this iteration's candidates, kept and rejected; those without a question are passed over.
        answer_format: how questions are put.
        source: Kept: D_gen only; Candidates: the seed and all of this iteration's candidates.
    """
    seed: dict[str, int] = {}
    kept: dict[str, set[int]] = {}
    asked: dict[str, dict[str, Any]] = {}

    def identify(record: dict[str, Any]) -> str:
        text = answers.prompt_text(record["question"], record["options"], answer_format)
        return answers.Prompt(record["image_sha256"], text).prompt_id

    for record in training:
        name = identify(record)
        if record["answer_index"] is not None:
            if record["origin"] == "seed":
                seed.setdefault(name, record["answer_index"])
            else:
                kept.setdefault(name, set()).add(record["answer_index"])
        if source is PromptSource.KEPT or record["origin"] == "seed":
            asked.setdefault(name, record)
    if source is PromptSource.CANDIDATES:
        learnt = {record["row_id"]: record for record in training if record["origin"] != "seed"}
        for candidate in candidates:
            if candidate["outcome"] == "ok":
                record = learnt.get(candidate["triplet_id"], candidate)
                asked.setdefault(identify(record), record)

    def trusted(name: str) -> int | None:
        if name in seed:
            return seed[name]
        found = kept.get(name, set())
        return next(iter(found)) if len(found) == 1 else None

    return [
        Prompt(
            prompt_id=name,
            image_sha256=record["image_sha256"],
            text=answers.prompt_text(record["question"], record["options"], answer_format),
            question=record["question"],
            options=tuple(record["options"]),
            answer_index=trusted(name),
            gold=name in seed,
        )
        for name, record in asked.items()
    ]


def with_seed_share(prompts: Sequence[Prompt], fraction: float) -> list[Prompt]:
    """The prompts, with the seed's repeated as a whole until they make up at least `fraction`.

    The seed's answers are right for certain; the more of them, the less R's errors weigh.
    """
    gold = [prompt for prompt in prompts if prompt.gold]
    others = len(prompts) - len(gold)
    if not gold or not others:
        return list(prompts)
    copies = math.ceil(fraction * others / ((1 - fraction) * len(gold)))
    return [*prompts, *gold * max(0, copies - 1)]


def grpo_dataset(prompts: Sequence[Prompt], images: ImageStore) -> Dataset:
    """Conversational rows for GRPOTrainer; pictures are read when a row is, and the last ones stay in memory."""
    load = lru_cache(maxsize=_IMAGES_IN_MEMORY)(images.load)
    dataset = Dataset.from_list(
        [
            {
                "prompt_id": prompt.prompt_id,
                "image_sha256": prompt.image_sha256,
                "text": prompt.text,
                "options": list(prompt.options),
                "answer_index": prompt.answer_index,
            }
            for prompt in prompts
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
