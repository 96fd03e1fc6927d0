"""Scoring the supervised positions only changes how much is computed, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from trl.trainer import utils

from medgr2_jobs.models.patches import trl_head
from medgr2_jobs.models.tiny import model as tiny_model
from medgr2_jobs.models.tiny import tokenizer as tiny_tokenizer


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Positions that the LM head was given, call by call; TRL is as it came."""
    monkeypatch.setattr(utils, "_use_triton", lambda device: device.type == "cuda")
    rows: list[int] = []
    original = utils._ChunkedLogProbFunction

    class Spy:
        @staticmethod
        def apply(hidden: torch.Tensor, *rest: Any) -> Any:
            rows.append(hidden.shape[0])
            return original.apply(hidden, *rest)

    monkeypatch.setattr(utils, "_ChunkedLogProbFunction", Spy)
    return rows


def test_prompts_are_left_out_and_loss_and_gradient_stay(scored: list[int]) -> None:
    tokenizer = tiny_tokenizer.processor().tokenizer
    model = tiny_model.build(tokenizer, seed=1)
    utils.add_fused_lm_head(model, outputs=("log_probs", "entropy"))
    ids = torch.randint(20, 60, (3, 24), generator=torch.Generator().manual_seed(2))
    labels = ids.clone()
    labels[:, :20] = -100

    def step() -> tuple[Any, list[torch.Tensor]]:
        model.zero_grad()
        found = model(input_ids=ids, labels=labels, fused_lm_head=True)
        found.loss.backward()
        return found, [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]

    everywhere, gradients = step()
    trl_head.apply(torch.device("cpu"))
    trl_head.apply(torch.device("cpu"))  # a second stage in one process
    answers_only, same = step()

    assert scored == [3 * 23, 3 * 4]
    torch.testing.assert_close(answers_only.loss, everywhere.loss)
    torch.testing.assert_close(answers_only.log_probs, everywhere.log_probs)
    torch.testing.assert_close(answers_only.entropy, everywhere.entropy)
    assert len(gradients) > 20
    for one, other in zip(gradients, same, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
