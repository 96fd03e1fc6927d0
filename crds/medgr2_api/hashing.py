"""One normal form per meaning, and the digests that stand on it."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

#: YAML 1.1 reads `1e-4` (no dot) as text; such text among free-form options is a number that YAML misread.
_NUMBER = re.compile(r"[+-]?((0|[1-9]\d*)(\.\d*)?|\.\d+)([eE][+-]?\d+)?")


def normalise(value: Any) -> Any:
    """One form per meaning, for free-form options: 3.0 → 3, "1e-4" → 0.0001; recursive over lists and objects."""
    if isinstance(value, str) and _NUMBER.fullmatch(value.strip()):
        text = value.strip()
        if text.lstrip("+-").isdecimal():
            return int(text)
        return _each(float(text), normalise) if math.isfinite(float(text)) else value
    return _each(value, normalise)


def _canonical(value: Any) -> Any:
    """As `normalise`, but text stays text: the folders "1" and "1.0" are two folders."""
    return _each(value, _canonical)


def _each(value: Any, inner: Callable[[Any], Any]) -> Any:
    if isinstance(value, dict):
        return {key: inner(item) for key, item in sorted(((str(k), v) for k, v in value.items()), key=lambda kv: kv[0])}
    if isinstance(value, list | tuple):
        return [inner(item) for item in value]
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return int(value)
    return value


def canonical_json(value: Any) -> str:
    """JSON text that is equal exactly when the values are: keys sorted, 3.0 written as 3, text left alone."""
    return json.dumps(_canonical(value), sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def sha256_of(value: Any) -> str:
    """Hex sha256 over `canonical_json(value)`."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def combined_digest(digests: Sequence[str]) -> str:
    """Digest of a sharded stage: the hash of its shards' digests in order; of a single shard, that shard's own."""
    return digests[0] if len(digests) == 1 else sha256_of({"shards": list(digests)})
