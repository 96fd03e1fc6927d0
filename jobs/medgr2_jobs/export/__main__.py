"""`python -m medgr2_jobs.export CYCLE CHECKPOINT TARGET`: a checkpoint as a folder that any loader reads
(`medgr2 export`)."""

from __future__ import annotations

import argparse
import os
import secrets
import sys
from pathlib import Path
from typing import Any

import torch

from medgr2_api import command_line
from medgr2_api.stage_contract import WORKSPACE_ENV, ExitCode

from ..errors import StageError
from ..models import checkpoint as checkpoints
from ..models import vlm
from ..store import atomic
from . import model_card
from .published_policy import PublishedPolicy, find

#: Where the adapters go in the folder.
ADAPTER = "adapter"


class NotEmpty(StageError):
    """Something is there already (exit 2)."""

    exit_code = ExitCode.USAGE


def export(found: PublishedPolicy, target: Path) -> Path:
    """Writes the folder: it is there as a whole, or not at all.

    Args:
        found: the checkpoint.
        target: the folder; may exist if it is empty.

    Raises:
        NotEmpty: something is in it.
        StageError: the checkpoint cannot be loaded; the disk is full.
    """
    if os.path.lexists(target) and (not target.is_dir() or any(target.iterdir())):
        raise NotEmpty(f"{target}: is there already and not empty; name a folder that is not")
    part = target.parent / f".{target.name}.{secrets.token_hex(4)}.part"
    try:
        with atomic.disk_errors(target):
            _write(found, part)
            _readable(part)
            atomic.fsync_tree(part)
            part.rename(target)  # over an empty folder, too
            atomic.fsync_folder(target.parent)
    finally:
        atomic.remove_tree(part)
    return target


def _write(found: PublishedPolicy, folder: Path) -> None:
    model: Any = vlm.load_model(found.checkpoint.base, adapter=found.checkpoint.adapter, dtype="auto")
    model.to(torch.bfloat16).save_pretrained(folder)
    processor = found.checkpoint.processor()
    processor.save_pretrained(folder)
    processor.image_processor.save_pretrained(folder)  # preprocessor_config.json: older loaders want it
    if getattr(processor, "video_processor", None) is not None:
        processor.video_processor.save_pretrained(folder)
    if found.checkpoint.adapter is not None:
        checkpoints.copy_adapter(found.checkpoint.adapter, folder / ADAPTER, _base_name(found))
    atomic.write_text(folder / "README.md", model_card.text(found))


def _readable(folder: Path) -> None:
    """Gives the files the permissions that new files have here: safetensors makes its own for the owner alone."""
    mask = os.umask(0)
    os.umask(mask)
    for path in folder.rglob("*"):
        path.chmod((0o777 if path.is_dir() else 0o666) & ~mask)


def _base_name(found: PublishedPolicy) -> str | None:
    """Which model of the hub the adapters stand on; None: it is on none."""
    base = model_card.base_model(found)
    return base.name if base.on_hub else None


def main(arguments: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="medgr2 export", description="A checkpoint as a folder of its own.")
    parser.add_argument("cycle")
    parser.add_argument("checkpoint", help="sft@N, grpo@N or base")
    parser.add_argument("target", type=Path)
    parser.add_argument("--workspace", type=Path, default=Path(os.environ.get(WORKSPACE_ENV, "/workspace")))
    options = parser.parse_args(arguments)
    try:
        found = find(options.workspace, options.cycle, options.checkpoint)
        folder = export(found, options.target)
    except StageError as error:
        print(error, file=sys.stderr)
        return int(error.exit_code)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    print(f"{folder}: {found.name} of {found.cycle}, {size / 1e6:,.1f} MB, with its model card README.md")
    return int(ExitCode.OK)


if __name__ == "__main__":
    command_line.end(main)
