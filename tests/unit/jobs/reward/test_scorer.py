"""Image-grouped scoring gives what plain batches give, whatever the order, on both heads."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from medgr2_api.reward_model import RewardHead
from medgr2_jobs.models.vlm import PromptResponse
from medgr2_jobs.reward import scorer
from medgr2_jobs.reward.model import RewardModel
from medgr2_jobs.reward.scorer import score


@pytest.fixture(autouse=True)
def unclipped(monkeypatch):
    """Compares what R says, not what is left of it: two clipped scores are always equal."""
    monkeypatch.setattr(scorer, "SCORE_MIN", -np.inf)
    monkeypatch.setattr(scorer, "SCORE_MAX", np.inf)


@torch.no_grad()
def one_by_one(model: RewardModel, encoder: object, rows: list[PromptResponse]) -> np.ndarray:
    found = []
    for row in rows:
        batch = encoder.batch([row])  # type: ignore[attr-defined]
        found.append(model(labels=batch.labels, **batch.inputs)["scores"].item())
    return np.array(found)


def many(bench) -> list[PromptResponse]:
    """Groups of many sizes, images of many sizes, a row without image and one without response."""
    return [
        *bench.rows([1, 9, 4, 1, 2, 13]),
        PromptResponse(None, "none", "<answer>a</answer>"),
        PromptResponse(bench.images[1], "mute"),
    ]


@pytest.mark.parametrize("head", list(RewardHead))
@pytest.mark.parametrize("limit", [64, 300, 8192])
def test_equals_one_by_one(bench, monkeypatch, head, limit):
    monkeypatch.setattr(scorer, "_BATCH_TOKENS", {"cpu": limit})
    model = bench.model(head)
    found = score(model, bench.encoder, many(bench))
    assert np.std(found) > 0.5
    np.testing.assert_allclose(found, one_by_one(model, bench.encoder, many(bench)), rtol=0, atol=1e-5)


@pytest.mark.parametrize("head", list(RewardHead))
@pytest.mark.parametrize("limit", [64, 300, 8192])
def test_differs_by_rounding_only(bench, monkeypatch, head, limit):
    """In double precision the difference vanishes: positions, masks and keys are the same, not merely close."""
    monkeypatch.setattr(scorer, "_BATCH_TOKENS", {"cpu": limit})
    monkeypatch.setattr(torch.Tensor, "float", lambda self: self)
    model = bench.model(head).double()
    found = score(model, bench.encoder, many(bench))
    np.testing.assert_allclose(found, one_by_one(model, bench.encoder, many(bench)), rtol=0, atol=1e-12)


def test_the_order_of_rows_changes_nothing(bench):
    model = bench.model()
    rows = bench.rows([3, 9, 1, 1, 2, 5])
    rows += rows[:4]
    found = dict(zip(rows, score(model, bench.encoder, rows), strict=True))
    for seed in range(3):
        shuffled = random.Random(seed).sample(rows, len(rows))
        assert [found[row] for row in shuffled] == score(model, bench.encoder, shuffled).tolist()


def test_completions_of_one_prompt(bench):
    """GRPO's case: only the responses differ, so the question is shared too."""
    model = bench.model()
    rows = [
        PromptResponse(bench.images[1], "Which finding is shown ?", f"<answer>{'x' * n}</answer>") for n in range(8)
    ]
    items = [scorer._item(bench.encoder, row) for row in rows]
    assert scorer._shared(items) == items[0].prompt - 1
    expected = one_by_one(model, bench.encoder, rows)
    np.testing.assert_allclose(score(model, bench.encoder, rows), expected, rtol=0, atol=1e-5)


def test_each_image_is_encoded_once(bench, monkeypatch):
    model = bench.model()
    seen = []
    visual = model.core.model.visual
    forward = visual.forward

    def counted(pixels: torch.Tensor, grid_thw: torch.Tensor, **options: object) -> object:
        seen.append(len(grid_thw))
        return forward(pixels, grid_thw=grid_thw, **options)

    monkeypatch.setattr(visual, "forward", counted)
    score(model, bench.encoder, bench.rows([1, 9, 4, 1, 2, 13]))
    assert sum(seen) == 6


def test_the_image_counts(bench):
    model = bench.model()
    texts = ("Which finding is shown ?", "<answer>cyst</answer>")
    assert (
        len(set(score(model, bench.encoder, [PromptResponse(image, *texts) for image in bench.images]).tolist())) == 6
    )


def test_scores_stay_in_range(bench, monkeypatch):
    monkeypatch.undo()
    model = bench.model(RewardHead.LAST_TOKEN)
    torch.nn.init.normal_(model.head.output.weight, std=50.0)
    found = score(model, bench.encoder, bench.rows([3, 4, 5]))
    assert found.min() >= -6
    assert found.max() <= 10


def test_progress_may_stop_and_the_mode_is_restored(bench):
    model = bench.model(train=True)

    def stop(done: int, total: int) -> None:
        assert 0 < done <= total == 5
        raise InterruptedError

    with pytest.raises(InterruptedError):
        score(model, bench.encoder, bench.rows([5]), on_progress=stop)
    assert model.training
    assert len(score(model, bench.encoder, [])) == 0
