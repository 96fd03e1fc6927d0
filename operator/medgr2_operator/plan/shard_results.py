"""One outcome for an attempt of several parts (shards): the worst failure, or the parts' results combined."""

from __future__ import annotations

from collections.abc import Sequence

from medgr2_api.hashing import combined_digest
from medgr2_api.stage_contract import ExitCode, StageResult

_STOPPED = (ExitCode.CHECKPOINTED, ExitCode.SIGTERM)


def worst(exit_codes: Sequence[int]) -> int:
    """Index of the part that explains a failure: one that was not merely stopped because another one failed.

    Args:
        exit_codes: of the failed parts; at least one.
    """
    return min(range(len(exit_codes)), key=lambda index: exit_codes[index] in _STOPPED)


def combine(results: Sequence[StageResult | None]) -> StageResult | None:
    """One result for all parts, in their order; None when one of them could not be read."""
    read = [result for result in results if result is not None]
    if not read or len(read) < len(results):
        return None
    first = read[0]
    if len(read) == 1:
        return first
    usage = {
        key: (max if key.startswith("peak") else sum)(result.usage.get(key, 0.0) for result in read)
        for key in first.usage
    }
    return first.model_copy(
        update={
            "output_digest": combined_digest([result.output_digest for result in read]),
            "reused": all(result.reused for result in read),
            "usage": usage,
        }
    )
