"""A patch is made on versions it was compared with, on devices it was measured on, and where nobody switched it off."""

from __future__ import annotations

from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from trl.trainer import utils

from medgr2_jobs.errors import ConfigError
from medgr2_jobs.models import vlm
from medgr2_jobs.models.patches import pixel_cache, qwen_vl, registry, repeated_prompts, trl_head
from medgr2_jobs.models.tiny import model as tiny_model
from medgr2_jobs.models.tiny import tokenizer

CPU, GPU = torch.device("cpu"), torch.device("cuda")


class PatchEmbed(torch.nn.Module):
    """Named as the library's, so that `qwen_vl` would replace its method."""

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        return patches


def apply_qwen_vl(device: torch.device) -> Any:
    class Own(PatchEmbed):
        forward = PatchEmbed.forward

    Own.__name__ = "OwnPatchEmbed"
    config = SimpleNamespace(model_type="qwen2_5_vl")
    qwen_vl.apply(SimpleNamespace(device=device, modules=lambda: [Own()], config=config))
    return Own.forward


def apply_pixel_cache(device: torch.device) -> Any:
    class Images:
        merge_size = 2

        def preprocess(self, images: Any) -> Any:
            return images

    pixel_cache.apply(SimpleNamespace(image_processor=Images()), device)
    return Images.preprocess


def apply_repeated_prompts(device: torch.device) -> Any:
    class Processor:
        image_processor = SimpleNamespace(merge_size=2)

        def __call__(self, images: Any, text: Any) -> Any:
            return images, text

    repeated_prompts.apply(Processor(), device)
    return Processor.__call__


def apply_trl_head(device: torch.device) -> Any:
    trl_head.apply(device)
    return utils._use_triton


#: Each makes the patch for a process with this device, and returns the function that it replaces.
MAKES: dict[str, Callable[[torch.device], Any]] = {
    "qwen_vl": apply_qwen_vl,
    "pixel_cache": apply_pixel_cache,
    "repeated_prompts": apply_repeated_prompts,
    "trl_head": apply_trl_head,
}


@pytest.fixture(autouse=True)
def libraries_as_they_came(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(registry.PATCHES_ENV, raising=False)
    monkeypatch.setattr(utils, "_use_triton", lambda device: device.type == "cuda")


def made(name: str, device: torch.device = CPU) -> bool:
    return hasattr(MAKES[name](device), "medgr2_original")


def test_the_table_is_complete() -> None:
    folder = Path(registry.__file__).parent
    assert {path.stem for path in folder.glob("*.py")} - {"__init__", "registry"} == registry.NAMES == MAKES.keys()


@pytest.mark.parametrize("name", MAKES)
def test_made_on_a_processor_and_not_on_a_gpu(name: str) -> None:
    assert not made(name, GPU)
    assert made(name, CPU)


@pytest.mark.parametrize("name", MAKES)
def test_each_can_be_switched_off(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(registry.PATCHES_ENV, "off")
    assert not made(name)
    monkeypatch.setenv(registry.PATCHES_ENV, ", ".join(registry.NAMES - {name}))
    assert not made(name)
    monkeypatch.setenv(registry.PATCHES_ENV, name)
    assert made(name)


@pytest.mark.parametrize("value", ["qwen", "off,qwen_vl", "trl_head,,", "on"])
def test_a_name_that_is_none_is_refused(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(registry.PATCHES_ENV, value)
    with pytest.raises(ConfigError, match=r"MEDGR2_PATCHES: there is no patch '.*'; it is off, or some of \['pixel_"):
        trl_head.apply(CPU)


@pytest.mark.parametrize("version", ["5.24.0", "5.2.3", "6.23.1"])
@pytest.mark.parametrize("name", MAKES)
def test_another_version_of_the_library_stays_as_it_is(
    name: str, version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metadata, "version", lambda _: version)
    with pytest.warns(UserWarning, match=f"patch {name} is left out: .* is {version}, and it was compared with"):
        assert not made(name)


def test_a_later_fix_of_a_version_is_the_same_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "version", lambda _: "5.23.7")
    assert made("qwen_vl")


def test_a_model_that_is_loaded_elsewhere_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_model.build(tokenizer.processor().tokenizer, 0).save_pretrained(tmp_path)
    replaced: list[str] = []
    monkeypatch.setattr(registry, "replace", lambda owner, attribute, instead: replaced.append(attribute))
    monkeypatch.setattr(vlm, "device", lambda: torch.device("meta"))  # the one beside the CPU that is everywhere
    vlm.load_model(tmp_path)
    assert replaced == []
    monkeypatch.setattr(vlm, "device", lambda: CPU)
    vlm.load_model(tmp_path)
    assert {"forward", "get_rope_index", "get_image_features"} <= set(replaced)
