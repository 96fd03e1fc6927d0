"""The image of the jobs has what CUDA needs at run time, as far as a computer without a GPU can tell: one container."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cluster import images, system
from tests.support import image_probe

pytestmark = [pytest.mark.cluster, pytest.mark.slow]


def test_what_a_gpu_will_ask_for_is_there() -> None:
    if obstacle := system.obstacle():
        pytest.skip(obstacle)
    system.install()
    told = images.run(images.JOBS, Path(image_probe.__file__).read_text())
    assert [line for line in told.splitlines() if line.endswith(": ok")] == [
        "triton_s_compiler: ok",
        "torch_compile: ok",
        "zero: ok",
    ]
