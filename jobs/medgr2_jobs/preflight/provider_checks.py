"""Which images the generator may see, and a trial of it: key, model, an image there and an answer back, the cost."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from medgr2_api import paths
from medgr2_api.data import DataFormat
from medgr2_api.stage_contract import CycleRef
from medgr2_api.stages import PREPARE
from medgr2_api.uris import is_remote

from ..errors import StageError
from ..generate.sampling_plan import ImageUse
from ..store.images import ImageStore
from ..store.manifest import load
from ..store.rows import CandidateOutcome, Split
from .check_result import Case, Finding, failed, ok, skipped, warning
from .data_checks import PICTURES

_SIDE = 224  # of the picture that is drawn where there is no other


def leaving(case: Case) -> Iterator[Finding]:
    """Which sources' images leave the house; that none may is refused by `medgr2 validate`."""
    if not case.spec.generator.external:
        yield ok("generator", "it is inside: no image leaves the house")
        return
    for source in case.spec.data.sources:
        where = f"data.sources[{source.name}]"
        if source.allow_external:
            yield ok(where, "its images are sent to the provider outside (allowExternal)")
        else:
            yield warning(where, "its images stay in the house: the generator asks nothing about them")


def trial(case: Case) -> Iterator[Finding]:
    """Asks a few questions, pays for them, and says what all of them will cost."""
    from ..generate.cost_estimate import estimate
    from ..generate.probe import sample

    kind = case.parameters.provider.about
    where = f"generator.{kind.kind}"
    if not kind.asked:
        yield ok(where, "code asks nobody")
        return
    if kind.beside_stage:
        yield skipped(where, "a server beside the stage only runs on the cluster")
        return
    if case.questions == 0:
        yield skipped(where, "--questions 0: it was not asked")
        return
    metadata = case.cycle.metadata
    reference = CycleRef(
        name=metadata.name, namespace=metadata.namespace, uid=metadata.uid or paths.local_uid(metadata.name)
    )
    try:
        images = _images(case)
        rows = sample(case.root, reference, case.parameters, images, case.questions, case.spec.budget.generator_usd)
    except StageError as error:
        yield failed(where, str(error))
        return
    good = sum(row.outcome is CandidateOutcome.OK for row in rows)
    others = sorted({f"{row.outcome} {row.error}".strip() for row in rows if row.outcome is not CandidateOutcome.OK})
    told = f"{case.parameters.provider.model}: {good} of {len(rows)} questions became triplets"
    yield ok(where, told) if good == len(rows) else warning(where, f"{told}; the others: {'; '.join(others)}")
    total = case.parameters.candidates * case.spec.iterations
    seen = estimate(rows, total)
    assert seen is not None  # there are rows
    yield _cost(case, str(seen), seen.usd)


def _cost(case: Case, told: str, usd: float | None) -> Finding:
    budget = case.spec.budget.generator_usd
    if usd is None:
        return skipped("generator.prices", f"{told}; without prices nobody knows what that costs")
    if budget is not None and usd > budget:
        return warning("budget.generatorUSD", f"{told}; more than the budget of {budget:g} USD")
    return ok("budget.generatorUSD", told)


def _images(case: Case) -> list[ImageUse]:
    """What to ask about: prepare's where it has run, else a few pictures of the sources."""
    link = case.root / paths.iteration_link(case.cycle.metadata.name, 0, PREPARE.name)
    if link.is_dir():
        prepared = _prepared(link)
        if prepared:
            return prepared
    store, found = ImageStore(case.root), []
    for path, allowed, modality in _pictures(case):
        image = store.add_file(path, case.spec.data.max_pixels)
        found.append(ImageUse(image.sha256, modality, Split.TRAIN, allowed))
        if len(found) == case.questions:
            break
    if not found:
        from PIL import Image

        drawn = Image.effect_noise((_SIDE, _SIDE), 60).convert("RGB")
        found = [ImageUse(store.add(drawn, case.spec.data.max_pixels).sha256, "", Split.TRAIN, True)]
    return found


def _prepared(folder: Path) -> list[ImageUse]:
    from ..store import tables

    published = load(folder)
    part = published.part("images.parquet") if published else None
    return tables.read(folder / part.path, ImageUse) if part else []


def _pictures(case: Case) -> Iterator[tuple[Path, bool, str]]:
    """Picture files of the sources, whether they may leave, and what they are."""
    for source in case.spec.data.sources:
        uri = source.images or source.uri
        if not uri or is_remote(uri) or source.format in (DataFormat.MMMU, DataFormat.DICOM):
            continue
        folder = case.root / uri
        folder = folder if folder.is_dir() else folder.parent
        for path in sorted(folder.rglob("*")):
            if path.suffix.lower() in PICTURES and path.is_file():
                yield path, source.allow_external, source.modality
