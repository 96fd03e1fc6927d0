"""Whether data and models are where the spec says, whether records are usable, and which training and tests share."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

from medgr2_api.data import DataFormat, DataSource, OnLeak, SourceRole
from medgr2_api.uris import is_remote

from ..errors import StageError
from ..fetch import BUILTIN, remote_uri
from ..store import atomic
from ..store.safe_path import inside
from .check_result import CheckResult, CheckStatus, PreflightContext, failed, ok, skipped, warning
from .source_survey import SourceSurvey, inputs

_HIDDEN = " (names are private; `names: Clear` of the source shows them)"
_NOT_FETCHED = "is not on the volume: prepare fetches it, or `medgr2 fetch` beforehand"


def data(context: PreflightContext) -> Iterator[CheckResult]:
    """Every source and benchmark, with its folder of images."""
    for where, source in inputs(context.spec):
        if source.format is DataFormat.PHANTOM:
            yield ok(where, "phantoms are drawn, nothing has to be there")
            continue
        for field, uri in (("uri", source.uri), ("images", source.images)):
            if uri:
                yield _check_path(context.root, f"{where}.{field}", uri)


def models(context: PreflightContext) -> Iterator[CheckResult]:
    """The models that the policy, R and students start from."""
    distillation = context.spec.generator.distillation
    model_names = {
        "policy.baseModel": context.spec.policy.base_model,
        "rewardModel.baseModel": context.spec.reward_model.base_model,
        "rewardModel.checkpoint": context.spec.reward_model.checkpoint,
        "generator.distillation.baseModel": distillation.base_model if distillation is not None else None,
    }
    for where, name in model_names.items():
        if name is None:
            continue
        if name.startswith(BUILTIN):
            yield ok(where, "built in")
        elif remote_uri(context.root, name, "model") is not None:
            yield skipped(where, f"{name} {_NOT_FETCHED}")
        else:
            yield _check_path(context.root, where, name)


def records(context: PreflightContext) -> Iterator[CheckResult]:
    """Whether the readers can use what is there, and whether anything teaches answers. What is not there is told by
    `data`, and by nobody else."""
    missing = {check.where.rpartition(".")[0] for check in data(context) if check.status is CheckStatus.FAILED}
    read = {survey.where: survey for survey in context.surveys if survey.where not in missing}
    for survey in read.values():
        yield _usable(survey, context.spec.data.max_bad_fraction)
    seeds = [source for source in context.spec.data.sources if source.role is SourceRole.SEED]
    questions = [
        source.phantom.questions_per_image if source.phantom else read[where].questions
        for where, source in inputs(context.spec)
        if source in seeds and (source.phantom or where in read)
    ]
    if not any(questions) and len(questions) == len(seeds):
        yield failed(
            "data.sources",
            "none has role Seed and questions with answers, which the loop starts from: add one (OmniMedVQA, VQAJsonl, "
            "MMMU, or a plugin's)",
        )


def _usable(survey: SourceSurvey, max_bad: float) -> CheckResult:
    total = survey.good + survey.bad
    which = f"{total:,} records" if survey.whole else f"the first {total:,} records"
    told = "; ".join(map(str, survey.shown)) + (
        f"; and {survey.bad - len(survey.shown)} more" * (survey.bad > len(survey.shown))
    )
    if survey.problem:
        return failed(survey.where, survey.problem)
    if not total:
        return failed(survey.where, "holds no records")
    if survey.bad and survey.private:
        told += _HIDDEN
    if not survey.good:
        return failed(survey.where, f"none of {which} can be used: {told}")
    if not survey.bad:
        return ok(survey.where, f"{which} can be used")
    message = f"{survey.bad:,} of {which} cannot be used: {told}"
    if survey.bad <= max_bad * total:
        return ok(survey.where, f"{message}. They are set aside (data.maxBadFraction: {max_bad:g})")
    message += f". That is more than data.maxBadFraction ({max_bad:g}): correct them, or raise it"
    return failed(survey.where, message) if survey.whole else warning(survey.where, message)


def overlap(context: PreflightContext) -> Iterator[CheckResult]:
    """Picture files that records of the sources and of a benchmark name, byte for byte. Prepare compares pixels, of all
    formats."""
    sources = [survey for survey in context.surveys if isinstance(survey.source, DataSource)]
    training = {path: shown for survey in sources for path, shown in survey.files.items()}
    for where, benchmark in inputs(context.spec):
        if isinstance(benchmark, DataSource):
            continue
        tested = {path: shown for each in context.surveys if each.where == where for path, shown in each.files.items()}
        if not tested or not training:
            yield skipped(where, "no picture files to compare here; prepare compares the images of all formats")
            continue
        common = shared(training, tested)
        if not common:
            yield ok(where, f"none of its {len(tested)} picture files is among the {len(training)} of the sources")
            continue
        first = min(common)
        message = f"{len(common)} of its {len(tested)} picture files are in the sources too, such as {tested[first]}"
        message += f" ({training[common[first]]} there)" * (common[first] != first)
        message += _HIDDEN * any(survey.private for survey in context.surveys if survey.files)
        if benchmark.on_leak is OnLeak.FAIL:
            yield failed(where, f"{message}; onLeak is Fail: take them out of the sources, or set onLeak: Drop")
        else:
            yield warning(where, f"{message}; they are dropped from training (onLeak: Drop)")


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


def shared(training: Collection[Path], tested: Collection[Path]) -> dict[Path, Path]:
    """Tested files that are also trained on, byte for byte, with the first such file.

    Each file is looked at once, and read at most once: where one of the other side has its size.
    """
    sizes = {path: path.stat().st_size for path in {*training, *tested}}
    both = {sizes[path] for path in training} & {sizes[path] for path in tested}
    contents = {path: atomic.sha256_file(path) for path, size in sizes.items() if size in both}
    trained: dict[str, Path] = {}
    for path in sorted(training):
        if path in contents:
            trained.setdefault(contents[path], path)
    return {path: trained[contents[path]] for path in tested if path in contents and contents[path] in trained}
