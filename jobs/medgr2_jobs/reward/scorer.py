"""Scoring many texts on few images: each image, and all that its rows share before they differ, is run once.

Rows are grouped by image. The longest common beginning of a group (chat header, image, and for GRPO's completions the
question too) runs once into a key/value cache, several groups at a time; the rows then run from where they differ,
on that cache. A row that is alone with its image gains nothing from a second pass and goes into a plain batch.
Exact up to the rounding of float addition: the same tokens attend to the same keys at the same positions.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
import torch
from transformers import DynamicCache, PreTrainedConfig
from transformers.cache_utils import CacheLayerMixin

from medgr2_api.training_spec import AnswerFormat

from ..models import vlm
from ..models.vlm import Encoder, PromptResponse
from ..prompts import answers
from .model import SCORE_MAX, SCORE_MIN, RewardModel

#: Tokens of one forward pass, padding and cached ones included: bounds memory.
_BATCH_TOKENS = {"cpu": 8192, "cuda": 32768}

Progress = Callable[[int, int], None]
T = TypeVar("T")


class QuestionWithResponse(answers.Askable, Protocol):
    """A question with what was answered: a graded row, a preference, a triplet."""

    @property
    def response(self) -> str: ...


def answer_row(row: QuestionWithResponse, answer_format: AnswerFormat) -> PromptResponse:
    """A question and its answer as R reads them: image, the policy's prompt, the response."""
    prompt = answers.prompt_of(row, answer_format)
    return PromptResponse(prompt.image_sha256, prompt.text, row.response)


@dataclass(frozen=True)
class _Item:
    """One distinct row, tokenised."""

    row: PromptResponse
    ids: list[int]
    prompt: int
    """How many of the ids are the prompt's."""


@dataclass(frozen=True)
class _Group:
    """Rows of one image that begin with the same `shared` tokens."""

    items: list[_Item]
    shared: int


@torch.no_grad()
def score(
    model: RewardModel, encoder: Encoder, rows: Sequence[PromptResponse], *, on_progress: Progress | None = None
) -> np.ndarray:
    """Scores of rows, clipped to [-6, 10]; the same whatever their order, equal rows are run once.

    Args:
        model: R; its mode is restored afterwards.
        encoder: of the model's processor.
        rows: N rows (image, prompt, response).
        on_progress: called with (done, all) distinct rows after each forward pass; may raise to stop.

    Returns:
        float64 (N,), in the order of `rows`.

    Raises:
        NotFinite: a score is no number.
    """
    distinct = sorted(set(rows), key=lambda row: (row.image_sha256 or "", row.prompt, row.response))
    scores: dict[PromptResponse, float] = {}
    training = model.training
    model.eval()
    try:
        for batch_scores in _passes(model, encoder, [_item(encoder, row) for row in distinct]):
            vlm.check_finite(np.array([*batch_scores.values()]), "scores of the reward model")
            scores.update(batch_scores)
            if on_progress:
                on_progress(len(scores), len(distinct))
    finally:
        model.train(training)
    return np.clip(np.array([scores[row] for row in rows], dtype=np.float64), SCORE_MIN, SCORE_MAX)


def _item(encoder: Encoder, row: PromptResponse) -> _Item:
    prompt = encoder.prompt_ids(row)
    response = encoder.response_ids(row.response) if row.response else []
    return _Item(row, prompt + response, len(prompt))


def _passes(model: RewardModel, encoder: Encoder, items: list[_Item]) -> Iterator[dict[PromptResponse, float]]:
    """Every forward pass that scores rows, with what it found."""
    limit = _BATCH_TOKENS.get(model.core.device.type, _BATCH_TOKENS["cpu"])
    singles, groups = _plan(items, encoder.image_token_id) if encoder.counts_grid else (items, [])
    singles.sort(key=lambda item: len(item.ids))  # stable: rows of equal length keep their order
    for batch in _fill(singles, lambda item: len(item.ids), limit):
        yield _plain(model, encoder, batch)
    groups.sort(key=lambda group: group.shared)
    for some in _fill(groups, lambda group: group.shared, limit):
        yield from _grouped(model, encoder, some, limit)


def _plan(items: list[_Item], image_token: int) -> tuple[list[_Item], list[_Group]]:
    """Splits rows into those that run alone and those that share a beginning with others."""
    by_image: dict[str | None, list[_Item]] = defaultdict(list)
    for item in items:
        by_image[item.row.image_sha256].append(item)
    singles = by_image.pop(None, [])
    groups = []
    for members in by_image.values():
        shared = _shared(members)
        if len(members) > 1 and image_token not in members[0].ids[shared:]:
            groups.append(_Group(members, shared))
        else:
            singles += members
    return singles, groups


def _shared(members: list[_Item]) -> int:
    """Length of the common beginning, short of the last prompt token: the response's first token is predicted there."""
    first, last = min(item.ids for item in members), max(item.ids for item in members)
    limit = min(item.prompt for item in members) - 1
    return next((at for at in range(limit) if first[at] != last[at]), limit)


def _fill(things: Sequence[T], length: Callable[[T], int], limit: int) -> Iterator[list[T]]:
    """Consecutive pieces of things sorted by length, each at most `limit` tokens when padded (at least one thing)."""
    piece: list[T] = []
    for thing in things:
        if piece and (len(piece) + 1) * length(thing) > limit:
            yield piece
            piece = []
        piece.append(thing)
    if piece:
        yield piece


def _plain(model: RewardModel, encoder: Encoder, items: list[_Item]) -> dict[PromptResponse, float]:
    """One ordinary batch."""
    batch = encoder.batch([item.row for item in items]).to(model.core.device)
    scores = model(labels=batch.labels, **batch.inputs)["scores"]
    return {item.row: value for item, value in zip(items, scores.tolist(), strict=True)}


def _grouped(
    model: RewardModel, encoder: Encoder, groups: list[_Group], limit: int
) -> Iterator[dict[PromptResponse, float]]:
    """The beginnings of some groups once, then their rows from there."""
    device, base = model.core.device, model.core.model
    pad = encoder.tokenizer.pad_token_id
    ids, present = _pad([group.items[0].ids[: group.shared] for group in groups], pad, device)
    pictures = [encoder.pixels(group.items[0].row.image_sha256 or "") for group in groups]
    grids = torch.stack([grid for _, grid in pictures]).to(device)
    kinds = (ids == encoder.image_token_id).long()
    positions, _ = base.get_rope_index(ids, mm_token_type_ids=kinds, image_grid_thw=grids, attention_mask=present)
    cache = DynamicCache(config=base.config.get_text_config())
    base(
        input_ids=ids,
        attention_mask=present,
        position_ids=positions,
        mm_token_type_ids=kinds,
        pixel_values=torch.cat([patches for patches, _ in pictures]).to(device),
        image_grid_thw=grids,
        past_key_values=cache,
        use_cache=True,
    )
    # text after an image goes on from the largest position so far, equal in all three dimensions
    starts = positions.masked_fill(present == 0, -1).amax(dim=(0, 2)) + 1

    rest = sorted(
        ((at, item) for at, group in enumerate(groups) for item in group.items),
        key=lambda pair: len(pair[1].ids) - groups[pair[0]].shared,
    )
    width = ids.shape[1]
    for piece in _fill(rest, lambda pair: width + len(pair[1].ids) - groups[pair[0]].shared, limit):
        owner = torch.tensor([at for at, _ in piece], device=device)
        tails = [item.ids[groups[at].shared :] for at, item in piece]
        suffix, attended = _pad(tails, pad, device)
        labels = torch.full_like(suffix, -100)
        for index, (at, item) in enumerate(piece):
            begin, end = item.prompt - groups[at].shared, len(tails[index])
            labels[index, begin:end] = suffix[index, begin:end]
        steps = torch.arange(suffix.shape[1], device=device)
        hidden = base(
            input_ids=suffix,
            attention_mask=torch.cat([present[owner], attended], 1),
            position_ids=(starts[owner][:, None] + steps).expand(3, -1, -1),
            past_key_values=_expand(cache, owner, base.config.get_text_config()),
            use_cache=True,
        ).last_hidden_state
        scores, _, _ = model.read(hidden, attended, labels)
        yield {item.row: value for (_, item), value in zip(piece, scores.tolist(), strict=True)}


def _pad(ids: list[list[int]], pad: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Right-padded ids and attention, int64 (B, T)."""
    length = max(len(row) for row in ids)
    padded = torch.tensor([row + [pad] * (length - len(row)) for row in ids], device=device)
    attended = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in ids], device=device)
    return padded, attended


def _expand(cache: DynamicCache, owner: torch.Tensor, config: PreTrainedConfig) -> DynamicCache:
    """A cache with one row per entry of `owner`: that group's keys and values (a view when there is one group)."""
    expanded = DynamicCache(config=config)
    for index, layer in enumerate(cache.layers):
        assert isinstance(layer, CacheLayerMixin)  # with keys and values, as the Qwen2-VL family's are
        assert layer.keys is not None
        assert layer.values is not None
        if layer.keys.shape[0] == 1:
            keys, values = (part.expand(len(owner), -1, -1, -1) for part in (layer.keys, layer.values))
        else:
            keys, values = layer.keys[owner], layer.values[owner]
        expanded.update(keys, values, index)
    return expanded
