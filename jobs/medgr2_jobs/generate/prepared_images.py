"""The images that may be asked about, and where each comes from, as stage prepare has published it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from medgr2_api.data import ResolvedSource
from medgr2_api.stages.prepare import PrepareParameters

from ..store.artifact import ArtifactReader
from ..store.rows import Image, ImageOrigin, Split, TableView


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
    sources: Callable[[], Sequence[ResolvedSource]] = tuple
    """The sources that the images were read from, as they were then."""

    def unread(self, sources: Iterable[ResolvedSource]) -> list[str]:
        """Of these sources the names of those that were not read, or from another place than they name now: which of
        the images they have is not known."""
        read = {source.name: _place(source) for source in self.sources()}
        return [source.name for source in sources if read.get(source.name) != _place(source)]

    @classmethod
    def of(
        cls,
        rows: Iterable[ImageUse],
        origins: Iterable[ImageOrigin],
        sources: Callable[[], Sequence[ResolvedSource]] = tuple,
    ) -> PreparedImages:
        """From the rows of both tables."""
        images, names = list(rows), defaultdict(set)
        for row in images:
            names[row.image_sha256].add(row.source)
        for origin in origins:
            names[origin.image_sha256].add(origin.source)
        shared = {frozenset(each): frozenset(each) for each in names.values()}  # few different ones: kept once
        return cls(images, {sha256: shared[frozenset(each)] for sha256, each in names.items()}, sources)

    @classmethod
    def published(cls, prepare: ArtifactReader) -> PreparedImages:
        """From an artifact of stage prepare.

        Raises:
            CorruptArtifact: it has no such tables, or they are damaged.
        """
        images = prepare.rows(ImageUse)

        def sources() -> Sequence[ResolvedSource]:
            return prepare.parameters(PrepareParameters).data.sources

        if prepare.has(f"{ImageOrigin.TABLE}.parquet"):
            return cls.of(images, prepare.rows(ImageOrigin), sources)
        # an earlier version noted the first source, and whether all said yes: any that did may have any image
        said_yes = [source.name for source in sources() if source.allow_external]
        return cls.of(images, [ImageOrigin(row.image_sha256, name) for row in images for name in said_yes], sources)


def _place(source: ResolvedSource) -> dict[str, Any]:
    """All of a source that decides which pictures it has."""
    return source.model_dump(exclude={"role", "allow_external", "modality", "answer_key"})
