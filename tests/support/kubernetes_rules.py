"""What Kubernetes demands of a manifest, as far as it can be said without an API server."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from kubernetes import client

LABEL_VALUE = re.compile(r"(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?")
DNS_LABEL = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_KINDS = {"Job": "V1Job", "Service": "V1Service", "PersistentVolumeClaim": "V1PersistentVolumeClaim"}


def containers(job: dict[str, Any]) -> list[dict[str, Any]]:
    """All containers of a Job's pods."""
    spec = job["spec"]["template"]["spec"]
    return [*spec.get("initContainers", []), *spec["containers"]]


def unknown_fields(manifest: dict[str, Any]) -> list[str]:
    """Fields that the API's schema does not have, and wrong shapes."""
    return list(_unknown(manifest, _KINDS[manifest["kind"]], manifest["kind"]))


def _unknown(value: Any, kind: str, path: str) -> Iterator[str]:
    if kind.startswith("List["):
        if not isinstance(value, list):
            yield f"{path}: not a list"
            return
        for index, item in enumerate(value):
            yield from _unknown(item, kind[5:-1], f"{path}[{index}]")
    elif kind.startswith("Dict["):
        if not isinstance(value, dict):
            yield f"{path}: not an object"
            return
        for key, item in value.items():
            yield from _unknown(item, kind[5:-1].split(", ", 1)[1], f"{path}.{key}")
    elif kind in ("str", "int", "bool", "float"):
        if type(value).__name__ != kind and "resources" not in path:  # a quantity may be a number
            yield f"{path}: {value!r} is no {kind}"
    elif kind not in ("object", "datetime"):
        model = getattr(client, kind)
        names = {wire: name for name, wire in model.attribute_map.items()}
        for key, item in value.items():
            if key not in names:
                yield f"{path}.{key}: unknown"
            else:
                yield from _unknown(item, model.openapi_types[names[key]], f"{path}.{key}")


def expand(text: str, variables: dict[str, str]) -> str:
    """What kubelet makes of a variable's value: `$$` is a dollar, `$(NAME)` a variable if there is one."""
    out, at = "", 0
    while at < len(text):
        if text[at] != "$" or at + 1 == len(text):
            out, at = out + text[at], at + 1
        elif text[at + 1] == "(" and (end := text.find(")", at + 2)) >= 0:
            name = text[at + 2 : end]
            out, at = out + variables.get(name, f"$({name})"), end + 1
        elif text[at + 1] == "$":
            out, at = out + "$", at + 2
        else:
            out, at = out + text[at : at + 2], at + 2
    return out


def restricted_violations(job: dict[str, Any]) -> list[str]:
    """Where a Job's pods break the Pod Security Standard `restricted`; beyond it, a root file system to write to."""
    spec = job["spec"]["template"]["spec"]
    pod = spec.get("securityContext", {})
    violations = [f"{name} is set" for name in ("hostNetwork", "hostPID", "hostIPC") if spec.get(name)]
    for volume in spec["volumes"]:
        kinds = set(volume) - {"name"}
        allowed = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected"}
        if not kinds <= allowed | {"secret"}:
            violations.append(f"volume {volume['name']}: {kinds}")
    for container in containers(job):
        own = container.get("securityContext", {})
        both = {**pod, **own}
        checks = {
            "privileged": not own.get("privileged"),
            "allowPrivilegeEscalation": own.get("allowPrivilegeEscalation") is False,
            "capabilities": own.get("capabilities") == {"drop": ["ALL"]},
            "runAsNonRoot": both.get("runAsNonRoot") is True,
            "runAsUser": both.get("runAsUser") != 0,
            "seccompProfile": both.get("seccompProfile", {}).get("type") in ("RuntimeDefault", "Localhost"),
            "hostPort": not any(port.get("hostPort") for port in container.get("ports", [])),
            "readOnlyRootFilesystem": own.get("readOnlyRootFilesystem") is True,
        }
        violations += [f"{container['name']}: {check}" for check, kept in checks.items() if not kept]
    return violations


def job_violations(job: dict[str, Any]) -> list[str]:
    """Rules of the API server about Jobs that its schema does not tell."""
    spec = job["spec"]
    pod = spec["template"]["spec"]
    indexed = spec["completionMode"] == "Indexed"
    names = [container["name"] for container in containers(job)]
    mounted = {mount["name"] for container in containers(job) for mount in container["volumeMounts"]}
    codes = [rule["onExitCodes"] for rule in spec["podFailurePolicy"]["rules"] if "onExitCodes" in rule]
    actions = {rule["action"] for rule in spec["podFailurePolicy"]["rules"]}
    checks = {
        "restartPolicy goes with podFailurePolicy": pod["restartPolicy"] == "Never",
        "podReplacementPolicy goes with podFailurePolicy": spec["podReplacementPolicy"] == "Failed",
        "container names are unique": len(set(names)) == len(names),
        "rules name a container": all(rule["containerName"] in names for rule in codes),
        "exit codes are in order": all(sorted(set(rule["values"])) == rule["values"] for rule in codes),
        "0 is no failure": not any(0 in rule["values"] for rule in codes if rule["operator"] == "In"),
        "FailIndex goes with backoffLimitPerIndex": "FailIndex" not in actions or "backoffLimitPerIndex" in spec,
        "backoffLimitPerIndex goes with Indexed": indexed or "backoffLimitPerIndex" not in spec,
        "maxFailedIndexes": spec.get("maxFailedIndexes", 0) <= spec["completions"],
        "a failure is final": spec.get("backoffLimit", 0) == 0 and spec.get("backoffLimitPerIndex", 0) == 0,
        "volumes are mounted, mounts have volumes": mounted == {volume["name"] for volume in pod["volumes"]},
        "names have room for indexes": len(f"{job['metadata']['name']}-{spec['completions'] - 1}-abcde") <= 63,
    }
    checks |= {
        f"{name}: unique variables": len({v["name"] for v in container["env"]}) == len(container["env"])
        for name, container in zip(names, containers(job), strict=True)
    }
    checks |= {
        f"label {label}": len(value) <= 63 and LABEL_VALUE.fullmatch(value) is not None
        for metadata in (job["metadata"], spec["template"]["metadata"])
        for label, value in metadata["labels"].items()
    }
    return [rule for rule, kept in checks.items() if not kept]
