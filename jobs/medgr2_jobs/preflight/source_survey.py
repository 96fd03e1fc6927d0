"""What the readers make of sources and benchmarks before stage prepare reads them: usable records, and their pictures.

Pictures are only ever found through the readers: what else lies in a folder is no source's.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from medgr2_api import paths
from medgr2_api.cycle import ResolvedSpec
from medgr2_api.data import Benchmark, DataFormat, ResolvedSource
from medgr2_api.uris import is_remote

from ..data import format_registry, pseudonyms
from ..data.decoder import client as decoder
from ..data.pseudonyms import Names
from ..data.record import BadRecord, Place, Record
from ..errors import DataError, StageError
from ..fetch import pin_file
from ..generate.prepared_images import ImageUse, PreparedImages
from ..store.images import EncodedImage, ImageStore, StoredImage
from ..store.rows import Split
from ..store.rows.prepared import ImageOrigin
from ..store.safe_path import inside

#: Pictures of a source that are decoded to see whether they can be.
DECODED = 100
_USABLE_SIDE = 224
_SHOWN = 3

P = TypeVar("P", bound=Place)


@dataclass
class SourceSurvey:
    """What was read of a source or benchmark."""

    where: str
    source: ResolvedSource | Benchmark
    path: Path = Path()
    """File or folder."""
    private: bool = True
    """Whether messages call files and records by pseudonyms."""
    problem: str = ""
    """Why it cannot be read at all."""
    good: int = 0
    questions: int = 0
    """Good ones with an answer."""
    bad: int = 0
    shown: list[BadRecord] = field(default_factory=list)
    """The first few bad ones."""
    whole: bool = True
    """Whether all records were read; else the first few: their pictures have to be decoded to be found."""
    files: dict[Path, str] = field(default_factory=dict)
    """The picture files that its records name, as messages call them."""


def inputs(spec: ResolvedSpec) -> Iterator[tuple[str, ResolvedSource | Benchmark]]:
    """Every source and benchmark, with where it stands in the spec."""
    for source in spec.data.sources:
        yield f"data.sources[{source.name}]", source
    for benchmark in spec.data.benchmarks:
        yield f"data.benchmarks[{benchmark.name}]", benchmark


def survey(root: Path, spec: ResolvedSpec) -> list[SourceSurvey]:
    """Reads each source and benchmark that is on the volume, phantoms apart.

    Of files that records name all are noted, and the first few decoded. Where pictures lie inside the records (MMMU,
    DICOM), as many records are read as pictures are decoded. Nothing is kept on the disk.
    """
    surveys = (_survey(root, spec, where, source) for where, source in inputs(spec))
    return [found for found in surveys if found is not None]


def pictures(root: Path, spec: ResolvedSpec, count: int, *, external: bool) -> PreparedImages:
    """A few pictures of the sources, for a trial of the generator.

    Args:
        root: the workspace; the pictures are put into its image store.
        spec: of now.
        count: how many, at most.
        external: they are for a provider outside. All that says no (benchmarks, too) is then read to its end, to know
            which pictures it has; this takes as long as stage prepare takes for it.

    Raises:
        DataError: what says no is not on the volume, or cannot be read.
    """
    origins: list[ImageOrigin] = []
    for where, source in inputs(spec) if external else ():
        if source.format is DataFormat.PHANTOM or (isinstance(source, ResolvedSource) and source.allow_external):
            continue
        named = _place(_Names, root, spec, source, where)
        if named is None:
            raise DataError(f"{where}: its images may not leave, and it is not on the volume: {_ONLY_DRAWN}")
        for _ in format_registry.reader(source, where)(named):
            pass
        origins += (ImageOrigin(sha256, source.name) for sha256 in sorted(named.named_images))
    withheld = {origin.image_sha256 for origin in origins}
    rows: dict[str, ImageUse] = {}
    for where, source in inputs(spec):
        if not isinstance(source, ResolvedSource) or (external and not source.allow_external):
            continue
        place = _place(Place, root, spec, source, where)
        for record in format_registry.reader(source, where)(place) if place else ():
            if isinstance(record, Record) and withheld.isdisjoint((record.image.sha256, *record.image.parts)):
                use = ImageUse(record.image.sha256, record.modality, source.name, Split.TRAIN, source.allow_external)
                rows.setdefault(use.image_sha256, use)
            if len(rows) == count:
                break
    if not rows:
        raise DataError(f"no source has an image on the volume that may be sent: {_ONLY_DRAWN}")
    return PreparedImages.of(rows.values(), origins, lambda: [*spec.data.sources, *spec.data.benchmarks])


_ONLY_DRAWN = "run stage prepare first, or leave out --real-images, to ask about a drawn picture"


def local_path(root: Path, uri: str, where: str) -> Path | None:
    """Where a URI's data lies on the volume; None: it is not fetched yet.

    Raises:
        StageError: it leads out of the workspace, or what was fetched is damaged.
    """
    if not is_remote(uri):
        return inside(root, uri, where)
    folder = pin_file.folder_of(root, uri, "dataset")
    fetched = pin_file.load(folder, uri, "dataset")
    return folder / pin_file.FILES / fetched.path if fetched else None


@dataclass
class _Glance(Place):
    """Keeps no picture: notes which files there are, and decodes the first few."""

    files: dict[Path, str] = field(default_factory=dict)

    def keep_file(self, path: Path) -> StoredImage:
        """As `Place`; what is not decoded counts as usable."""
        top = self.images or (self.path if self.path.is_dir() else self.path.parent)
        name = path.relative_to(top if path.is_relative_to(top) else self.root).as_posix()
        self.files[path] = str(path) if self.names.clear else self.names.file(name)
        if len(self.files) <= DECODED:
            return self.keep(decoder.picture(path, self.max_pixels))
        return StoredImage("", _USABLE_SIDE, _USABLE_SIDE)

    def keep(self, picture: EncodedImage) -> StoredImage:
        """As `Place`, without storing it."""
        return picture.stored


class _Names(Place):
    """Names pictures as the workspace's store does, and keeps none."""

    def keep(self, picture: EncodedImage) -> StoredImage:
        """As `Place`, without storing it."""
        stored = picture.stored
        self.named_images |= {stored.sha256, *stored.parts}
        return stored


def _survey(root: Path, spec: ResolvedSpec, where: str, source: ResolvedSource | Benchmark) -> SourceSurvey | None:
    """None: it is not on the volume, or drawn."""
    found = SourceSurvey(where, source)
    try:
        place = _place(_Glance, root, spec, source, where)
        if place is None:
            return None
        found.path, found.private = place.path, not place.names.clear
        for record in format_registry.reader(source, where)(place):
            if isinstance(record, BadRecord):
                found.bad += 1
                found.shown += [record] if len(found.shown) < _SHOWN else []
            else:
                found.good += 1
                found.questions += record.answer_index is not None
            if not place.files and found.good + found.bad == DECODED:
                found.whole = False
                break
    except StageError as error:
        found.problem = str(error)
        return found
    found.files = place.files
    return found


def _place(kind: type[P], root: Path, spec: ResolvedSpec, source: ResolvedSource | Benchmark, where: str) -> P | None:
    """What a reader is given; None: it is not on the volume, or drawn.

    Raises:
        StageError: it leads out of the workspace, or what was fetched is damaged.
    """
    if source.format is DataFormat.PHANTOM:
        return None
    path = local_path(root, source.uri, f"{where}.uri")
    images = local_path(root, source.images, f"{where}.images") if source.images else None
    if path is None or (source.images and images is None):
        return None
    return kind(
        source=source,
        root=root,
        path=path,
        what=f"{where}.uri",
        store=ImageStore(root),
        max_pixels=spec.data.max_pixels,
        names=_names(root).of(source),
        images=images,
    )


def _names(root: Path) -> Names:
    """As stage prepare shows them, where the workspace has its secret; else under one that is forgotten."""
    there = (root / paths.PSEUDONYM_KEY).exists()
    return Names(pseudonyms.of_workspace(root) if there else secrets.token_bytes(32), clear=False)
