"""Whether a file of weights has nothing but numbers in it: a NaN spreads to every answer of the model, without a word.

It is looked at as bytes: a float whose exponent is all ones is infinite or no number. So it needs no torch, and takes
every format that a model is saved in.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import NotFinite

_CHUNK = 16 * 1024 * 1024  # numbers looked at at a time


@dataclass(frozen=True)
class _Float:
    """How a kind of float lies in memory."""

    bits: str
    exponent: int
    """Its bits: all of them set means not finite."""


_FLOATS = {
    "F64": _Float("<u8", 0x7FF0_0000_0000_0000),
    "F32": _Float("<u4", 0x7F80_0000),
    "F16": _Float("<u2", 0x7C00),
    "BF16": _Float("<u2", 0x7F80),
    "F8_E5M2": _Float("<u1", 0x7C),
    "F8_E4M3": _Float("<u1", 0x7F),  # has no infinity, and one NaN of each sign
}


def check(folder: Path) -> None:
    """Looks through every `*.safetensors` below a folder.

    Raises:
        NotFinite: a weight is infinite or no number; names file and tensor.
    """
    for path in sorted(folder.rglob("*.safetensors")):
        tensor = _first_not_finite(path)
        if tensor is not None:
            raise NotFinite(
                f"{path.relative_to(folder)}: tensor {tensor!r} has weights that are infinite or not a number, so "
                "whatever it is asked the answer means nothing; nothing was published. A training that diverged does "
                "this: lower its learning rate. If the model came so, take another copy of it"
            )


def _first_not_finite(path: Path) -> str | None:
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(length))
    for name, tensor in header.items():
        kind = _FLOATS.get(tensor.get("dtype", ""))
        if kind is None:  # integers, and what describes the file
            continue
        start, end = tensor["data_offsets"]
        count = (end - start) // np.dtype(kind.bits).itemsize
        if not count:
            continue
        numbers = np.memmap(path, kind.bits, "r", offset=8 + length + start, shape=(count,))
        exponent = numbers.dtype.type(kind.exponent)
        for at in range(0, count, _CHUNK):
            if ((numbers[at : at + _CHUNK] & exponent) == exponent).any():
                return str(name)
    return None
