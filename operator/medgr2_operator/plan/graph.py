"""The stage graph: which stages a cycle has and what each reads, from the stages' definitions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache

from medgr2_api.cycle import ResolvedSpec
from medgr2_api.stages import StageDefinition, definition, stage_names
from medgr2_api.stages.definition import Iterations, ModelKind, Of, Read, Wait

from .types import StageKey


def always_counts(version: StageKey) -> bool:
    """Whether a version of a model counts without having been promoted: iteration 0's, and those of stages that do not
    promote."""
    return version.iteration == 0 or not definition(version.name).promoted


def first_that_counts(versions: Iterable[StageKey], promoted: Callable[[StageKey], bool]) -> StageKey | None:
    """Of versions of a model, the preferred one first, the one that goes on; None: none of them was promoted.

    Args:
        versions: their makers, all of which have finished.
        promoted: whether a maker has found its version good enough; asked only of those that promote.
    """
    return next((version for version in versions if always_counts(version) or promoted(version)), None)


@dataclass(frozen=True)
class Input:
    """An artifact that a stage reads."""

    role: str
    sources: tuple[StageKey, ...]
    """Who makes it: one stage, or the makers of a model's versions, the preferred one first."""
    versions: bool = False
    """Of these the first that counts is read; else it is the artifact of the one source, promoted or not."""

    def chosen(self, promoted: Callable[[StageKey], bool]) -> StageKey | None:
        """Whose artifact is read, once all sources have finished; None: of no version, none was promoted."""
        return first_that_counts(self.sources, promoted) if self.versions else self.sources[0]


@dataclass(frozen=True)
class Node:
    """A stage of an iteration, with what it waits for."""

    key: StageKey
    inputs: tuple[Input, ...] = ()
    after: tuple[StageKey, ...] = ()
    """Waits for these without reading them; they are not part of its inputHash, and restarting them leaves it be."""

    @cached_property
    def reads(self) -> frozenset[StageKey]:
        """Every stage whose artifact this one may read."""
        return frozenset(source for item in self.inputs for source in item.sources)

    @cached_property
    def needs(self) -> frozenset[StageKey]:
        """Every stage that has to be finished first."""
        return self.reads | frozenset(self.after)


@dataclass(frozen=True)
class Graph:
    """All stages of a cycle, every stage after those it needs."""

    nodes: dict[StageKey, Node]

    def __contains__(self, key: StageKey) -> bool:
        return key in self.nodes

    def __iter__(self) -> Iterator[Node]:
        return iter(self.nodes.values())

    @cached_property
    def makers(self) -> dict[tuple[int, ModelKind], tuple[StageKey, ...]]:
        """The stages that make an iteration's model of a kind, the preferred one first: the last, as GRPO after SFT."""
        makers: dict[tuple[int, ModelKind], tuple[StageKey, ...]] = {}
        for key in self.nodes:
            if (kind := definition(key.name).makes) is not None:
                makers[key.iteration, kind] = (key, *makers.get((key.iteration, kind), ()))
        return makers

    def reach(self, start: StageKey) -> frozenset[StageKey]:
        """`start` and everything made, directly or not, from what it makes."""
        reached = {start}
        for node in self:  # in an order in which makers stand before readers
            if node.reads & reached:
                reached.add(node.key)
        return frozenset(reached)


@dataclass(frozen=True)
class Shape:
    """All that the graph depends on. Few cycles differ in it, so they share their graphs."""

    first: tuple[StageDefinition, ...]
    """Stages before the loop."""
    loop: tuple[StageDefinition, ...]
    """Stages of each iteration that are switched on and have a use."""
    holds: frozenset[Read | Wait]
    """What they read and wait for under a condition that holds."""
    stops_early: bool
    """An evaluation may turn an iteration into the last one."""

    @classmethod
    def of(cls, spec: ResolvedSpec) -> Shape:
        """The shape of a spec."""
        known = [definition(name) for name in stage_names()]
        holds = frozenset(edge for stage in known for edge in stage.edges if edge.when is None or edge.when(spec))
        enabled = [stage for stage in known if spec.stage(stage.name).enabled]
        loop = _used(spec, [stage for stage in enabled if stage.iterations is not Iterations.FIRST], holds)
        required = {maker for stage in loop for read in _required(stage, Of.NEWEST, holds) for maker in read.makers}
        first = (stage for stage in known if stage.iterations is not Iterations.LOOP)
        return cls(
            tuple(stage for stage in first if (stage.name in required if stage.first_on_demand else stage in enabled)),
            tuple(loop),
            holds,
            spec.early_stopping is not None,
        )


def _required(stage: StageDefinition, of: Of, holds: frozenset[Read | Wait]) -> Iterator[Read]:
    return (read for read in stage.reads if read.required and read.of is of and read in holds)


def _used(spec: ResolvedSpec, stages: list[StageDefinition], holds: frozenset[Read | Wait]) -> list[StageDefinition]:
    """Of a loop's stages those that find what they need and have a use; one that goes may take others along."""
    while True:
        on = frozenset(stage.name for stage in stages)
        left = [
            stage
            for stage in stages
            if all(on.intersection(read.makers) for of in (Of.SAME, Of.EVERY) for read in _required(stage, of, holds))
            and (not stage.serves or on.intersection(stage.serves))
            and (stage.needed is None or stage.needed(spec, on))
        ]
        if len(left) == len(stages):
            return left
        stages = left


@lru_cache(maxsize=32)
def build(shape: Shape, iterations: int) -> Graph:
    """The graph over `iterations` iterations: what is made for the next one is in all but the last."""
    nodes: dict[StageKey, Node] = {}
    for t in range(iterations + 1):
        stages = shape.loop if t else shape.first
        if 0 < t == iterations:
            stages = tuple(stage for stage in stages if not stage.for_next_round)
        for stage in stages:
            reads = [read for read in stage.reads if read in shape.holds and (t > 0 or _made_first(read))]
            inputs = [(read, tuple(_inputs(read, t, nodes))) for read in reads]
            if all(items for read, items in inputs if read.required):
                key = StageKey(t, stage.name)
                nodes[key] = Node(
                    key, tuple(item for _, items in inputs for item in items), tuple(_after(stage, t, shape, nodes))
                )
    return Graph(nodes)


def _made_first(read: Read) -> bool:
    """Whether it is read before the loop, too: there is nothing to read there but what is made there."""
    return read.of is Of.FIRST or (read.of is Of.SAME and definition(read.maker).iterations is not Iterations.LOOP)


def _after(stage: StageDefinition, t: int, shape: Shape, nodes: dict[StageKey, Node]) -> Iterator[StageKey]:
    """What a stage waits for in iteration `t`, of what is there."""
    if t > 1:
        yield from (
            key for wait in stage.waits if wait in shape.holds and (key := StageKey(t - 1, wait.stage)) in nodes
        )
    if t and stage.for_next_round and shape.stops_early:
        yield from (key for key in nodes if key.iteration == t and definition(key.name).measures)


def _inputs(read: Read, t: int, nodes: dict[StageKey, Node]) -> Iterator[Input]:
    """What is read in iteration `t`, of what is there."""

    def made_in(*iterations: int) -> Iterator[StageKey]:
        keys = (StageKey(iteration, name) for iteration in iterations for name in read.makers)
        return (key for key in keys if key in nodes)

    def versions(*iterations: int) -> Iterator[StageKey]:
        for key in made_in(*iterations):
            yield key
            if always_counts(key):
                return  # none behind it can be read

    if read.of in (Of.EVERY, Of.EARLIER):
        for iteration in range(t + 1 if read.of is Of.EVERY else t):
            if (key := next(made_in(iteration), None)) is not None:
                yield Input(f"{read.role}-{iteration}", (key,))
    elif read.of is Of.NEWEST:
        if sources := tuple(versions(*range(t - 1, -1, -1))):
            yield Input(read.role, sources, versions=True)
    else:
        iteration = {Of.FIRST: 0, Of.SAME: t, Of.PREVIOUS: t - 1}[read.of]
        if sources := tuple(versions(iteration)):
            yield Input(read.role, sources, versions=len(read.makers) > 1)
