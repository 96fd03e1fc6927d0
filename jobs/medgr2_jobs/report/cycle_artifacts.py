"""The artifacts of a cycle, found by the links in its folder: for commands that read a workspace."""

from __future__ import annotations

from pathlib import Path

from medgr2_api import paths
from medgr2_api.stage_contract import ArtifactRef, ExitCode
from medgr2_api.stages import EVALUATE, MEASURE, PREPARE, stage_names

from ..errors import ConfigError, CorruptArtifact, StageError
from ..store import manifest
from ..store.artifact import ArtifactReader


class CycleNotFound(StageError):
    """There is no such cycle or candidate (exit 2)."""

    exit_code = ExitCode.USAGE


class CycleArtifacts:
    """What a cycle's links name, by the roles that stage `report` gives them: `prepare`, `curate-1`, `sft-2`.

    What is not there any more, or was made from something else, is left out.
    """

    def __init__(self, root: Path, cycle: str) -> None:
        """
        Raises:
            CycleNotFound: the workspace has no such cycle, or it has published nothing.
            CorruptArtifact: a manifest cannot be read.
        """
        self._root = root
        self._folder = (root / paths.iteration_link(cycle, 0, PREPARE.name)).parent.parent
        if not self._folder.is_dir():
            if (root / paths.cycle(cycle)).is_dir():
                raise CycleNotFound(f"cycle {cycle!r} in {root} has published nothing so far")
            names = sorted(path.name for path in (root / "cycles").glob("*") if path.is_dir())
            raise CycleNotFound(f"no cycle {cycle!r} in {root}; cycles there: {', '.join(names) or 'none'}")
        self._readers: dict[str, ArtifactReader] = {}
        self._links: dict[str, Path] = {}
        for link in sorted(self._folder.glob("i[0-9]*/*")):
            role = link.name if link.name == PREPARE.name else f"{link.name}-{int(link.parent.name[1:])}"
            self._links[role] = link
            reader = self._reader(link)
            if reader is not None:
                self._readers[role] = reader
        self._measured_by_evaluate()
        for role in [role for role in self._readers if role.startswith(("sft-", "grpo-"))]:
            if not self._is_of_its_curate(role):
                del self._readers[role]

    @property
    def last(self) -> int:
        """Newest iteration of which anything is there."""
        return max((reader.ref.iteration for reader in self._readers.values()), default=0)

    def linked(self, stage: str) -> list[int]:
        """Iterations that had an artifact of this stage, whether it is still there or not."""
        return sorted(int(role.rpartition("-")[2]) for role in self._links if role.rpartition("-")[0] == stage)

    def has_input(self, role: str) -> bool:
        """Whether there is an artifact of that role."""
        return role in self._readers

    def input(self, role: str) -> ArtifactReader:
        """The artifact of that role.

        Raises:
            ConfigError: there never was one.
            CorruptArtifact: it is not there any more, or was made from something else.
        """
        if role not in self._links:
            raise ConfigError(f"{self._folder}: the cycle has no artifact {role}")
        if role not in self._readers:
            stage = role.partition("-")[0]
            raise CorruptArtifact(
                f"{self._links[role]}: artifact {role} is not there any more, or of older data; "
                f"run stage {stage} again (`--restart-from`)"
            )
        return self._readers[role]

    def _measured_by_evaluate(self) -> None:
        """Versions before stage measure published its parts as evaluate's."""
        for role in [role for role in self._readers if role.startswith(f"{EVALUATE.name}-")]:
            measured = role.replace(EVALUATE.name, MEASURE.name)
            if measured not in self._links and self._readers[role].has("results.json"):
                self._links[measured], self._readers[measured] = self._links[role], self._readers[role]

    def _reader(self, link: Path) -> ArtifactReader | None:
        """None: the link leads nowhere, out of the workspace, or to what was never published."""
        try:
            folder, root = link.resolve(), self._root.resolve()
        except (OSError, RuntimeError):  # links that lead in a circle
            return None
        if not folder.is_relative_to(root) or link.name not in set(stage_names()):
            return None
        if manifest.load(folder) is None and not any(folder.glob(f"shard-*/{paths.MANIFEST}")):
            return None
        path = str(folder.relative_to(root))
        ref = ArtifactRef(stage=link.name, iteration=int(link.parent.name[1:]), path=path, output_digest="")
        return ArtifactReader(self._root, ref)

    def _is_of_its_curate(self, role: str) -> bool:
        """After a restart, a model that learnt from the old data stays linked until there is a new one."""
        if not self.has_input(f"curate-{self._readers[role].ref.iteration}"):
            return False
        return all(
            self.has_input(name) and self._readers[name].digest == digest
            for name, digest in self._readers[role].manifest.inputs.items()
            if name.startswith(("curate-", "relabel-"))
        )
