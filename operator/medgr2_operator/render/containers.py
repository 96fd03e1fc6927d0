"""Resources and security contexts of the containers, as the Pod Security Standard `restricted` accepts them."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction
from typing import Any

from medgr2_api.kubernetes_fragments import is_extended, quantity


def pod_security_context(user: int, own: dict[str, Any]) -> dict[str, Any]:
    """A pod's context: restricted defaults under the user's `own`; null removes one (OpenShift picks users itself)."""
    defaults: dict[str, Any] = {
        "runAsNonRoot": True,
        "runAsUser": user,
        "runAsGroup": user,
        "fsGroup": user,
        "fsGroupChangePolicy": "OnRootMismatch",  # else every pod's start walks through all files of the volume
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    merged = {**defaults, **own}
    return {name: value for name, value in merged.items() if value is not None}


def security_context() -> dict[str, Any]:
    """A container's context: no privilege escalation, and only the mounts are writable."""
    return {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": True,
    }


def has_accelerators(resources: dict[str, Any]) -> bool:
    """Whether a container with these resources has devices: extended resources, or claims to devices."""
    names = {name for part in ("requests", "limits") for name in resources.get(part) or {}}
    return bool(resources.get("claims")) or any("/" in name for name in names)


def with_requests(resources: dict[str, Any], cpu: str, memory: str) -> dict[str, Any]:
    """The resources, with requests for what is not mentioned. Who asks for GPUs knows what goes with them."""
    if has_accelerators(resources):
        return resources
    limits = resources.get("limits") or {}
    # a limit without a request is a request of the same size
    defaults = {name: amount for name, amount in (("cpu", cpu), ("memory", memory)) if amount and name not in limits}
    requests = {**defaults, **(resources.get("requests") or {})}
    return {**resources, **({"requests": requests} if requests else {})}


def with_limits(resources: dict[str, Any], cpu: str, memory: str) -> dict[str, Any]:
    """The resources, with limits for what has none: a damaged file then ends its own stage, and a quota on limits takes
    the pod. Never below what is requested; who asks for GPUs knows what goes with them."""
    if has_accelerators(resources):
        return resources
    given, requests = resources.get("limits") or {}, resources.get("requests") or {}
    defaults = {name: amount for name, amount in (("cpu", cpu), ("memory", memory)) if amount and name not in given}
    limits = {name: max(amount, requests.get(name, 0), key=_size) for name, amount in defaults.items()}
    return {**resources, **({"limits": {**given, **limits}} if given or limits else {})}


def _size(amount: Any) -> Decimal:
    return quantity(amount) or Decimal(0)


def part(resources: dict[str, Any], share: Fraction) -> dict[str, Any]:
    """The share of a container's resources that one of two containers gets; whole devices stay whole."""
    return {
        kind: {name: _portion(name, amount, share) for name, amount in amounts.items()}
        for kind, amounts in resources.items()
        if kind in ("requests", "limits") and share
    }


def _portion(name: str, amount: Any, share: Fraction) -> Any:
    whole = Fraction(quantity(amount) or 0)
    if is_extended(name):
        return int(whole * share)
    if name != "cpu":
        return int(whole * share)
    cores, thousandths = divmod(int(whole * share * 1000), 1000)
    return f"{cores * 1000 + thousandths}m" if thousandths else cores


def threads(resources: dict[str, Any], processes: int) -> int:
    """CPU threads of each of the container's processes: whole CPUs of its limit, else of its request, shared out."""
    for part in ("limits", "requests"):
        cpus = quantity((resources.get(part) or {}).get("cpu"))
        if cpus is not None:
            return max(1, int(cpus) // processes)
    return 1
