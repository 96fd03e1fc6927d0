"""How digests of artifacts are formed; shared by the jobs, which publish, and the operator, which records."""

from __future__ import annotations

from collections.abc import Sequence

from .base import sha256_of


def combined_digest(digests: Sequence[str]) -> str:
    """Digest of a sharded stage: the hash of its shards' digests in order; of a single shard, that shard's own."""
    return digests[0] if len(digests) == 1 else sha256_of({"shards": list(digests)})
