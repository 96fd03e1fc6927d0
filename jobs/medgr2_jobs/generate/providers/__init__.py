"""Whom to ask: kind of generator → its client. A client's library is imported when it is needed, and not before."""

from __future__ import annotations

import importlib
from collections.abc import Callable

from medgr2_api.generator import PluginProvider
from medgr2_api.plugin import PluginGroup

from ... import plugins
from ...errors import ConfigError
from .base import ProviderAccess, ProviderClient

ClientFactory = Callable[[ProviderAccess], ProviderClient]


def connect(access: ProviderAccess) -> ProviderClient:
    """The client of a provider: of a kind of ours `<Class>Client` in `<kind>_client`, else what a plugin brings.

    Raises:
        ConfigError: it is of another package, and is not there.
    """
    kind = access.provider.about
    if issubclass(kind, PluginProvider):
        if access.provider.plugin is None:
            raise ConfigError("generator.plugin: its name and version are missing")
        client: ClientFactory = plugins.load(PluginGroup.PROVIDERS, access.provider.plugin, "generator.plugin")
    else:
        module = importlib.import_module(f".{kind.kind.lower()}_client", __package__)
        client = getattr(module, f"{kind.__name__}Client")
    return client(access)
