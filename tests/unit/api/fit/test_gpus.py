"""Kinds of GPU by what clouds and people call them."""

from __future__ import annotations

import pytest

from medgr2_api.fit import gpus
from medgr2_api.fit.memory import GIB


@pytest.mark.parametrize(
    ("text", "name", "gigabytes"),
    [
        ("H100 80GB", "H100 80GB", 80),
        ("NVIDIA-H100-80GB-HBM3", "H100 80GB", 80),
        ("nvidia-h100-mega-80gb", "H100 80GB", 80),
        ("NVIDIA-A100-SXM4-40GB", "A100 40GB", 40),
        ("nvidia-a100-80gb", "A100 80GB", 80),
        ("NVIDIA-L40S", "L40S 48GB", 48),
        ("nvidia-l4", "L4 24GB", 24),
        ("NVIDIA-GeForce-RTX-4090", "RTX 4090 24GB", 24),
        ("Tesla-V100-SXM2-16GB", "V100 16GB", 16),
        ("H200", "H200 141GB", 141),
    ],
)
def test_names(text: str, name: str, gigabytes: float) -> None:
    found = gpus.named(text)
    assert found is not None
    assert found.name == name
    assert 0.98 * gigabytes * GIB < found.memory <= gigabytes * GIB


@pytest.mark.parametrize("text", ["", "Voodoo 2", "L400"])
def test_what_is_not_known(text: str) -> None:
    assert gpus.named(text) is None


def test_a_stage_s_kind_is_that_of_its_nodes_and_of_its_slice() -> None:
    labels = {"nvidia.com/gpu.product": "NVIDIA-A100-SXM4-80GB"}
    whole = gpus.of_resources({"limits": {"nvidia.com/gpu": 1}}, labels)
    part = gpus.of_resources({"limits": {"nvidia.com/mig-3g.40gb": 1}}, labels)
    assert whole is not None
    assert part is not None
    assert whole.name == "A100 80GB"
    assert part.flops == pytest.approx(whole.flops * 3 / 7)
    assert part.memory == pytest.approx(whole.memory / 2, rel=0.02)
    assert gpus.of_resources({"limits": {"nvidia.com/gpu": 1}}, {}) is None


def test_old_kinds_have_no_bfloat16() -> None:
    old, new = gpus.named("V100"), gpus.named("A100")
    assert old is not None
    assert new is not None
    assert (old.bfloat16, new.bfloat16) == (False, True)
