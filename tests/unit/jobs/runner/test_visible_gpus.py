"""One GPU for a stage of one process, whatever its pod has."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from medgr2_jobs.errors import ConfigError
from medgr2_jobs.runner.visible_gpus import keep_one
from medgr2_jobs.training.trainer import configured

CUDA, HIP = "CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"


@pytest.mark.parametrize(
    ("given", "left"),
    [
        ({}, {CUDA: "0"}),
        ({CUDA: "GPU-a,GPU-b"}, {CUDA: "GPU-a"}),
        ({CUDA: ""}, {CUDA: ""}),
        ({CUDA: "3"}, {CUDA: "3"}),
        ({HIP: "2, 3"}, {HIP: "2"}),
    ],
)
def test_the_first_one_is_left(given: dict[str, str], left: dict[str, str]) -> None:
    keep_one(given)
    assert given == left


def test_several_in_one_process_are_never_used_side_by_side(tmp_path: Path) -> None:
    """As where somebody calls the trainer without the runner: torch's DataParallel would come in silently."""
    from transformers import TrainingArguments

    @dataclasses.dataclass
    class OnTwo(TrainingArguments):
        @property
        def n_gpu(self) -> int:
            return 2

    with pytest.raises(ConfigError, match=r"2 GPUs in one process.*numProcPerNode"):
        configured(OnTwo, {}, field="x", output_dir=str(tmp_path))
    assert configured(TrainingArguments, {}, field="x", output_dir=str(tmp_path)).n_gpu <= 1
