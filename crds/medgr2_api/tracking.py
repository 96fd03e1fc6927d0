"""Where the figures of trainings are followed, beside the TensorBoard files that every training writes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, ClassVar

from pydantic import Field

from .cel_rules import Rule
from .model import ApiEnum, Model
from .server_address import is_external, is_overheard
from .types import HttpURL
from .uris import SecretKeyRef


class MLflowTracking(Model):
    """MLflow: a run for each attempt of a training."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "has(self.usernameSecretRef) == has(self.passwordSecretRef)",
            "usernameSecretRef and passwordSecretRef belong together",
            lambda m: (m.username_secret_ref is None) == (m.password_secret_ref is None),
        ),
        Rule(
            "!has(self.tokenSecretRef) || !has(self.usernameSecretRef)",
            "a token, or user and password: not both",
            lambda m: m.token_secret_ref is None or m.username_secret_ref is None,
        ),
        Rule(
            "has(self.trackingURI) || (!has(self.tokenSecretRef) && !has(self.usernameSecretRef))",
            "credentials are for a tracking server: give trackingURI, too",
            lambda m: m.tracking_uri is not None or not m.secrets,
        ),
    )

    tracking_uri: Annotated[HttpURL | None, Field(alias="trackingURI")] = None
    """Address of the tracking server; absent: a file store in the workspace (`cycles/<cycle>/mlflow`)."""
    experiment: Annotated[str, Field(min_length=1, max_length=250)] = "medgr2"
    """Name of the experiment that the runs belong to."""
    token_secret_ref: SecretKeyRef | None = None
    """Where the bearer token of the server lies; absent: it asks for none."""
    username_secret_ref: SecretKeyRef | None = None
    """Where the user's name for HTTP basic authentication lies."""
    password_secret_ref: SecretKeyRef | None = None
    """Where the password for HTTP basic authentication lies."""

    @property
    def secrets(self) -> list[SecretKeyRef]:
        """The credentials that are asked for."""
        given = (self.token_secret_ref, self.username_secret_ref, self.password_secret_ref)
        return [reference for reference in given if reference is not None]


class WandbMode(ApiEnum):
    """Whether W&B's server is asked while a training runs."""

    OFFLINE = "Offline"
    ONLINE = "Online"


class WandbTracking(Model):
    """Weights & Biases: a run for each attempt of a training."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "!has(self.mode) || self.mode != 'Online' || has(self.apiKeySecretRef)",
            "mode Online needs apiKeySecretRef",
            lambda w: w.mode is not WandbMode.ONLINE or w.api_key_secret_ref is not None,
        ),
    )

    mode: WandbMode = WandbMode.OFFLINE
    """Offline: runs are written to the workspace (`cycles/<cycle>/wandb`), for `wandb sync`; Online: sent at once."""
    base_url: Annotated[HttpURL, Field(alias="baseURL")] = "https://api.wandb.ai"
    """Address of the server in mode Online."""
    project: Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[^/\\#?%:]+$")] = "medgr2"
    """Project that the runs belong to."""
    entity: Annotated[str, Field(max_length=128)] = ""
    """User or team that owns the project; empty: the key's default."""
    api_key_secret_ref: SecretKeyRef | None = None
    """Where the API key lies, for mode Online."""


class Tracking(Model):
    """Who follows the trainings: figures, settings and names of runs; never an image, a text or a weight."""

    allow_external: bool = False
    """Whether these figures may leave the site: a server outside is refused without it."""
    mlflow: MLflowTracking | None = None
    """Follow them with MLflow; absent: do not."""
    wandb: WandbTracking | None = None
    """Follow them with Weights & Biases; absent: do not."""

    @property
    def servers(self) -> Iterator[tuple[str, str, list[SecretKeyRef]]]:
        """Of each server that is asked: the field with its address, the address, and what is shown to it."""
        if self.mlflow is not None and self.mlflow.tracking_uri is not None:
            yield "mlflow.trackingURI", self.mlflow.tracking_uri, self.mlflow.secrets
        if self.wandb is not None and self.wandb.mode is WandbMode.ONLINE and self.wandb.api_key_secret_ref is not None:
            yield "wandb.baseURL", self.wandb.base_url, [self.wandb.api_key_secret_ref]

    @property
    def external(self) -> bool:
        """Whether one of the servers is outside the site, or may be."""
        return any(is_external(address) for _, address, _ in self.servers)

    @property
    def secrets(self) -> list[SecretKeyRef]:
        """What stages that train have to read."""
        return [reference for _, _, references in self.servers for reference in references]

    def problems(self) -> Iterator[tuple[str, str]]:
        """Which servers may not be asked: the field, and why."""
        for field, address, references in self.servers:
            if is_external(address) and not self.allow_external:
                yield (
                    field,
                    "it is outside the site, or may be, by its address: say tracking.allowExternal: true if figures "
                    "and settings of trainings may leave it (images, texts and weights are never sent)",
                )
            if references and is_overheard(address):
                yield field, "the key would cross networks of others unencrypted: use https"
