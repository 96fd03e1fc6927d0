"""A tiny random vision-language model, an image store with a few pictures, and rows on them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from medgr2_api.reward_model import Grades, RewardHead
from medgr2_jobs.models import vlm
from medgr2_jobs.models.tiny import model as tiny_model
from medgr2_jobs.models.tiny import tokenizer as tiny_tokenizer
from medgr2_jobs.models.vlm import PromptResponse
from medgr2_jobs.reward.model import RewardModel
from medgr2_jobs.store.images import ImageStore


@dataclass
class Bench:
    """What the tests of this folder work on."""

    folder: Path
    encoder: vlm.Encoder
    images: list[str]

    def model(self, head: RewardHead = RewardHead.LAST_TOKEN_AND_LIKELIHOOD, *, train: bool = False) -> RewardModel:
        """An R whose head answers something, mostly within the range."""
        torch.manual_seed(0)
        model = RewardModel.fresh(self.folder, head, Grades(), base="digest", train=train)
        torch.nn.init.normal_(model.head.output.weight, std=0.2 if model.uses_likelihood else 0.02)
        return model

    def rows(self, sizes: list[int]) -> list[PromptResponse]:
        """sizes[i] rows on image i, of many lengths."""
        return [
            PromptResponse(
                self.images[image],
                f"Which finding is shown ? {'nodule, ' * (1 + number % 3)}cyst",
                f"<think>{'marks ' * (number % 7)}look like {number}.</think><answer>cyst</answer>",
            )
            for image, size in enumerate(sizes)
            for number in range(size)
        ]


@pytest.fixture(scope="session")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("reward")
    processor = tiny_tokenizer.processor()
    processor.image_processor.min_pixels = 28 * 28
    processor.image_processor.size = {"shortest_edge": 28 * 28, "longest_edge": 28 * 28 * 16}
    tiny_model.build(processor.tokenizer, 1).save_pretrained(root / "model")
    processor.save_pretrained(root / "model")
    store = ImageStore(root)
    noise = np.random.default_rng(0)
    sizes = [(56, 56), (112, 84), (56, 56), (28, 84), (112, 56), (56, 56)]
    images = [store.add(Image.fromarray(noise.integers(0, 255, (*size, 3), np.uint8)), 10**6).sha256 for size in sizes]
    return Bench(root / "model", vlm.Encoder(vlm.load_processor(root / "model"), store), images)
