"""Which images the generator may see, and a trial of it: key, model, an image there and an answer back, the cost."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from medgr2_api import paths
from medgr2_api.data import DataFormat
from medgr2_api.stage_contract import CycleRef
from medgr2_api.stages import PREPARE
from medgr2_api.uris import is_remote

from ..data.decoder import client as decoder
from ..data.decoder.protocol import BadField
from ..errors import DataError, StageError
from ..generate.sampling_plan import ImageUse
from ..store.images import ImageStore
from ..store.manifest import load
from ..store.rows import CandidateOutcome, Split
from .check_result import CheckResult, PreflightContext, failed, ok, skipped, warning
from .data_checks import PICTURES

_NOISE_SIDE = 224  # of the picture that is drawn where there is no other


def egress(context: PreflightContext) -> Iterator[CheckResult]:
    """Data egress: which sources' images leave the site; that none may is refused by `medgr2 validate`."""
    if not context.spec.generator.external:
        yield ok("generator", "it is on site: no image leaves it")
        return
    for source in context.spec.data.sources:
        where = f"data.sources[{source.name}]"
        if source.allow_external:
            yield ok(where, "its images are sent to the external provider (allowExternal)")
        else:
            yield warning(where, "its images stay on site: the generator asks nothing about them")


def trial(context: PreflightContext) -> Iterator[CheckResult]:
    """Asks a few questions, pays for them, and says what all of them will cost."""
    from ..generate.cost_estimate import estimate
    from ..generate.probe import sample

    kind = context.parameters.provider.about
    where = f"generator.{kind.kind}"
    if not kind.asked:
        yield ok(where, "code asks nobody")
        return
    if kind.beside_stage:
        yield skipped(where, "a server beside the stage only runs on the cluster")
        return
    if context.questions == 0:
        yield skipped(where, "--questions 0: it was not asked")
        return
    metadata = context.cycle.metadata
    reference = CycleRef(
        name=metadata.name, namespace=metadata.namespace, uid=metadata.uid or paths.local_uid(metadata.name)
    )
    try:
        images = _images(context)
        rows = sample(
            context.root, reference, context.parameters, images, context.questions, context.spec.budget.generator_usd
        )
    except StageError as error:
        yield failed(where, str(error))
        return
    good = sum(row.outcome is CandidateOutcome.OK for row in rows)
    others = sorted({f"{row.outcome} {row.error}".strip() for row in rows if row.outcome is not CandidateOutcome.OK})
    message = f"{context.parameters.provider.model}: {good} of {len(rows)} questions became triplets"
    if good == len(rows):
        yield ok(where, message)
    else:
        judge = warning if good else failed  # to pay for more of the same makes no sense
        yield judge(where, f"{message}; the others: {'; '.join(others)}")
    total = context.parameters.candidates * context.spec.iterations
    estimated = estimate(rows, total)
    assert estimated is not None  # there are rows
    yield _cost(context, str(estimated), estimated.usd)


def _cost(context: PreflightContext, message: str, usd: float | None) -> CheckResult:
    budget = context.spec.budget.generator_usd
    if usd is None:
        return skipped("generator.prices", f"{message}; without prices nobody knows what that costs")
    if budget is not None and usd > budget:
        return warning("budget.generatorUSD", f"{message}; more than the budget of {budget:g} USD")
    return ok("budget.generatorUSD", message)


def _images(context: PreflightContext) -> list[ImageUse]:
    """What to ask about: prepare's where it has run, else a few pictures of the sources."""
    link = context.root / paths.iteration_link(context.cycle.metadata.name, 0, PREPARE.name)
    if link.is_dir():
        prepared = _prepared(link)
        if prepared:
            return prepared
    store, images = ImageStore(context.root), []
    for path, allowed, modality in _pictures(context):
        try:
            image = store.put(decoder.picture(path, context.spec.data.max_pixels))
        except BadField as bad:
            raise DataError(f"{path}: {bad.reason}") from None
        images.append(ImageUse(image.sha256, modality, Split.TRAIN, allowed))
        if len(images) == context.questions:
            break
    if not images:
        from PIL import Image

        noise = Image.effect_noise((_NOISE_SIDE, _NOISE_SIDE), 60).convert("RGB")
        images = [ImageUse(store.add(noise, context.spec.data.max_pixels).sha256, "", Split.TRAIN, True)]
    return images


def _prepared(folder: Path) -> list[ImageUse]:
    from ..store import tables

    published = load(folder)
    part = published.part("images.parquet") if published else None
    return tables.read(folder / part.path, ImageUse) if part else []


def _pictures(context: PreflightContext) -> Iterator[tuple[Path, bool, str]]:
    """Picture files of the sources, whether they may leave, and what they are."""
    for source in context.spec.data.sources:
        uri = source.images or source.uri
        if not uri or is_remote(uri) or source.format in (DataFormat.MMMU, DataFormat.DICOM):
            continue
        folder = context.root / uri
        folder = folder if folder.is_dir() else folder.parent
        for path in sorted(folder.rglob("*")):
            if path.suffix.lower() in PICTURES and path.is_file():
                yield path, source.allow_external, source.modality
