"""Whether those who are to follow the trainings can: their packages and secrets. Without them a cycle runs, too."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator

from ..errors import ConfigError
from ..runner import mounted_secrets
from .check_result import CheckResult, PreflightContext, ok, warning


def tracking(context: PreflightContext) -> Iterator[CheckResult]:
    """A line for MLflow and one for W&B, where the spec asks for them."""
    spec = context.spec.tracking
    if spec is None:
        return
    if spec.mlflow is not None:
        place = spec.mlflow.tracking_uri or "a file store in the workspace"
        yield _tracker("mlflow", place)
    if spec.wandb is not None:
        yield _tracker("wandb", f"mode {spec.wandb.mode}")
    for reference in spec.secrets:
        try:
            mounted_secrets.read(reference.name, reference.key)
        except ConfigError as error:
            yield warning("tracking", f"{error}; trainings run without")


def _tracker(name: str, place: str) -> CheckResult:
    if importlib.util.find_spec(name) is None:
        return warning(
            f"tracking.{name}",
            f"the package is not installed here: install MedGR2 with `{name}`; trainings run without",
        )
    return ok(f"tracking.{name}", f"{place}; the package is there")
