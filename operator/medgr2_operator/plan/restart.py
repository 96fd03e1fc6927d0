"""`restartFrom`: a stage, and everything made from what it makes, runs again under a new token."""

from __future__ import annotations

from medgr2_api.cycle import CycleSpec
from medgr2_api.stages import definition
from medgr2_api.status import StageStatus

from .graph import Graph
from .status_draft import StatusDraft, seconds_between, stage_of
from .types import StageKey

#: Tokens are remembered for ever (a second use would repeat identities), so their number is bounded.
MAX_TOKENS = 200


def restart(draft: StatusDraft, spec: CycleSpec, graph: Graph, tokens: list[str]) -> tuple[list[str], bool]:
    """Acts on a new token; returns all tokens that were used, and whether this one just acted.

    Stages in reach that have not started need nothing: they find new inputs. Jobs of the runs that are forgotten
    here have keys that no record names any more, which is why they are deleted.
    """
    wish = spec.restart_from
    if wish is None or wish.token in tokens:
        return tokens, False
    start = StageKey(wish.iteration, wish.stage)
    if len(tokens) >= MAX_TOKENS:
        draft.event("RestartIgnored", f"restartFrom: {MAX_TOKENS} tokens were used; start another cycle", warning=True)
        return tokens, False
    if start not in graph:
        draft.event("RestartIgnored", f"restartFrom: this cycle has no stage {start}", start, warning=True)
        return [*tokens, wish.token], False
    reach = graph.reach(start)
    for record in list(draft.records.values()):
        if stage_of(record) in reach:
            _forget(draft, record, wish.token)
    draft.put(StageStatus(iteration=start.iteration, name=start.name, token=wish.token))
    draft.event("Restarted", f"from {start}, token {wish.token}: {len(reach)} stages", start)
    return [*tokens, wish.token], True


def _forget(draft: StatusDraft, record: StageStatus, token: str) -> None:
    """Back to not-run; what it cost stays in the usage."""
    key = stage_of(record)
    if record.running_since is not None:
        ran = seconds_between(record.running_since, draft.now)
        draft.count(gpu_seconds=record.gpus * ran, wasted_gpu_seconds=record.gpus * (record.attempt_seconds + ran))
    draft.put(StageStatus(iteration=key.iteration, name=key.name, token=token))
    if definition(key.name).measures:
        draft.scores = tuple(score for score in draft.scores if score.iteration != key.iteration)
