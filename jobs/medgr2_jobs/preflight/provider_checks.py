"""Which images the generator may see, and a trial of it: key, model, an image there and an answer back, the cost."""

from __future__ import annotations

from collections.abc import Iterator

from medgr2_api import paths
from medgr2_api.stage_contract import CycleRef
from medgr2_api.stages import PREPARE

from ..errors import StageError
from ..generate.prepared_images import PreparedImages
from ..report.cycle_artifacts import CycleArtifacts
from ..store.rows.candidates import CandidateOutcome
from . import source_survey
from .check_result import CheckResult, PreflightContext, failed, ok, skipped, warning


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
    what = "a drawn picture; --real-images asks about the sources' own" if images is None else "images of the sources"
    about = f" (asked about {what})"
    good = sum(row.outcome is CandidateOutcome.OK for row in rows)
    others = sorted({f"{row.outcome} {row.error}".strip() for row in rows if row.outcome is not CandidateOutcome.OK})
    message = f"{context.parameters.provider.model}: {good} of {len(rows)} questions became triplets"
    if good == len(rows):
        yield ok(where, message + about)
    else:
        judge = warning if good else failed  # to pay for more of the same makes no sense
        yield judge(where, f"{message}; the others: {'; '.join(others)}{about}")
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


def _images(context: PreflightContext) -> PreparedImages | None:
    """What to ask about; None: a drawn picture.

    Prepare's images where it has read all that says no in the spec of now, else some that the readers find.

    Raises:
        StageError: real ones are wanted, and which of them may be sent is not known.
    """
    if not context.real_images:
        return None
    name, data = context.cycle.metadata.name, context.spec.data
    if (context.root / paths.cycle(name) / "iterations").is_dir():
        artifacts = CycleArtifacts(context.root, name)
        if artifacts.has_input(PREPARE.name):
            prepared = PreparedImages.published(artifacts.input(PREPARE.name))
            if not prepared.unread([*data.sources, *data.benchmarks]):
                return prepared
    external = context.parameters.provider.has_egress
    return source_survey.pictures(context.root, context.spec, context.questions, external=external)
