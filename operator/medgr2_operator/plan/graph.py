"""The stage graph: which stages a cycle has and what each reads. The only place that knows the order."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

from medgr2_api.cycle import CycleSpec
from medgr2_api.stage_contract import StageName
from medgr2_api.training_spec import InitFrom, RewardTermType, SelectionStrategy

from .types import StageKey

#: Strategies that choose by the reward model's score.
_BY_SCORE = (SelectionStrategy.THRESHOLD, SelectionStrategy.FITTED_PRECISION, SelectionStrategy.TOP_K)
_ONCE = (StageName.PREPARE, StageName.REWARD, StageName.EVALUATE)
_FIRST_REWARD = StageKey(0, StageName.REWARD)
_EVERY = tuple(name for name in StageName if name is not StageName.PREPARE)


@dataclass(frozen=True)
class Input:
    """An artifact that a stage reads."""

    role: str
    sources: tuple[StageKey, ...]
    """Who makes it: one stage, or the makers of a model's versions, newest first. (In the table of `_inputs` also
    stages that may not be in the graph; of alternatives the first that is there remains.)"""
    required: bool = True
    """Without it there is no such stage (a reading stage whose maker is disabled goes out with it)."""
    versions: bool = False
    """Of several versions of a model the newest promoted one is read."""

    def chosen(self, promoted: Callable[[StageKey], bool]) -> StageKey | None:
        """Whose artifact is read, once all sources have finished; None: of no version, none was promoted."""
        if not self.versions:
            return self.sources[0]
        return next((source for source in self.sources if source.iteration == 0 or promoted(source)), None)


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

    def policy(self, iteration: int) -> StageKey | None:
        """The stage that makes the policy of an iteration: GRPO, or SFT where GRPO is off."""
        keys = (StageKey(iteration, StageName.GRPO), StageKey(iteration, StageName.SFT))
        return next((key for key in keys if key in self.nodes), None)

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

    stages: frozenset[StageName]
    """Those that are switched on, less those whose only reader is off."""
    first_reward: bool
    """Something uses R⁽⁰⁾; where retraining is off, it is the R of every iteration."""
    grpo_reads_reward: bool
    curate_reads_reward: bool
    sft_reads_policy: bool
    """SFT goes on from the policy of the iteration before."""
    may_stop_early: bool

    @classmethod
    def of(cls, spec: CycleSpec) -> Shape:
        """The shape of a resolved spec."""
        stages = _stages_in(spec)
        return cls(
            stages=stages,
            first_reward={StageName.SCORE, StageName.GENERATE} <= stages or _learning_reads_reward(spec, stages),
            grpo_reads_reward=_grpo_reads_reward(spec),
            curate_reads_reward=spec.curation.selection.strategy is SelectionStrategy.FITTED_PRECISION,
            sft_reads_policy=spec.policy.init_from is InitFrom.PREVIOUS,
            may_stop_early=spec.early_stopping is not None,
        )


@lru_cache(maxsize=32)
def build(shape: Shape, iterations: int) -> Graph:
    """The graph over `iterations` iterations."""
    nodes: dict[StageKey, Node] = {}
    for t in range(iterations + 1):
        table = _inputs(shape, t)
        for name in _EVERY if t else _ONCE:
            key = StageKey(t, name)
            if not (shape.first_reward if key == _FIRST_REWARD else name in shape.stages):
                continue
            if name is StageName.REPORT:
                nodes[key] = Node(key, _everything_to_report(nodes))
                continue
            wanted = table[name]
            present = tuple(
                replace(item, sources=sources if item.versions else sources[:1])
                for item in wanted
                if (sources := tuple(source for source in item.sources if source in nodes))
            )
            missing = {item.role for item in wanted if item.required} - {item.role for item in present}
            if not missing:
                nodes[key] = Node(key, present, _order_only(shape, key, nodes))
    return Graph(nodes)


def _inputs(shape: Shape, t: int) -> dict[StageName, tuple[Input, ...]]:
    """What each stage of iteration `t` reads: the edges of Algorithm 1, by role."""

    def made_by(role: str, name: StageName, iteration: int = t, *, required: bool = True) -> Input:
        return Input(role, (StageKey(iteration, name),), required)

    def newest_model(role: str, name: StageName, *, required: bool = True) -> Input:
        return Input(role, tuple(StageKey(i, name) for i in range(t - 1, -1, -1)), required, versions=True)

    def policy_of(iteration: int, *, required: bool) -> Input:
        # GRPO's, or SFT's where GRPO is off: the first that is in the graph
        return Input("policy", (StageKey(iteration, StageName.GRPO), StageKey(iteration, StageName.SFT)), required)

    prepare = made_by("prepare", StageName.PREPARE, 0)
    candidates = made_by("candidates", StageName.GENERATE)
    curate = made_by("curate", StageName.CURATE)
    sft = made_by("sft", StageName.SFT)
    generator = newest_model("generator", StageName.DISTILL, required=False)
    reward = newest_model("reward", StageName.REWARD)

    if t == 0:
        return {
            StageName.PREPARE: (),
            StageName.REWARD: (prepare,),
            StageName.EVALUATE: (prepare,),
        }
    return {
        StageName.GENERATE: (prepare, generator),
        StageName.SCORE: (candidates, reward),
        StageName.CURATE: (
            prepare,
            replace(candidates, required=False),
            made_by("scores", StageName.SCORE, required=False),
            made_by("previous", StageName.CURATE, t - 1, required=False),
            *((replace(reward, required=False),) if shape.curate_reads_reward else ()),
        ),
        StageName.SFT: (
            prepare,
            curate,
            *((policy_of(t - 1, required=False),) if shape.sft_reads_policy else ()),
        ),
        StageName.GRPO: (
            prepare,
            curate,
            sft,
            replace(candidates, required=False),
            *((reward,) if shape.grpo_reads_reward else ()),
        ),
        StageName.PREFERENCES: (prepare, curate, policy_of(t, required=True)),
        StageName.REWARD: (prepare, made_by("preferences", StageName.PREFERENCES), reward),
        StageName.DISTILL: (prepare, curate, generator),
        StageName.EVALUATE: (prepare, sft, made_by("grpo", StageName.GRPO, required=False)),
    }


def _order_only(shape: Shape, key: StageKey, nodes: dict[StageKey, Node]) -> tuple[StageKey, ...]:
    """Generation runs at most one iteration ahead, and not past an evaluation that may stop the loop."""
    if key.name is not StageName.GENERATE or key.iteration == 1:
        return ()
    names = [StageName.CURATE, *((StageName.EVALUATE,) if shape.may_stop_early else ())]
    return tuple(before for name in names if (before := StageKey(key.iteration - 1, name)) in nodes)


def _everything_to_report(nodes: dict[StageKey, Node]) -> tuple[Input, ...]:
    """Metrics of every checkpoint so far, and what the tables are made of."""
    told = (
        StageName.EVALUATE,
        StageName.GENERATE,
        StageName.CURATE,
        StageName.REWARD,
        StageName.SCORE,
        StageName.GRPO,
        StageName.SFT,
    )
    prepare = StageKey(0, StageName.PREPARE)
    return (
        *((Input("prepare", (prepare,)),) if prepare in nodes else ()),
        *(Input(f"{key.name}-{key.iteration}", (key,)) for name in told for key in nodes if key.name is name),
    )


def _stages_in(spec: CycleSpec) -> frozenset[StageName]:
    """The stages that are switched on, less those whose only reader is off."""
    on = {name for name in StageName if spec.stage(name).enabled}
    if spec.generator.distillation is None:
        on.discard(StageName.DISTILL)
    if StageName.SFT not in on or StageName.CURATE not in on:
        on -= {StageName.GRPO, StageName.PREFERENCES}
    if StageName.REWARD not in on:
        on.discard(StageName.PREFERENCES)
    chosen_by_score = spec.curation.selection.strategy in _BY_SCORE
    if not chosen_by_score and not _learning_reads_reward(spec, on):
        on.discard(StageName.SCORE)
    return frozenset(on)


def _learning_reads_reward(spec: CycleSpec, on: frozenset[StageName] | set[StageName]) -> bool:
    """Whether GRPO learns from R, or R itself is retrained."""
    return (StageName.GRPO in on and _grpo_reads_reward(spec)) or StageName.PREFERENCES in on


def _grpo_reads_reward(spec: CycleSpec) -> bool:
    terms = spec.policy.grpo.rewards or []
    return any(term.type is RewardTermType.REWARD_MODEL and term.weight for term in terms)
