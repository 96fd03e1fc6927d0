"""The changes to libraries we did not write: which there are, when they are made, and how they are switched off.

A patch is made where it is known to be right and worth it: on a version of the library that it was compared with, and
on a kind of device that it was measured on. `MEDGR2_PATCHES=off` leaves every library as it came; a list of names
(`MEDGR2_PATCHES=qwen_vl,trl_head`) leaves all others out.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from importlib import metadata
from typing import Any

import torch

from ...errors import ConfigError

PATCHES_ENV = "MEDGR2_PATCHES"


@dataclass(frozen=True)
class Patch:
    """One change; the module of its name makes it."""

    name: str
    library: str
    """The distribution whose classes or functions it changes."""
    versions: frozenset[str]
    """Those it was compared with, as `major.minor`: the tests beside it show equal results."""
    devices: frozenset[str] = frozenset({"cpu"})
    """Kinds of device (`torch.device.type`) on which it was measured to be worth it (docs/measurements.md)."""

    def applies(self, device: torch.device) -> bool:
        """Whether to make the change in a process whose models are on this device.

        Warns of a version that it was not compared with: the run is slower, and right.

        Raises:
            ConfigError: `MEDGR2_PATCHES` names a patch that does not exist.
        """
        if device.type not in self.devices or self.name not in switched_on():
            return False
        installed = metadata.version(self.library)
        if ".".join(installed.split(".")[:2]) in self.versions:
            return True
        warnings.warn(
            f"patch {self.name} is left out: {self.library} is {installed}, and it was compared with "
            f"{', '.join(sorted(self.versions))} only",
            stacklevel=2,
        )
        return False


QWEN_VL = Patch("qwen_vl", "transformers", frozenset({"5.23"}))
PIXEL_CACHE = Patch("pixel_cache", "transformers", frozenset({"5.23"}))
REPEATED_PROMPTS = Patch("repeated_prompts", "transformers", frozenset({"5.23"}))
TRL_HEAD = Patch("trl_head", "trl", frozenset({"1.16"}))
NAMES = frozenset(patch.name for patch in (QWEN_VL, PIXEL_CACHE, REPEATED_PROMPTS, TRL_HEAD))


def switched_on() -> frozenset[str]:
    """The patches that `MEDGR2_PATCHES` leaves in: all of them when it is not set.

    Raises:
        ConfigError: it names one that does not exist.
    """
    value = os.environ.get(PATCHES_ENV, "").strip()
    if not value:
        return NAMES
    enabled = frozenset() if value == "off" else frozenset(part.strip() for part in value.split(","))
    if unknown := sorted(enabled - NAMES):
        raise ConfigError(f"{PATCHES_ENV}: there is no patch {unknown[0]!r}; it is off, or some of {sorted(NAMES)}")
    return enabled


def replace(owner: Any, attribute: str, instead: Callable[..., Any]) -> None:
    """Puts `instead(original, *args, **kwargs)` where a library's function was; done once, however often it is called.

    Args:
        owner: class or module.
        attribute: the function's name; afterwards `medgr2_original` of it is the library's own.
        instead: what is called.
    """
    original = getattr(owner, attribute)
    if hasattr(original, "medgr2_original"):
        return

    @wraps(original)  # transformers asks for signatures
    def replaced(*args: Any, **kwargs: Any) -> Any:
        return instead(original, *args, **kwargs)

    vars(replaced)["medgr2_original"] = original
    setattr(owner, attribute, replaced)
