"""A kind of generator finds its client by its name; a plugin's comes by its entry point."""

from __future__ import annotations

import pytest
from tests.support.plugin_fixtures import install, plugin

from medgr2_api.generator import GENERATORS, PluginProvider, Sampling
from medgr2_api.stages.generate import Provider
from medgr2_jobs.errors import ConfigError
from medgr2_jobs.generate import providers
from medgr2_jobs.generate.providers.base import ProviderAccess


def access(kind: str, **more: object) -> ProviderAccess:
    provider = Provider.model_validate({"kind": kind, "model": "m", "baseUrl": "http://127.0.0.1:9", **more})
    return ProviderAccess(provider, "key", Sampling())


@pytest.mark.parametrize("kind", [name for name, kind in GENERATORS.items() if kind.asked])
def test_every_kind_that_is_asked_has_a_client(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch)
    more = {"plugin": plugin("describe", style="terse")} if kind == PluginProvider.kind else {}
    client = providers.connect(access(kind, **more))
    assert isinstance(client.repairs, bool)
    assert type(client).__name__ == ("DescribeClient" if more else f"{GENERATORS[kind].__name__}Client")


def test_a_plugin_without_a_name_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"generator\.plugin: its name and version are missing"):
        providers.connect(access(PluginProvider.kind))
