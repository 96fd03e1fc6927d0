"""What the JSON of a pod, or of an object with an owner, says."""

from __future__ import annotations

from datetime import datetime

from ..kube.client import Manifest
from ..render.pod import MAIN

_FINISHED = ("Succeeded", "Failed")


def owner_uid(manifest: Manifest) -> str:
    """Uid of the object that controls this one; empty: none does."""
    owners = manifest["metadata"].get("ownerReferences") or ()
    return next((str(owner["uid"]) for owner in owners if owner.get("controller")), "")


def has_ended(pod: Manifest) -> bool:
    """Whether nothing of it can write any more."""
    return pod.get("status", {}).get("phase") in _FINISHED


def main_state(pod: Manifest) -> Manifest:
    """State of the container that does the work; empty before it has one."""
    statuses = pod.get("status", {}).get("containerStatuses") or ()
    state: Manifest = next((status.get("state") or {} for status in statuses if status.get("name") == MAIN), {})
    return state


def started(pod: Manifest) -> datetime | None:
    """When its work began; None: it has not."""
    state = main_state(pod)
    return time_of((state.get("running") or state.get("terminated") or {}).get("startedAt"))


def ending(pod: Manifest) -> str:
    """The fact that somebody asked it to end, for `FirstSeen`; empty: nobody did."""
    return f"{_identity(pod)} ends" if "deletionTimestamp" in pod["metadata"] else ""


def outlived(pod: Manifest) -> str:
    """The fact that it goes on though its work has ended; empty: it does not."""
    return f"{_identity(pod)} outlived its work" if "terminated" in main_state(pod) and not has_ended(pod) else ""


def _identity(pod: Manifest) -> str:
    return str(pod["metadata"].get("uid") or pod["metadata"]["name"])


def time_of(text: str | None) -> datetime | None:
    """A time as the API server writes it."""
    return datetime.fromisoformat(text) if text else None
