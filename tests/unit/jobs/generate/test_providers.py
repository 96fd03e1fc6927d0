"""A kind of generator finds its client by its name; a plugin's comes by its entry point."""

from __future__ import annotations

from typing import Any

import pytest
from tests.support.cycle_documents import spec_with
from tests.support.generate_fixtures import drawn_image
from tests.support.plugin_fixtures import install, plugin

from medgr2_api.generator import GENERATORS, PluginProvider, Sampling
from medgr2_api.presets import resolve
from medgr2_api.stages import stage_parameters
from medgr2_api.stages.generate import GenerateParameters, Provider
from medgr2_jobs.errors import ConfigError
from medgr2_jobs.generate import providers
from medgr2_jobs.generate.providers.base import ImageQuestion, ProviderAccess
from medgr2_jobs.generate.providers.openai_client import OpenAIClient


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


@pytest.mark.parametrize(
    ("kind", "fields", "sent"),
    [
        ("openAI", {}, {}),
        ("openAI", {"reasoningEffort": "low"}, {"reasoning_effort": "low"}),
        (
            "openAI",
            {"chatTemplateKwargs": {"enable_thinking": False}},
            {"chat_template_kwargs": {"enable_thinking": False}},
        ),
        ("vllm", {"chatTemplateKwargs": {"thinking": False}}, {"chat_template_kwargs": {"thinking": False}}),
    ],
)
def test_what_the_spec_says_about_thinking_is_sent(kind: str, fields: dict[str, Any], sent: dict[str, Any]) -> None:
    address = {"baseURL": "http://vllm.models.svc/v1"} if kind == "openAI" else {}
    spec = resolve(spec_with({"generator": {kind: {"model": "m", **address, **fields}}}))
    parameters = stage_parameters(spec, "c", "generate", 1)
    assert isinstance(parameters, GenerateParameters)
    client = providers.connect(ProviderAccess(parameters.provider, None, parameters.sampling))
    assert isinstance(client, OpenAIClient)
    request = client._request(ImageQuestion("q", drawn_image(), 1))
    assert {name: request[name] for name in request if name in ("reasoning_effort", "chat_template_kwargs")} == sent
