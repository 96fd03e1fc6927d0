"""Code of other packages, found by their entry points: providers, readers, reward terms and curation rules.

What an entry point names is a callable. It is given what it works on, as the built-in ones are, and the spec's
`options` as keyword arguments (docs/plugins.md).
"""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from medgr2_api.plugin import PluginGroup, PluginRef

from .errors import ConfigError

#: What is passed by position, before the options.
PARAMETERS: dict[PluginGroup, tuple[str, ...]] = {
    PluginGroup.PROVIDERS: ("access",),
    PluginGroup.READERS: ("place",),
    PluginGroup.REWARDS: ("completions",),
    PluginGroup.CURATION_RULES: ("facts", "reasons"),
}


def find(group: PluginGroup, plugin: PluginRef, where: str) -> EntryPoint:
    """The entry point of a plugin; nothing of it is imported.

    Args:
        group: what it is to be.
        plugin: its name and version.
        where: where the spec names it, for messages.

    Raises:
        ConfigError: no package brings it, several do, or the package has another version.
    """
    points = list(entry_points(group=group, name=plugin.name))
    if not points:
        raise ConfigError(f"{where}: {_missing(group, plugin.name)}")
    packages = [_package(point) for point in points]
    if len(points) > 1:
        raise ConfigError(
            f"{where}: {plugin.name!r} is an entry point of {group} in {' and in '.join(packages)}; uninstall one"
        )
    version = points[0].dist.version if points[0].dist else ""
    if version != plugin.version:
        raise ConfigError(
            f"{where}.version: asks for {plugin.version}, but installed is {packages[0]}: install {plugin.version} "
            f"where the stages run, or ask for {version} (what ran with another version runs again)"
        )
    return points[0]


def load(group: PluginGroup, plugin: PluginRef, where: str) -> Callable[..., Any]:
    """What a plugin brings, with its options filled in.

    Args:
        group: what it is to be; says what the result is called with (`PARAMETERS`).
        plugin: its name, version and options.
        where: where the spec names it, for messages.

    Raises:
        ConfigError: it is not there (`find`), cannot be imported, or does not take these options.
    """
    point = find(group, plugin, where)
    try:
        loaded = point.load()
    except Exception as error:  # whatever another package's code does when it is imported
        raise ConfigError(f"{where}: {point.value} of {_package(point)} cannot be imported: {error!r}") from error
    if not callable(loaded):
        raise ConfigError(f"{where}: {point.value} of {_package(point)} is no function and no class")
    try:
        inspect.signature(loaded).bind(*PARAMETERS[group], **plugin.options)
    except TypeError as error:
        takes = f"{point.value}{inspect.signature(loaded)}"
        raise ConfigError(f"{where}.options: {plugin.name!r} does not take them: {error}; it is {takes}") from error
    return functools.partial(loaded, **plugin.options)


def _missing(group: PluginGroup, name: str) -> str:
    installed = sorted({point.name: _package(point) for point in entry_points(group=group)}.items())
    near = difflib.get_close_matches(name, [one for one, _ in installed], n=1)
    meant = f"did you mean {near[0]!r}? " if near else ""
    listed = ", ".join(f"{one} ({package})" for one, package in installed) or "none"
    return (
        f"no installed package has an entry point {name!r} in {group}; {meant}Installed are: {listed}. "
        "Install the package where the stages run (on a cluster: in their image), or correct the name"
    )


def _package(point: EntryPoint) -> str:
    return f"{point.dist.name} {point.dist.version}" if point.dist else point.value
