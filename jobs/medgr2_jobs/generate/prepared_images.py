"""The images that may be asked about, and where each comes from, as stage prepare has published it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from medgr2_api.data import Benchmark, ResolvedSource
from medgr2_api.stages.prepare import PrepareParameters

from ..store.artifact import ArtifactReader
from ..store.rows import Split, TableView
from ..store.rows.prepared import Image, ImageOrigin


@dataclass(frozen=True, slots=True)
class ImageUse(TableView):
    """What an image may be used for."""

    TABLE = Image.TABLE
    VERSION = Image.VERSION

    image_sha256: str
    modality: str
    source: str
    split: Split
    allow_external: bool | None
    """Null, in an older table: nobody has said yes."""


@dataclass(frozen=True)
class PreparedImages:
    """Images, and all sources and benchmarks that have each."""

    rows: list[ImageUse] = field(default_factory=list)
    origins: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """sha256 → names, of every image in `rows`."""
    inputs: Callable[[], Sequence[ResolvedSource | Benchmark]] = tuple
    """The sources and benchmarks that the images were read from, as they were then."""

    def unread(self, inputs: Iterable[ResolvedSource | Benchmark]) -> list[str]:
        """Of these those that say no and were not read, or from another place than they name now, with where they stand
        in the spec: which of the images they have is not known."""
        private = [each for each in inputs if isinstance(each, Benchmark) or not each.allow_external]
        if not private:
            return []
        read = {_where(each): _place(each) for each in self.inputs()}
        return [_where(each) for each in private if read.get(_where(each)) != _place(each)]

    @classmethod
    def of(
        cls,
        rows: Iterable[ImageUse],
        origins: Iterable[ImageOrigin],
        inputs: Callable[[], Sequence[ResolvedSource | Benchmark]] = tuple,
    ) -> PreparedImages:
        """From the rows of both tables."""
        images, names = list(rows), defaultdict(set)
        for row in images:
            names[row.image_sha256].add(row.source)
        for origin in origins:
            names[origin.image_sha256].add(origin.source)
        shared = {frozenset(each): frozenset(each) for each in names.values()}  # few different ones: kept once
        return cls(images, {sha256: shared[frozenset(each)] for sha256, each in names.items()}, inputs)

    @classmethod
    def published(cls, prepare: ArtifactReader) -> PreparedImages:
        """From an artifact of stage prepare.

        Raises:
            CorruptArtifact: it has no such tables, or they are damaged.
        """
        images = prepare.rows(ImageUse)

        def inputs() -> Sequence[ResolvedSource | Benchmark]:
            data = prepare.parameters(PrepareParameters).data
            return [*data.sources, *data.benchmarks]

        if prepare.has(f"{ImageOrigin.TABLE}.parquet"):
            return cls.of(images, prepare.rows(ImageOrigin), inputs)
        # an earlier version noted the first source, and whether all said yes: any that did may have any image
        said_yes = [each.name for each in inputs() if isinstance(each, ResolvedSource) and each.allow_external]
        return cls.of(images, [ImageOrigin(row.image_sha256, name) for row in images for name in said_yes], inputs)


def _where(each: ResolvedSource | Benchmark) -> str:
    return f"data.{'benchmarks' if isinstance(each, Benchmark) else 'sources'}[{each.name}]"


def _place(each: ResolvedSource | Benchmark) -> dict[str, Any]:
    """All of a source or benchmark that decides which pictures it has."""
    return each.model_dump(exclude={"role", "allow_external", "modality", "answer_key", "on_leak"})
