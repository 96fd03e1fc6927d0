"""The operator's configuration: environment variables `MEDGR2_OPERATOR_*`, set by the chart."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from medgr2_api.kubernetes_fragments import quantity

from ..render.cycle_policy import CyclePolicy
from ..render.render_context import RenderSettings

PREFIX = "MEDGR2_OPERATOR_"


class SettingsError(Exception):
    """A variable has an invalid value."""


def _quantity(text: str) -> str:
    if text and quantity(text) is None:
        raise ValueError("is not a quantity, such as 2, 500m or 8Gi")
    return text


Quantity = Annotated[str, AfterValidator(_quantity)]
"""Of Kubernetes; empty: none."""


class Settings(BaseModel):
    """The operator's configuration."""

    model_config = ConfigDict(extra="forbid")

    image: str = "ghcr.io/medgr2/jobs:0.1.0"
    """Image of the stages, where a cycle names none."""
    image_pull_policy: str = "IfNotPresent"
    namespaces: str = ""
    """Namespaces to watch, separated by commas; empty: all."""
    namespace: str = "default"
    """Where the Lease lies: the operator's own namespace."""
    identity: str = Field(default_factory=socket.gethostname)
    """Identity among the replicas: the pod's name."""
    kubeconfig: Path | None = None
    """Outside a cluster."""
    leader_election: bool = True
    lease_name: str = "medgr2-operator"
    workers: int = Field(default=16, ge=1, le=256)
    """Cycles reconciled at the same time."""
    resync_seconds: float = Field(default=300.0, gt=0)
    """Every cycle is reconciled again after this, whatever the watches say."""
    state_dir: Path | None = None
    """Folder that outlives the process: what was worked on when it ended is set back. Absent: none is."""
    port: int = Field(default=8080, ge=0, le=65535)
    """Of /healthz, /readyz and /metrics."""
    log_level: str = "INFO"
    stage_cpu_request: Quantity = "1"
    stage_memory_request: Quantity = "2Gi"
    stage_cpu_limit: Quantity = "4"
    """Of stages that say nothing about it and have no GPU; empty: none. So the three others."""
    stage_memory_limit: Quantity = "8Gi"
    allow_patches: bool = True
    allow_service_accounts: bool = True
    allow_host_access: bool = True
    allowed_images: str = ""
    """Separated by commas; empty: any."""
    allowed_secrets: str = ""
    """Separated by commas; empty: any."""
    allow_own_namespace: bool = False
    """Cycles in the namespace in which the operator runs. Outside a cluster it runs in none."""

    @property
    def watched(self) -> tuple[str, ...]:
        """Namespaces to watch; empty: all."""
        return _names(self.namespaces)

    def render(self) -> RenderSettings:
        """What rendering needs of it."""
        policy = CyclePolicy(
            allow_patches=self.allow_patches,
            allow_service_accounts=self.allow_service_accounts,
            allow_host_access=self.allow_host_access,
            allowed_images=_names(self.allowed_images),
            allowed_secrets=_names(self.allowed_secrets),
            refused_namespace="" if self.allow_own_namespace or self.kubeconfig is not None else self.namespace,
        )
        return RenderSettings(
            image=self.image,
            image_pull_policy=self.image_pull_policy,
            cpu_request=self.stage_cpu_request,
            memory_request=self.stage_memory_request,
            cpu_limit=self.stage_cpu_limit,
            memory_limit=self.stage_memory_limit,
            policy=policy,
        )


def _names(text: str) -> tuple[str, ...]:
    """Those of a list separated by commas."""
    return tuple(name.strip() for name in text.split(",") if name.strip())


def from_environment(environment: Mapping[str, str] = os.environ) -> Settings:
    """Reads the settings.

    Raises:
        SettingsError: an unknown variable, or an invalid value.
    """
    given = {name.removeprefix(PREFIX).lower(): text for name, text in environment.items() if name.startswith(PREFIX)}
    try:
        return Settings.model_validate(given)
    except ValidationError as error:
        message = "; ".join(f"{PREFIX}{str(d['loc'][0]).upper()}: {d['msg']}" for d in error.errors())
        raise SettingsError(message) from error
