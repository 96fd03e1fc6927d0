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
from .check_result import CheckResult, PreflightContext, failed, ok, skipped, warning

PICTURES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".gif"})
_NOT_FETCHED = "is not on the volume: prepare fetches it, or `medgr2 fetch` beforehand"


def data(context: PreflightContext) -> Iterator[CheckResult]:
    """Every source and benchmark, with its folder of images."""
    for where, source in _inputs(context):
        if source.format is DataFormat.PHANTOM:
            yield ok(where, "phantoms are drawn, nothing has to be there")
            continue
        for field, uri in (("uri", source.uri), ("images", source.images)):
            if uri:
                yield _check_path(context.root, f"{where}.{field}", uri)


def models(context: PreflightContext) -> Iterator[CheckResult]:
    """The models that the policy and R start from."""
    model_names = {
        "policy.baseModel": context.spec.policy.base_model,
        "rewardModel.baseModel": context.spec.reward_model.base_model,
        "rewardModel.checkpoint": context.spec.reward_model.checkpoint,
    }
    for where, name in model_names.items():
        if name is None:
            continue
        if name.startswith(BUILTIN):
            yield ok(where, "built in")
        elif is_remote(name) or (looks_like_hub_id(name) and not (context.root / name).is_dir()):
            yield skipped(where, f"{name} {_NOT_FETCHED}")
        else:
            yield _check_path(context.root, where, name)


def overlap(context: PreflightContext) -> Iterator[CheckResult]:
    """Picture files of the sources that a benchmark has too, byte for byte. Prepare compares pixels, of all formats."""
    training = _pictures(context, context.spec.data.sources)
    for benchmark in context.spec.data.benchmarks:
        where = f"data.benchmarks[{benchmark.name}]"
        tested = _pictures(context, [benchmark])
        if not tested or not training:
            yield skipped(where, "no picture files to compare here; prepare compares the images of all formats")
            continue
        common = _equal(training, tested)
        if not common:
            yield ok(where, f"none of its {len(tested)} picture files is among the {len(training)} of the sources")
            continue
        message = f"{len(common)} of its {len(tested)} picture files are in the sources too, such as {common[0]}"
        if benchmark.on_leak is OnLeak.FAIL:
            yield failed(where, f"{message}; onLeak is Fail: take them out of the sources, or set onLeak: Drop")
        else:
            yield warning(where, f"{message}; they are dropped from training (onLeak: Drop)")


def _inputs(context: PreflightContext) -> Iterator[tuple[str, DataSource | Benchmark]]:
    for source in context.spec.data.sources:
        yield f"data.sources[{source.name}]", source
    for benchmark in context.spec.data.benchmarks:
        yield f"data.benchmarks[{benchmark.name}]", benchmark


def _check_path(root: Path, where: str, uri: str) -> CheckResult:
    if is_remote(uri):
        return skipped(where, f"{uri} {_NOT_FETCHED}")
    try:
        path = inside(root, uri, where)
    except StageError as error:
        return failed(where, str(error))
    if not path.exists():
        return failed(where, f"{path} does not exist; copy it onto the volume or correct the path")
    return ok(where, f"{path} is there")


def _pictures(context: PreflightContext, inputs: Sequence[DataSource | Benchmark]) -> list[Path]:
    """The picture files below the folders of some inputs that lie on the volume."""
    pictures: list[Path] = []
    for source in inputs:
        uri = source.images or source.uri
        if not uri or is_remote(uri) or source.format in (DataFormat.MMMU, DataFormat.DICOM):
            continue
        folder = context.root / uri
        folder = folder if folder.is_dir() else folder.parent
        pictures += (path for path in folder.rglob("*") if path.suffix.lower() in PICTURES and path.is_file())
    return sorted(set(pictures))


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
