"""Whether data and models are where the spec says, and whether training and tests share picture files."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from medgr2_api.data import Benchmark, DataFormat, DataSource, OnLeak
from medgr2_api.uris import is_remote, looks_like_hub_id

from ..errors import StageError
from ..fetch import BUILTIN
from ..store import atomic
from ..store.safe_path import inside
from .check_result import Case, Finding, failed, ok, skipped, warning

PICTURES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".gif"})
_FETCHED = "is not on the volume: prepare fetches it, or `medgr2 fetch` beforehand"


def data(case: Case) -> Iterator[Finding]:
    """Every source and benchmark, with its folder of images."""
    for where, given in _inputs(case):
        if given.format is DataFormat.PHANTOM:
            yield ok(where, "phantoms are drawn, nothing has to be there")
            continue
        for field, uri in (("uri", given.uri), ("images", given.images)):
            if uri:
                yield _place(case.root, f"{where}.{field}", uri)


def models(case: Case) -> Iterator[Finding]:
    """The models that the policy and R start from."""
    named = {
        "policy.baseModel": case.spec.policy.base_model,
        "rewardModel.baseModel": case.spec.reward_model.base_model,
        "rewardModel.checkpoint": case.spec.reward_model.checkpoint,
    }
    for where, name in named.items():
        if name is None:
            continue
        if name.startswith(BUILTIN):
            yield ok(where, "built in")
        elif is_remote(name) or (looks_like_hub_id(name) and not (case.root / name).is_dir()):
            yield skipped(where, f"{name} {_FETCHED}")
        else:
            yield _place(case.root, where, name)


def overlap(case: Case) -> Iterator[Finding]:
    """Picture files of the sources that a benchmark has too, byte for byte. Prepare compares pixels, of all formats."""
    training = _pictures(case, case.spec.data.sources)
    for benchmark in case.spec.data.benchmarks:
        where = f"data.benchmarks[{benchmark.name}]"
        tested = _pictures(case, [benchmark])
        if not tested or not training:
            yield skipped(where, "no picture files to compare here; prepare compares the images of all formats")
            continue
        common = _equal(training, tested)
        if not common:
            yield ok(where, f"none of its {len(tested)} picture files is among the {len(training)} of the sources")
            continue
        told = f"{len(common)} of its {len(tested)} picture files are in the sources too, such as {common[0]}"
        if benchmark.on_leak is OnLeak.FAIL:
            yield failed(where, f"{told}; onLeak is Fail: take them out of the sources, or set onLeak: Drop")
        else:
            yield warning(where, f"{told}; they are dropped from training (onLeak: Drop)")


def _inputs(case: Case) -> Iterator[tuple[str, DataSource | Benchmark]]:
    for source in case.spec.data.sources:
        yield f"data.sources[{source.name}]", source
    for benchmark in case.spec.data.benchmarks:
        yield f"data.benchmarks[{benchmark.name}]", benchmark


def _place(root: Path, where: str, uri: str) -> Finding:
    if is_remote(uri):
        return skipped(where, f"{uri} {_FETCHED}")
    try:
        path = inside(root, uri, where)
    except StageError as error:
        return failed(where, str(error))
    if not path.exists():
        return failed(where, f"{path} does not exist; copy it onto the volume or correct the path")
    return ok(where, f"{path} is there")


def _pictures(case: Case, inputs: Sequence[DataSource | Benchmark]) -> list[Path]:
    """The picture files below the folders of some inputs that lie on the volume."""
    found: list[Path] = []
    for given in inputs:
        uri = given.images or given.uri
        if not uri or is_remote(uri) or given.format in (DataFormat.MMMU, DataFormat.DICOM):
            continue
        folder = case.root / uri
        folder = folder if folder.is_dir() else folder.parent
        found += (path for path in folder.rglob("*") if path.suffix.lower() in PICTURES and path.is_file())
    return sorted(set(found))


def _equal(training: list[Path], tested: list[Path]) -> list[Path]:
    """Training files that are equal to a tested one: only files of the same size are read."""
    by_size: dict[int, list[Path]] = defaultdict(list)
    for path in tested:
        by_size[path.stat().st_size].append(path)
    hashes: dict[Path, str] = {}

    def sha256(path: Path) -> str:
        if path not in hashes:
            hashes[path] = atomic.sha256_file(path)
        return hashes[path]

    return [
        path
        for path in training
        if (others := by_size.get(path.stat().st_size)) and sha256(path) in {sha256(other) for other in others}
    ]
