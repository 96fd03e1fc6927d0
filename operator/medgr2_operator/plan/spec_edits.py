"""What was made with another spec than the cycle has now: an edit never passes for something that it did not do.

The status keeps the specs that its stages were made with (`status.specs`), and each stage says with which of them it
was. An upgrade edits nothing: what counts is what the user wrote.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache

from medgr2_api.cycle import Cycle
from medgr2_api.stages import definition, input_hash
from medgr2_api.status import AttemptState, Phase, StageStatus

from .cycle_state import iterations
from .graph import Graph, Node
from .parameter_changes import parameter_changes
from .scheduling import input_refs
from .spec_cache import CachedSpec, cached_spec
from .status_draft import ACTIVE, StatusDraft, stage_of
from .types import StageKey

_SHOWN_STAGES = 6
_SHOWN_CHANGES = 6
_NOT_RECORDED = "with other parameters, or by another version, which the status does not record"


@dataclass(frozen=True)
class SpecEdits:
    """The stages that do not follow from the spec as it is now."""

    why: dict[StageKey, str]
    """What is different, by stage; empty: all follow from it."""
    restart: tuple[StageKey, ...]
    """Where to restart to apply the spec; empty: nothing that could run again would differ."""

    def __bool__(self) -> bool:
        return bool(self.why)

    def lines(self) -> list[str]:
        """One line for each difference, with its stages."""
        stages: dict[str, list[StageKey]] = {}
        for key, text in self.why.items():
            stages.setdefault(text, []).append(key)
        return [f"{_names(keys)}: {text}" for text, keys in stages.items()]

    def message(self) -> str:
        """All of it, for a condition: what to do, then why, of which the end may be cut."""
        then = ", then from ".join(map(str, self.restart))
        return "; ".join([*([f"restart from {then} to apply the spec"] if then else []), *self.lines()])


def spec_edits(cycle: Cycle, cached: CachedSpec, graph: Graph, draft: StatusDraft, *, complete: bool) -> SpecEdits:
    """
    Args:
        cycle: with its spec of now.
        cached: what follows from that spec.
        graph: of that spec.
        draft: with the specs that stages were made with.
        complete: the cycle is complete, so what has not run will not.
    """
    made = [record for record in draft.records.values() if _was_made(record)]
    unedited = all(draft.spec_of(record) == cached.written for record in made)
    why: dict[StageKey, str] = {}
    if not unedited or (complete and not all(node.key in draft.records for node in graph)):
        for node in graph:
            if unedited and _came_with_an_upgrade(node.key, draft):
                continue
            record = draft.get(node.key)
            if record is not None and _was_made(record):
                text = _difference(cached, node, record, draft, cycle.spec.iterations)
            else:
                text = "has not run, and the cycle is complete" if complete and record is None else ""
            if text:
                why[node.key] = text
    restart = _roots(graph, list(why))
    # in a longer loop: what was made for a round that does not come was a stage of this spec
    longer = cached.graph(iterations(cycle, draft) + 1)
    gone = (
        key
        for key in map(stage_of, made)
        if key not in graph and (key.iteration > iterations(cycle, draft) or key not in longer)
    )
    return SpecEdits(why | dict.fromkeys(gone, "done, and no stage of this spec any more"), restart)


def edits_of(cycle: Cycle) -> SpecEdits:
    """Of a cycle as it is stored, or as it would be with another spec."""
    draft = StatusDraft.open(cycle.status, datetime.min.replace(tzinfo=UTC))  # nothing here depends on the time
    cached = cached_spec(cycle.metadata.name, cycle.spec)
    graph = cached.graph(iterations(cycle, draft))
    return spec_edits(cycle, cached, graph, draft, complete=cycle.status.phase is Phase.COMPLETE)


def _came_with_an_upgrade(key: StageKey, draft: StatusDraft) -> bool:
    """Whether the version that ran the cycle had no such stage."""
    return not definition(key.name).for_next_round and all(known.name != key.name for known in draft.records)


def _was_made(record: StageStatus) -> bool:
    """Whether a spec was put to work, and is not taken anew: what will be tried again takes the spec of then."""
    running = record.state in ACTIVE and bool(record.job_uid)
    return record.attempt > 0 and (record.state is AttemptState.SUCCEEDED or record.given_up or running)


def _difference(cached: CachedSpec, node: Node, record: StageStatus, draft: StatusDraft, count: int) -> str:
    """What the stage was made with, where that is not what it would be made with now; empty: it is."""
    written = draft.spec_of(record)
    if written == cached.written or (record.asked and record.asked == cached.asked):
        return ""
    verb = "failed" if record.given_up else "done" if record.state is AttemptState.SUCCEEDED else "runs"
    before = cached.earlier(written) if written else None
    if before is not None:
        changes = _changes(before, cached, node.key, count)
        more = f" and {len(changes) - _SHOWN_CHANGES} more" if len(changes) > _SHOWN_CHANGES else ""
        return f"{verb} with other parameters: {', '.join(changes[:_SHOWN_CHANGES])}{more}" if changes else ""
    if not all(draft.done(source) for source in node.reads):
        return f"{verb} {_NOT_RECORDED}"
    digests = {role: ref.output_digest for role, ref in input_refs(node, draft).items()}
    parameters = cached.parameters(node.key.name, node.key.iteration)
    same = input_hash(node.key.name, parameters, digests, record.token) == record.input_hash
    return "" if same else f"{verb} {_NOT_RECORDED}"


@lru_cache(maxsize=4096)
def _changes(before: CachedSpec, now: CachedSpec, key: StageKey, count: int) -> tuple[str, ...]:
    """What an edit changed of a stage: its parameters, and what it reads."""
    old, new = (
        # its own seed follows from the cycle's, which is what the user wrote
        spec.parameters(key.name, key.iteration).model_copy(update={"seed": spec.seed})
        for spec in (before, now)
    )
    changes = list(parameter_changes(key.name, old, new))
    old_graph, new_graph = before.graph(count), now.graph(count)
    if key in old_graph:
        old_reads, new_reads = (
            {item.role: item.sources[0] for item in graph.nodes[key].inputs} for graph in (old_graph, new_graph)
        )
        changes += [
            f"{role} read from {old_reads.get(role, 'nothing')} → {new_reads.get(role, 'nothing')}"
            for role in sorted({*old_reads, *new_reads})
            if old_reads.get(role) != new_reads.get(role)
        ]
    return tuple(changes)


def _roots(graph: Graph, differing: Sequence[StageKey]) -> tuple[StageKey, ...]:
    """Of these the ones that no restart of another one reaches."""
    roots: list[StageKey] = []
    reached: frozenset[StageKey] = frozenset()
    for key in differing:  # in the graph's order: makers before readers
        if key not in reached:
            roots.append(key)
            reached |= graph.reach(key)
    return tuple(roots)


def _names(keys: Sequence[StageKey]) -> str:
    more = f" and {len(keys) - _SHOWN_STAGES} more" if len(keys) > _SHOWN_STAGES else ""
    return ", ".join(map(str, keys[:_SHOWN_STAGES])) + more
