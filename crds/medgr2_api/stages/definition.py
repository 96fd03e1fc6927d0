"""What a stage is. From its definition follow the graph, the hash, the module to run, the checks and the docs."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Literal

from medgr2_api.model import Model

if TYPE_CHECKING:
    from medgr2_api.cycle import ResolvedSpec

ModelKind = Literal["policy", "reward"]
Condition = Callable[["ResolvedSpec"], bool]


class StageParameters(Model):
    """Base of the parameters of every stage."""

    seed: int
    """The stage's own seed."""


class Iterations(Enum):
    """In which iterations a stage exists."""

    FIRST = "0"
    """Once, before the loop."""
    LOOP = "1.."
    BOTH = "0.."

    def include(self, iteration: int) -> bool:
        """Whether the stage can be in this iteration."""
        return self is Iterations.BOTH or (iteration == 0) is (self is Iterations.FIRST)


class Of(Enum):
    """Whose artifact is read, seen from iteration t."""

    FIRST = "0"
    """Iteration 0's."""
    SAME = "t"
    """This iteration's."""
    PREVIOUS = "t-1"
    """That of the iteration before."""
    EVERY = "0..t"
    """Every one so far (of the stage's own: those of earlier iterations); the roles are `<role>-0`, `<role>-1`, …"""
    EARLIER = "0..t-1"
    """Every one of the iterations before; the roles are as with EVERY."""
    NEWEST = "newest promoted before t"
    """A model: of the versions of earlier iterations the newest that was promoted."""


@dataclass(frozen=True, eq=False)
class Read:
    """An artifact that a stage reads."""

    role: str
    maker: str
    """The stage that makes it."""
    of: Of = Of.SAME
    required: bool = True
    """Without it there is no such stage."""
    when: Condition | None = None
    """Read only by a spec of which this holds; None: always."""
    otherwise: str = ""
    """The stage whose artifact is read where the cycle has no `maker`, or that did not promote its own."""

    @property
    def makers(self) -> tuple[str, ...]:
        """Who may make it; the first that the cycle has does."""
        return (self.maker, self.otherwise) if self.otherwise else (self.maker,)


@dataclass(frozen=True, eq=False)
class Wait:
    """From the second iteration on the stage waits for a stage of the iteration before, and reads nothing of it."""

    stage: str
    when: Condition | None = None
    """Waits only where this holds of the spec; None: always."""


@dataclass(frozen=True)
class Source:
    """What a stage's parameters follow from."""

    spec: ResolvedSpec
    cycle: str
    """The cycle's `metadata.name`; only the report depends on it."""
    iteration: int
    seed: int
    """The stage's own."""


@dataclass(frozen=True, eq=False)
class StageDefinition:
    """One stage of Algorithm 1."""

    name: str
    sentence: str
    """What it does, for docs/stages.md."""
    parameters: type[StageParameters]
    """Which parts of the spec it depends on: the `parameters` of its request, and of its input hash. What is
    not there (image, resources, secrets, concurrency, addresses) may change without repeating paid work."""
    build: Callable[[Source], StageParameters]
    """The parameters."""
    iterations: Iterations
    spec_paths: Mapping[str, str] = field(default_factory=dict)
    """Where in the spec a parameter stands (both by their wire names), if not under its own name."""
    reads: tuple[Read, ...] = ()
    publishes: tuple[str, ...] = ()
    """Parts that its artifact always has: `candidates.parquet`, `results.json`; `model/` is a folder."""
    may_publish: tuple[str, ...] = ()
    """Parts that it has now and then."""
    code_version: int = 1
    """Raised when the stage's code changes what it would publish for the same parameters and inputs."""
    waits: tuple[Wait, ...] = ()
    for_next_round: bool = False
    """Only later iterations read what it makes in the loop, so the last one has none. It comes after the others of its
    iteration, and after an evaluation that may stop the loop."""
    sharded: bool = False
    """Its work can be divided among processes that know nothing of each other (`shards`)."""
    distributed: bool = False
    """It can train in several processes (`numNodes`, `numProcPerNode`, `deepspeed`)."""
    computes: bool = False
    """It holds a model in its own process: it has a GPU of its own, where there are any."""
    makes: ModelKind | None = None
    """The kind of model that it makes. Of several stages of an iteration the last one's counts."""
    promoted: bool = False
    """Its model counts only when the stage has found it good enough; iteration 0's always does."""
    first_on_demand: bool = False
    """In iteration 0 it exists exactly where a stage requires it, also where it is switched off for the loop."""
    pays: bool = False
    """It spends `budget.generatorUSD`; two of them never run at the same time."""
    only_asks: bool = False
    """It computes nothing itself but what the policy is asked: on a cluster a server beside it may have its GPUs."""
    fetches: bool = False
    """It may use the network to fetch data and models."""
    measures: bool = False
    """Its figures hold the validation scores that early stopping and `status.best` go by."""
    settings_of: str = ""
    """The stage whose settings in the spec (`stages`) it has where it has none of its own."""
    serves: tuple[str, ...] = ()
    """It makes no sense without at least one of these stages."""
    needed: Callable[[ResolvedSpec, frozenset[str]], bool] | None = None
    """Whether a spec that has these stages has a use for it; None: always."""
    module: str = ""
    """Where its code is, if not in `medgr2_jobs.stages.<name>`."""

    @property
    def edges(self) -> tuple[Read | Wait, ...]:
        """All that it depends on."""
        return (*self.reads, *self.waits)

    @property
    def trains(self) -> bool:
        """Whether it trains a model."""
        return "model/" in (*self.publishes, *self.may_publish)

    def declares(self, role: str) -> bool:
        """Whether it says that it may read an input of this role."""
        one = {read.role for read in self.reads if read.of not in (Of.EVERY, Of.EARLIER)}
        every = {read.role for read in self.reads if read.of in (Of.EVERY, Of.EARLIER)}
        name, _, iteration = role.rpartition("-")
        return role in one or (iteration.isdecimal() and name in every)

    def missing_inputs(self, roles: Collection[str], iteration: int) -> list[str]:
        """Roles that it always reads in this iteration and that are not among these."""
        always = [read for read in self.reads if read.required and read.when is None]
        there = {*roles, *(role.rpartition("-")[0] for role in roles)}
        reads = [read for read in always if iteration > 0 or read.of is Of.FIRST]
        return [read.role for read in reads if read.role not in there]

    def undeclared_parts(self, names: Collection[str]) -> list[str]:
        """Of the parts of an artifact those that it does not say it may publish."""
        told = (*self.publishes, *self.may_publish)
        return [name for name in names if not any(_is_part(name, part) for part in told)]

    def missing_parts(self, names: Collection[str]) -> list[str]:
        """Parts that it says it always publishes and that are not among these."""
        return [part for part in self.publishes if not any(_is_part(name, part) for name in names)]

    @property
    def code(self) -> str:
        """The module with its `run(ctx)`; imported only when it runs."""
        return self.module or f"medgr2_jobs.stages.{self.name}"


def _is_part(name: str, part: str) -> bool:
    return name.startswith(part) if part.endswith("/") else name == part
