"""What the platform lets cycles ask for: who may create cycles in a namespace need not be able to run any pod there.

Looked at is the Job that comes out, whatever in the spec it comes from; so a switch holds for patches, too.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from medgr2_api.cycle import Cycle

#: Fields of a pod, or of a container, that reach out to its node; `None`: whatever stands there.
_HOST_FIELDS: dict[str, Any] = {
    "hostNetwork": True,
    "hostPID": True,
    "hostIPC": True,
    "hostPath": None,
    "hostPort": None,
    "privileged": True,
    "allowPrivilegeEscalation": True,
    "runAsNonRoot": False,
    "runAsUser": 0,
    "procMount": "Unmasked",
    "sysctls": None,
    "hostProcess": True,
    "seLinuxOptions": None,
}
#: Whose `host` the kubelet asks, from the node and past all NetworkPolicies.
_ASKED_BY_KUBELET = ("httpGet", "tcpSocket")
_PROFILES = ("seccompProfile", "appArmorProfile")
#: Where a reference to a Secret stands → the field with its name.
_SECRET_REFERENCES = {
    "imagePullSecrets": "name",
    "nodePublishSecretRef": "name",
    "secret": "secretName",
    "secretKeyRef": "name",
    "secretRef": "name",
}


@dataclass(frozen=True)
class CyclePolicy:
    """What cycles may ask for. By default everything, as who may create pods may; the operator's namespace apart."""

    allow_patches: bool = True
    """`template.patches`, `stages[].patches`."""
    allow_service_accounts: bool = True
    """`template.serviceAccountName`, or a token."""
    allow_host_access: bool = True
    """Paths, network and process ids of the node, privileges, root."""
    allowed_images: tuple[str, ...] = ()
    """Registries, repositories or images; empty: any. The operator's own are always allowed."""
    allowed_secrets: tuple[str, ...] = ()
    """Names of Secrets, with `*`; empty: any. A cycle can send a Secret's value to an address of its choice."""
    refused_namespace: str = ""
    """The operator's own, in which a pod could take its rights; empty: none is."""


def denials(
    cycle: Cycle, job: dict[str, Any], policy: CyclePolicy, own_images: tuple[str, ...]
) -> Iterator[tuple[str, str]]:
    """What the policy refuses of a cycle and one of its Jobs, each as where and what.

    Args:
        cycle: whose Job it is.
        job: as it would be created.
        policy: the platform's.
        own_images: the operator's defaults.
    """
    if policy.refused_namespace and cycle.metadata.namespace == policy.refused_namespace:
        yield "metadata.namespace", "the operator runs here, and cycles may not (cyclePolicy.allowOwnNamespace)"
    pod = job["spec"]["template"]["spec"]
    patched = [f"spec.stages[{stage.name}].patches" for stage in cycle.spec.stages if stage.patches]
    if not policy.allow_patches:
        for path in [*(["spec.template.patches"] if cycle.spec.template.patches else []), *patched]:
            yield path, "the platform allows no patches (cyclePolicy.allowPatches)"
    account = pod.get("serviceAccountName") or pod.get("serviceAccount")
    token = pod.get("automountServiceAccountToken") or _has(pod.get("volumes"), "serviceAccountToken")
    if not policy.allow_service_accounts and (account or token):
        yield (
            "spec.template.serviceAccountName",
            "the platform allows no ServiceAccounts and no tokens (cyclePolicy.allowServiceAccounts)",
        )
    if not policy.allow_host_access:
        for path in _host_access(pod, "pod"):
            yield path, "reaches the node, which the platform does not allow (cyclePolicy.allowHostAccess)"
    for image in _images(pod) if policy.allowed_images else ():
        if image not in own_images and not _allowed_image(image, policy.allowed_images):
            yield (
                f"image {image}",
                f"the platform allows {', '.join(policy.allowed_images)} (cyclePolicy.allowedImages)",
            )
    if policy.allowed_secrets:
        for name in dict.fromkeys(_secrets(pod)):
            if not any(fnmatchcase(name, pattern) for pattern in policy.allowed_secrets):
                allowed = ", ".join(policy.allowed_secrets)
                yield f"Secret {name}", f"the platform allows {allowed} (cyclePolicy.allowedSecrets)"


def _containers(pod: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for part in ("initContainers", "containers", "ephemeralContainers"):
        yield from pod.get(part) or ()


def _images(pod: dict[str, Any]) -> Iterator[str]:
    """Of containers, and of volumes that are images."""
    yield from (str(container.get("image", "")) for container in _containers(pod))
    volumes = [volume["image"] for volume in pod.get("volumes") or () if volume.get("image")]
    yield from (str(volume.get("reference", "")) for volume in volumes)


def _host_access(value: Any, path: str) -> Iterator[str]:
    """Where a pod reaches its node."""
    if isinstance(value, list):
        for index, item in enumerate(value):
            yield from _host_access(item, f"{path}[{index}]")
    elif isinstance(value, dict):
        for name, item in value.items():
            place = f"{path}.{name}"
            if name in _HOST_FIELDS and item is not None and _HOST_FIELDS[name] in (None, item):
                yield place
            elif name == "capabilities" and isinstance(item, dict) and item.get("add"):
                yield f"{place}.add"
            elif name in _ASKED_BY_KUBELET and isinstance(item, dict) and item.get("host"):
                yield f"{place}.host"
            elif name in _PROFILES and isinstance(item, dict) and item.get("type") == "Unconfined":
                yield place
            else:
                yield from _host_access(item, place)


def _has(value: Any, field: str) -> bool:
    """Whether a field stands anywhere in a value."""
    inner = value if isinstance(value, list) else value.values() if isinstance(value, dict) else ()
    return (isinstance(value, dict) and field in value) or any(_has(item, field) for item in inner)


def _secrets(value: Any) -> Iterator[str]:
    """Names of the Secrets that a pod refers to, also of those that a volume of whatever kind does."""
    if isinstance(value, list):
        for item in value:
            yield from _secrets(item)
    elif isinstance(value, dict):
        for name, item in value.items():
            for reference in item if isinstance(item, list) else [item]:
                if isinstance(reference, dict) and name in _SECRET_REFERENCES:
                    yield str(reference.get(_SECRET_REFERENCES[name]) or reference.get("name") or "")
            yield from _secrets(item)
        if isinstance(value.get("secretName"), str):  # of an AzureFile volume
            yield value["secretName"]


def _allowed_image(image: str, allowed: tuple[str, ...]) -> bool:
    """Whether an image is one of those, or below one of those: whole parts of its path count."""
    name = _full_name(image)
    for entry in allowed:
        wanted = entry.rstrip("/") if "/" not in entry.rstrip("/") else _full_name(entry.rstrip("/"))
        if name == wanted or name.startswith(tuple(f"{wanted}{mark}" for mark in "/:@")):
            return True
    return False


def _full_name(image: str) -> str:
    """With its registry, as container runtimes fill it in."""
    first, slash, _ = image.partition("/")
    if slash and ("." in first or ":" in first or first == "localhost"):
        return image
    return f"docker.io/{image}" if slash else f"docker.io/library/{image}"
