"""The GPUs of this computer, shared out among the stages of a run: never two on one.

Asked without torch, whose import takes seconds: NVIDIA's tool, then the devices that the drivers have made.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

#: By which a process is told which GPUs it has. AMD's runtime reads it, too.
VISIBLE = "CUDA_VISIBLE_DEVICES"
LISTING = ("nvidia-smi", "-L")
_LISTING_SECONDS = 60
#: `GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-…)`; below it the parts that it is divided into, `MIG 3g.40gb Device 0: …`.
_LISTED = re.compile(r"^(?P<kind>GPU |\s+MIG ).*\(UUID: (?P<uuid>[-A-Za-z0-9/]+)\)\s*$")
_NVIDIA_DEVICE = re.compile(r"nvidia([0-9]+)")
_AMD_NODES = "class/kfd/kfd/topology/nodes"


class Gpus:
    """Devices and who has them; an owner is a process of a stage."""

    def __init__(self, devices: Sequence[str] = ()) -> None:
        """
        Args:
            devices: as VISIBLE names them.
        """
        self.devices = tuple(devices)
        self._owners: dict[str, tuple[str, ...]] = {}

    @property
    def free(self) -> list[str]:
        """Devices that nobody has."""
        taken = {device for devices in self._owners.values() for device in devices}
        return [device for device in self.devices if device not in taken]

    def take(self, owner: str, number: int) -> dict[str, str] | None:
        """Gives devices to an owner that has none.

        Returns:
            The variable that tells its process which; empty on a computer without any. None: so many are not free.
        """
        if not self.devices:
            return {}
        free = self.free
        if number > len(free):
            return None
        if number:
            self._owners[owner] = tuple(free[:number])
        return {VISIBLE: ",".join(free[:number])}

    def give_back(self, owner: str) -> None:
        """The owner has ended."""
        self._owners.pop(owner, None)


def here(
    variables: Mapping[str, str] = os.environ,
    listing: Sequence[str] = LISTING,
    dev: Path = Path("/dev"),
    sys: Path = Path("/sys"),
) -> list[str]:
    """GPUs of this computer that a run may use, as VISIBLE names them.

    Args:
        variables: the environment; where VISIBLE is set, those are all.
        listing: the command that lists NVIDIA's.
        dev: where drivers make their devices.
        sys: where the kernel tells of AMD's.
    """
    if VISIBLE in variables:
        names = [name.strip() for name in variables[VISIBLE].split(",")]
        end = next((number for number, name in enumerate(names) if name in ("", "-1")), len(names))
        return names[:end]  # as CUDA reads it: up to the first that is none
    return _listed(listing) or _devices(dev) or _amd(sys)


def _listed(listing: Sequence[str]) -> list[str]:
    """By UUID, because a tool and CUDA may number them differently; of a GPU that is divided, its parts."""
    try:
        answer = subprocess.run(listing, capture_output=True, text=True, timeout=_LISTING_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return []
    if answer.returncode:
        return []
    gpus: list[list[str]] = []
    for line in filter(None, map(_LISTED.match, answer.stdout.splitlines())):
        if line["kind"] == "GPU ":
            gpus.append([line["uuid"]])
        elif gpus:
            gpus[-1].append(line["uuid"])
    return [name for gpu in gpus for name in (gpu[1:] or gpu)]


def _devices(dev: Path) -> list[str]:
    """NVIDIA's, where its tool is not: a container may have the devices alone."""
    found = (_NVIDIA_DEVICE.fullmatch(path.name) for path in dev.glob("nvidia*"))
    return [str(number) for number, _ in enumerate(filter(None, found))]


def _amd(sys: Path) -> list[str]:
    """AMD's: nodes of its driver's topology with units that compute; processors are nodes, too."""
    properties = [path.read_text(errors="replace") for path in sys.glob(f"{_AMD_NODES}/*/properties")]
    gpus = [text for text in properties if re.search(r"^simd_count [1-9]", text, re.MULTILINE)]
    return [str(number) for number, _ in enumerate(gpus)]
