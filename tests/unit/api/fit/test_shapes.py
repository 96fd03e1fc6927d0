"""Parameters of published models, and what a config.json has to say."""

from __future__ import annotations

import pytest

from medgr2_api.fit.known_models import CONFIGS, known
from medgr2_api.fit.shapes import ShapeError, from_config

#: Of the weights that are published: `total_size` of model.safetensors.index.json, in bfloat16, is twice as many bytes.
PUBLISHED = {
    "Qwen2.5-VL-3B-Instruct": 3_754_622_976,
    "Qwen2.5-VL-7B-Instruct": 8_292_166_656,
    "Qwen2.5-VL-32B-Instruct": 33_452_718_336,
    "Qwen2.5-VL-72B-Instruct": 73_410_777_344,
    "Qwen3-VL-2B-Instruct": 2_127_532_032,
    "Qwen3-VL-4B-Instruct": 4_437_815_808,
    "Qwen3-VL-8B-Instruct": 8_767_123_696,
    "Qwen3-VL-32B-Instruct": 33_357_390_064,
}


@pytest.mark.parametrize("name", CONFIGS)
def test_parameters_of_published_models(name: str) -> None:
    found = known(f"Qwen/{name}")
    assert found is not None
    assert found.parameters == PUBLISHED[name]


@pytest.mark.parametrize(
    "name", ["models/Qwen2.5-VL-7B-Instruct", "hf://Qwen/Qwen2.5-VL-7B-Instruct@main", "qwen/qwen2.5-vl-7b"]
)
def test_a_model_is_known_by_its_last_name(name: str) -> None:
    found = known(name)
    assert found is not None
    assert found.parameters == PUBLISHED["Qwen2.5-VL-7B-Instruct"]


def test_what_nobody_knows_is_not_guessed() -> None:
    assert known("org/Qwen2.5-VL-9B-Instruct") is None


def test_tokens_of_a_picture() -> None:
    small, later = known("Qwen2.5-VL-3B-Instruct"), known("Qwen3-VL-4B-Instruct")
    assert small is not None
    assert later is not None
    assert small.image_tokens(401_408) == 512  # squares of 28 pixels
    assert later.image_tokens(401_408) == 392  # of 32
    config = {**CONFIGS["Qwen2.5-VL-3B-Instruct"]}
    enlarged = from_config(config, "here", processor={"min_pixels": 64 * 28 * 28})
    assert enlarged.image_tokens(784) == 64


def test_adapters_are_a_few_percent() -> None:
    model = known("Qwen2.5-VL-7B-Instruct")
    assert model is not None
    assert model.text.adapters(64) == 161_480_704  # peft's print_trainable_parameters on q, k, v, o, gate, up, down
    assert model.text.adapters(128) == 2 * model.text.adapters(64)


@pytest.mark.parametrize(("field", "value"), [("hidden_size", None), ("num_hidden_layers", "36"), ("vocab_size", 0)])
def test_a_config_that_does_not_say_it_is_refused(field: str, value: object) -> None:
    config = {**CONFIGS["Qwen2.5-VL-3B-Instruct"], field: value}
    with pytest.raises(ShapeError, match=f"here: {field} is"):
        from_config(config, "here")
