"""A session with a provider: client, egress policy, spend ledger and journal, for the stage and for a probe."""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from medgr2_api import paths
from medgr2_api.stage_contract import VLLM_API_KEY_FILE_ENV, VLLM_BASE_URL_ENV, CycleRef, Shard
from medgr2_api.stages.generate import GenerateParameters, Provider

from ..errors import ConfigError
from ..runner import mounted_secrets
from . import providers, spend_ledger
from .egress_policy import EgressPolicy
from .journal import Journal
from .prepared_images import PreparedImages
from .providers.base import ProviderAccess, ProviderClient
from .spend_ledger import SpendLedger


@dataclass
class ProviderSession:
    """What `RequestScheduler` needs: the provider's client, what may be sent to it, and what it may cost."""

    parameters: GenerateParameters
    provider: Provider
    egress: EgressPolicy
    client: ProviderClient
    ledger: SpendLedger | None = None
    """None: nothing has a price."""
    journal: Journal | None = None
    """None: nothing is kept."""
    cycle_uid: str = ""
    """Who pays."""
    shards: int = 1
    grace_seconds: float = 0.0
    """After a request to stop: what is in flight may finish meanwhile."""


@dataclass(frozen=True)
class BillingAccount:
    """Who pays."""

    cycle: CycleRef
    name: str
    """The artifact's input hash; names the ledger."""
    budget_usd: float | None = None
    """What the whole cycle may spend; None: no limit."""
    shard: Shard = field(default_factory=Shard)


@asynccontextmanager
async def open_session(
    root: Path,
    account: BillingAccount,
    parameters: GenerateParameters,
    images: PreparedImages,
    journal: Journal | None = None,
    grace_seconds: float = 0.0,
) -> AsyncIterator[ProviderSession]:
    """Connects to the provider and opens the ledger; both are closed after the block.

    Args:
        root: the workspace.
        account: who pays.
        parameters: whom to ask, and how.
        images: what there is to ask about, and where it comes from.
        journal: where rows are kept.
        grace_seconds: see `ProviderSession`.

    Raises:
        ConfigError: the settings or the secret do not suffice.
        TemporaryError: another process pays from the same ledger.
    """
    provider = resolve_address(parameters.provider)
    key = _key(provider)
    if provider.about.needs_key and key is None:  # or a library would take one from our own environment
        raise ConfigError(f"generator.{provider.kind}.apiKeySecretRef: must be given")
    if provider.overheard:
        raise ConfigError(f"generator.{provider.kind}.baseURL: {provider.overheard}")
    client = providers.connect(ProviderAccess(provider, key, parameters.sampling))
    ledger: SpendLedger | None = None
    try:
        ledger = _open_ledger(root, account, provider)
        if ledger is not None and journal is not None:
            ledger.recover(journal.charges(account.cycle.uid))
        egress = EgressPolicy([*parameters.sources, *parameters.benchmarks], images, root, external=provider.has_egress)
        yield ProviderSession(
            parameters,
            provider,
            egress,
            client,
            ledger=ledger,
            journal=journal,
            cycle_uid=account.cycle.uid,
            shards=account.shard.count,
            grace_seconds=grace_seconds,
        )
    finally:
        if ledger is not None:
            await ledger.close()
        await client.close()


def _key(provider: Provider) -> str | None:
    """The provider's key: of its Secret, or what the server beside the stage made for this pod; None: it has none."""
    if provider.about.beside_stage and (file := os.environ.get(VLLM_API_KEY_FILE_ENV)):
        return mounted_secrets.read_file(Path(file), f"the key of the {provider.kind} beside the stage")
    reference = provider.api_key_secret_ref
    return mounted_secrets.read(reference.name, reference.key) if reference else None


def resolve_address(provider: Provider) -> Provider:
    """The provider with its address; that of a server beside the stage comes from the operator, by environment.

    Raises:
        ConfigError: address or model are missing.
    """
    if provider.about.beside_stage:
        provider = provider.model_copy(update={"base_url": os.environ.get(VLLM_BASE_URL_ENV, "")})
        if not provider.base_url:
            raise ConfigError(
                f"generator.{provider.kind}: {VLLM_BASE_URL_ENV} is not set, so nothing answers beside this stage; "
                f"{provider.about.cluster_only}"
            )
    if not provider.model or (provider.about.needs_address and not provider.base_url):
        raise ConfigError(f"generator.{provider.kind}: its address and its model must be given")
    return provider


def holder_identity(cycle: CycleRef, attempt: int) -> str:
    """Who holds the journal's lock, for the message to whoever finds it locked."""
    return f"attempt {attempt} of cycle {cycle.name} (process {os.getpid()} on {socket.gethostname()})"


def _open_ledger(root: Path, account: BillingAccount, provider: Provider) -> SpendLedger | None:
    if provider.prices is None:
        if account.budget_usd is not None and provider.about.charges:
            raise ConfigError(
                "budget.generatorUSD needs generator.prices: without them nobody knows what a question costs"
            )
        return None
    folder = root / paths.spend(account.cycle.name, account.cycle.uid)
    shard = account.shard
    path = spend_ledger.path_of(folder, account.name, shard.index)
    limit = None
    if account.budget_usd is not None:
        limit = spend_ledger.allowance(account.budget_usd, folder, account.name, shard.count)
    return SpendLedger(path, f"cycle {account.cycle.name} (process {os.getpid()})", limit)
