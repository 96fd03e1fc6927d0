"""What stays as it is in each family: by the names that transformers gives its parts."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn
from transformers import CONFIG_MAPPING, AutoModelForImageTextToText

from medgr2_api.model_families import ADAPTED, FAMILIES, VISION_TOWER
from medgr2_jobs.models import held

#: What joins the tower to the language model, in some family's words.
JOINS = re.compile(r"merger|projector|connector|image_newline")


@pytest.mark.parametrize("family", FAMILIES)
def test_every_part_is_the_towers_or_joins_it_or_is_the_language_models(family: str) -> None:
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(CONFIG_MAPPING[family]())
    held.freeze_vision_tower(model)
    frozen = {name for name, weight in model.named_parameters() if not weight.requires_grad}
    for name, weight in model.named_parameters():
        learns = JOINS.search(name) or "language_model" in name or "text_model." in name or "lm_head" in name
        assert weight.requires_grad is bool(learns), name
    assert len(frozen) > 100
    packed = [name for name, part in model.named_modules() if re.fullmatch(ADAPTED, name)]
    assert len(packed) == 7 * model.config.get_text_config().num_hidden_layers
    assert all(isinstance(model.get_submodule(name), nn.Linear) for name in packed)
    assert not any(re.fullmatch(VISION_TOWER, name) for name in packed)
