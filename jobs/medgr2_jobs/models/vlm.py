"""A vision-language model with its processor: loading, batching, sampling and log-likelihoods.

The one place that turns (image, prompt, response) into tensors for our own forward passes; TRL's trainers use the same
processor and chat template. How a family's pictures stand in a prompt is told by its processor (`pictures`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from transformers import AutoModelForImageTextToText, AutoProcessor, AutoTokenizer
from transformers.utils import logging as transformers_logging
from transformers.utils.quantization_config import QuantizationConfigMixin

from medgr2_api import model_families

from ..errors import ConfigError, NotFinite
from ..store.images import ImageStore
from . import generation
from .generation import GREEDY, Decoding
from .patches import qwen_vl
from .patches.pixel_cache import Pixels
from .pictures import GridPictures, of_processor

transformers_logging.set_verbosity_error()
transformers_logging.disable_progress_bar()

#: What opens the answer of a model that was taught our format, and what some chat templates write in its place.
_THINK = "<think>"


@dataclass(frozen=True)
class PromptResponse:
    """One turn: an image (or none), what is asked, and perhaps what is answered."""

    image_sha256: str | None
    prompt: str
    response: str = ""


@dataclass
class Batch:
    """Model inputs (B rows, T tokens) and where the response stands."""

    inputs: dict[str, torch.Tensor]
    labels: torch.Tensor
    """int64 (B, T): token ids of the response and its end, -100 elsewhere."""

    def to(self, device: torch.device) -> Batch:
        return Batch({key: value.to(device) for key, value in self.inputs.items()}, self.labels.to(device))


def load_model(
    path: Path,
    *,
    adapter: Path | None = None,
    train: bool = False,
    dtype: Any = None,
    attention: str = "sdpa",
    quantization: QuantizationConfigMixin | None = None,
) -> Any:
    """Loads a model from a folder: safetensors only, no code from the folder, float32 on CPU and bfloat16 on GPU; it
    writes by our own configuration (`generation`), whatever the folder's says.

    Args:
        path: the folder of a whole model.
        adapter: the folder of adapters to merge into it.
        train: to be trained: float32 on a GPU, too.
        dtype: precision of the weights, if another one; "auto": as they are in the folder.
        attention: how it is computed, by its name in transformers.
        quantization: how weights are stored that adapters will be trained on.

    Raises:
        ConfigError: the folder holds no model of a supported family, or the adapters do not fit it.
    """
    if not (path / "config.json").is_file():
        raise ConfigError(f"{path}: no config.json; a model folder in Hugging Face format is needed")
    _check_family(path)
    try:
        loaded: Any = AutoModelForImageTextToText.from_pretrained(  # a pair, with the loading info
            path,
            output_loading_info=True,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            dtype=dtype or (torch.bfloat16 if torch.cuda.is_available() and not train else torch.float32),
            attn_implementation=attention,
            **({"quantization_config": quantization} if quantization is not None else {}),
        )
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ConfigError(f"{path}: cannot be loaded as a vision-language model ({error})") from error
    model, report = loaded
    if report["missing_keys"]:  # transformers would leave them random and only log it
        lacking = ", ".join(sorted(report["missing_keys"])[:3])
        raise ConfigError(f"{path}: its weights lack {lacking} …; the folder is incomplete")
    tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    model.generation_config = generation.configuration(tokenizer, model.generation_config)
    model = model.to(device())
    if adapter is not None:
        model = with_adapter(model, adapter).merge_and_unload()
        model.requires_grad_(True)
    return qwen_vl.apply(model.train(train))


def with_adapter(model: Any, folder: Path, *, dropout: float | None = None) -> Any:
    """A model with published adapters on it, in float32 whatever the model's precision is.

    Args:
        model: what they stand on; changed.
        folder: with peft's two files.
        dropout: on the adapters' input, where they go on learning; None: they only answer.

    Raises:
        ConfigError: they are not there, or do not fit the model.
    """
    from peft import LoraConfig, PeftModel  # half a second, which whoever reads whole models need not wait

    try:
        config = LoraConfig.from_pretrained(str(folder), local_files_only=True)
        config.lora_dropout = dropout or 0.0
        return PeftModel.from_pretrained(
            model, str(folder), config=config, is_trainable=dropout is not None, local_files_only=True
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise ConfigError(f"{folder}: its adapters cannot be put on the model ({error})") from error


def load_processor(path: Path, padding_side: str = "right") -> Any:
    """Loads the processor of a model folder.

    Raises:
        ConfigError: missing, or not an image processor (AutoProcessor would silently return the tokenizer).
    """
    try:
        processor = AutoProcessor.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ConfigError(f"{path}: its processor cannot be loaded ({error})") from error
    if not hasattr(processor, "image_processor"):
        raise ConfigError(f"{path}: has a tokenizer but no image processor (preprocessor_config.json is missing)")
    processor.tokenizer.padding_side = padding_side
    return processor


def _check_family(path: Path) -> None:
    """Raises ConfigError where a model folder is of a family that is not supported."""
    try:
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{path / 'config.json'}: is not JSON ({error})") from error
    if (refused := model_families.refusal(config if isinstance(config, dict) else {})) is not None:
        raise ConfigError(f"{path}: {refused}")


def device() -> torch.device:
    """Where models run."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


class Encoder:
    """Turns rows into tensors; keeps preprocessed images, for each is used many times."""

    def __init__(self, processor: Any, images: ImageStore) -> None:
        self.processor = processor
        self.tokenizer = processor.tokenizer
        self.images = images
        self._ids = lru_cache(maxsize=65536)(self._tokenise)
        self.pictures = of_processor(processor, self.image, self._ids)

    @property
    def counts_grid(self) -> bool:
        """Whether the pictures stand in a prompt in the way that `models.patches` and packed questions are made for."""
        return isinstance(self.pictures, GridPictures)

    @property
    def image_token_id(self) -> int:
        """The token that stands in a prompt for each feature of a picture."""
        return self.pictures.token_id

    @cached_property
    def own_image_tokens(self) -> frozenset[int]:
        """Tokens that a text must not have: they stand for pictures."""
        return frozenset((self.image_token_id, self.tokenizer.convert_tokens_to_ids(self.processor.image_token)))

    def pixels(self, sha256: str) -> Pixels:
        """Patches float32 (N, D) and grid int64 (3,) of an image, where `counts_grid`."""
        assert isinstance(self.pictures, GridPictures)
        return self.pictures.pixels(sha256)

    def image(self, sha256: str) -> Any:
        """The picture behind a name; subclasses replace it for controls (blank, shuffled)."""
        return self.images.load(sha256)

    def image_tokens(self, sha256: str) -> int:
        """How many features of the image there are, each with a token."""
        return self.pictures.count(sha256)

    def prompt_ids(self, row: PromptResponse) -> list[int]:
        """Token ids of the user turn up to where the assistant begins, image tokens expanded."""
        text = self.chat(row.prompt, with_image=row.image_sha256 is not None)
        if row.image_sha256 is None:
            return list(self._ids(text))
        return self.pictures.prompt_ids(text, row.image_sha256)

    @cached_property
    def opens_thinking(self) -> bool:
        """Whether the chat template itself writes the `<think>` that an answer begins with."""
        return self.chat("", with_image=False).rstrip().endswith(_THINK)

    def written(self, response: str) -> str:
        """What of an answer the model writes itself, behind the prompt: not a `<think>` that the template has written;
        that is closed where the answer goes without."""
        if not self.opens_thinking:
            return response
        return response.removeprefix(_THINK) if response.startswith(_THINK) else f"</think>{response}"

    def answered(self, text: str) -> str:
        """The whole answer, from what the model wrote behind the prompt."""
        return _THINK + text if self.opens_thinking else text

    def response_ids(self, response: str) -> list[int]:
        """Token ids of an answer and the end of its turn."""
        return [*self._ids(self.written(response)), self._end]

    @cached_property
    def _end(self) -> int:
        """The token that ends an assistant's turn: what the chat template puts behind an answer, if that is special."""
        end: int = self.tokenizer.eos_token_id
        if self.counts_grid:
            return end
        behind = self.tokenizer(self.turn_end, add_special_tokens=False)["input_ids"]
        return int(behind[0]) if behind and behind[0] in self.tokenizer.added_tokens_decoder else end

    @cached_property
    def turn_end(self) -> str:
        """What the chat template puts behind an assistant's answer."""
        mark = "medgr2-answer"
        turns = [
            {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "?"}]},
            {"role": "assistant", "content": [{"type": "text", "text": mark}]},
        ]
        text: str = self.processor.apply_chat_template([turns], tokenize=False)[0]
        return text.split(mark, 1)[1]

    @lru_cache(maxsize=65536)  # noqa: B019 - an encoder lives as long as its process
    def chat(self, prompt: str, *, with_image: bool) -> str:
        """The user turn through the processor's chat template, ready for the assistant's."""
        content = [{"type": "image"}] if with_image else []
        message = {"role": "user", "content": [*content, {"type": "text", "text": prompt}]}
        text: str = self.processor.apply_chat_template([message], tokenize=False, add_generation_prompt=True)
        return text

    def batch(self, rows: Sequence[PromptResponse], *, padding_side: str = "right", end: bool = True) -> Batch:
        """Pads rows into one batch.

        Args:
            rows: B rows; rows with and without an image may be mixed.
            padding_side: "right" for scoring and training, "left" for sampling.
            end: whether a response is followed by the end-of-turn token.
        """
        prompts = [self.prompt_ids(row) for row in rows]
        responses = [
            (self.response_ids(row.response) if end else list(self._ids(self.written(row.response))))
            if row.response
            else []
            for row in rows
        ]
        return self.assemble([row.image_sha256 for row in rows], prompts, responses, padding_side=padding_side)

    def assemble(
        self,
        images: Sequence[str | None],
        prompts: Sequence[Sequence[int]],
        answers: Sequence[Sequence[int]],
        *,
        padding_side: str = "right",
    ) -> Batch:
        """Pads B rows of token ids into one batch.

        Args:
            images: the picture of each, if it has one.
            prompts: with image tokens, as `prompt_ids` makes them.
            answers: what follows, and is labelled.
            padding_side: see `batch`.
        """
        length = max(len(p) + len(a) for p, a in zip(prompts, answers, strict=True))
        ids = torch.full((len(prompts), length), self.tokenizer.pad_token_id)
        attention = torch.zeros((len(prompts), length), dtype=torch.long)
        labels = torch.full((len(prompts), length), -100)
        for index, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
            count = len(prompt) + len(answer)
            start = length - count if padding_side == "left" else 0
            ids[index, start : start + count] = torch.tensor([*prompt, *answer])
            attention[index, start : start + count] = 1
            labels[index, start + len(prompt) : start + count] = torch.tensor(answer, dtype=torch.long)
        inputs = {"input_ids": ids, "attention_mask": attention}
        if (kinds := self.pictures.kinds) is not None:
            inputs[kinds] = (ids == self.image_token_id).long()
        shown = [sha256 for sha256 in images if sha256 is not None]
        return Batch({**inputs, **(self.pictures.inputs(shown) if shown else {})}, labels)

    def _tokenise(self, text: str) -> tuple[int, ...]:
        return tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])


def chunks(rows: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    """Consecutive pieces of at most `size`."""
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


@torch.no_grad()
def generate(
    model: Any,
    encoder: Encoder,
    rows: Sequence[PromptResponse],
    *,
    max_new_tokens: int,
    decoding: Decoding = GREEDY,
    batch_size: int = 128,
) -> list[str]:
    """Whole answers, in the order of `rows`. Seed torch for reproducible samples.

    A row's `response`, when given, is the beginning of the answer and is continued (it is not repeated in the result).

    Raises:
        NotFinite: the model's logits are no numbers.
    """
    answers: list[str] = []
    never = generation.never_sampled(encoder.processor, model.generation_config.eos_token_id)
    for piece in chunks(rows, batch_size):
        inputs = encoder.batch(piece, padding_side="left", end=False).to(model.device).inputs
        output = model.generate(
            **inputs,
            max_new_tokens=max_new_tokens,
            suppress_tokens=never,
            logits_processor=[generation.OnlyNumbers()],
            **decoding.options(),
        )
        new = output[:, inputs["input_ids"].shape[1] :]
        texts = encoder.tokenizer.batch_decode(new, skip_special_tokens=True)
        answers += [text if row.response else encoder.answered(text) for row, text in zip(piece, texts, strict=True)]
    return answers


def check_finite(values: np.ndarray, what: str) -> None:
    """Raises NotFinite where one of the values is infinite or no number; `what` they are, for the message."""
    if not np.isfinite(values).all():
        raise NotFinite(f"the {what} are infinite or no numbers: {generation.WEIGHTS}")


def response_logprobs(model: Any, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Log-probabilities of the response tokens, and the last hidden states they come from.

    Only response positions go through the LM head, so the (B, T, vocabulary) logits never exist.

    Returns:
        logprobs: float32 (B, T-1), 0 where there is no response token.
        mask: bool (B, T-1), where there is one.
        hidden: (B, T, H) last hidden states.
    """
    hidden = model.model(**batch.inputs, use_cache=False).last_hidden_state
    return (*token_logprobs(model, hidden, batch.labels), hidden)


def token_logprobs(model: Any, hidden: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities of the labelled tokens from the hidden states one position before them.

    Args:
        model: whose LM head to use.
        hidden: (B, T, H) last hidden states.
        labels: int64 (B, T), -100 where there is no response token.

    Returns:
        logprobs: float32 (B, T-1), 0 where there is no response token.
        mask: bool (B, T-1), where there is one.
    """
    targets = labels[:, 1:]
    mask = targets != -100
    logits = model.lm_head(hidden[:, :-1][mask]).float()
    chosen = torch.log_softmax(logits, -1).gather(1, targets[mask][:, None]).squeeze(1)
    return chosen.new_zeros(targets.shape).masked_scatter(mask, chosen), mask
