"""A model's folder: its shape, and how large its files are. Reads JSON and the headers of safetensors files only."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .shapes import ModelShape, ShapeError, from_config

#: Larger headers are none.
_LONGEST_HEADER = 2**27


@dataclass(frozen=True)
class ModelFiles:
    """What a folder tells."""

    shape: ModelShape
    bytes: float
    """Of its weights' files; 0: they are not there."""


def read(path: Path) -> ModelFiles:
    """The shape of a model by its config.json, with the parameters of the weights beside it, if they are there.

    Args:
        path: a config.json, or the folder that it lies in.

    Raises:
        ShapeError: it is missing, is no JSON, or does not say what is needed; the message names the file.
    """
    file = path / "config.json" if path.is_dir() else path
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ShapeError(f"{file}: {error.strerror}; a model's config.json is needed") from error
    except (ValueError, RecursionError) as error:
        raise ShapeError(f"{file}: is not JSON ({error})") from error
    if not isinstance(document, dict):
        raise ShapeError(f"{file}: is not a JSON object")
    weights = sorted(file.parent.glob("*.safetensors"))
    count = sum(map(_parameters, weights))
    source = f"{file}, parameters by its weights" if count else str(file)
    shape = from_config(document, source, count or None, _processor(file.parent))
    return ModelFiles(shape, float(sum(each.stat().st_size for each in weights)))


def _parameters(file: Path) -> int:
    """Of one safetensors file, by its header; 0: it is none."""
    try:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(length)) if 0 < length < _LONGEST_HEADER else {}
        return sum(math.prod(item["shape"]) for key, item in header.items() if key != "__metadata__")
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return 0


def _processor(folder: Path) -> dict[str, Any]:
    """What the folder says of its image processor; {}: nothing."""
    for name in ("preprocessor_config.json", "processor_config.json"):
        try:
            document = json.loads((folder / name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(document, dict):
            return document
    return {}
