"""Whether the plugins that the spec names are installed here, in the version that it names."""

from __future__ import annotations

from collections.abc import Iterator

from medgr2_api.cycle import ResolvedSpec
from medgr2_api.generator import PluginProvider
from medgr2_api.plugin import PluginGroup, PluginRef

from .. import plugins as installed
from ..errors import ConfigError
from .check_result import CheckResult, PreflightContext, failed, ok


def plugins(context: PreflightContext) -> Iterator[CheckResult]:
    """Every plugin, imported, and its options."""
    for where, group, plugin in _plugin_refs(context.spec):
        try:
            point = installed.find(group, plugin, where)
            installed.load(group, plugin, where)
        except ConfigError as error:
            yield failed(where, str(error).removeprefix(f"{where}: "))
        else:
            yield ok(where, f"{point.value} is there, of version {plugin.version}")


def _plugin_refs(spec: ResolvedSpec) -> Iterator[tuple[str, PluginGroup, PluginRef]]:
    """Where in the spec, what it is to be, and which."""
    for source in spec.data.sources:
        if source.plugin is not None:
            yield f"data.sources[{source.name}].plugin", PluginGroup.READERS, source.plugin
    for benchmark in spec.data.benchmarks:
        if benchmark.plugin is not None:
            yield f"data.benchmarks[{benchmark.name}].plugin", PluginGroup.READERS, benchmark.plugin
    if isinstance(spec.generator.chosen, PluginProvider):
        yield "generator.plugin", PluginGroup.PROVIDERS, spec.generator.chosen
    for rule in spec.curation.further_rules:
        yield f"curation.rules[{rule.name}]", PluginGroup.CURATION_RULES, rule
    for term in spec.policy.grpo.rewards:
        if term.plugin is not None:
            yield f"policy.grpo.rewards[{term.plugin.name}]", PluginGroup.REWARDS, term.plugin
