"""Names and owners of the objects we make."""

from __future__ import annotations

from typing import Any

from medgr2_api.cycle import Cycle


def owner_reference(cycle: Cycle) -> dict[str, Any]:
    """Deleting the cycle deletes the object.

    Where the API server checks it (OpenShift), `blockOwnerDeletion` needs the right to update the cycle's finalizers.
    """
    return {
        "apiVersion": cycle.api_version,
        "kind": cycle.kind,
        "name": cycle.metadata.name,
        "uid": cycle.metadata.uid,
        "controller": True,
        "blockOwnerDeletion": False,
    }


def owned(cycle: Cycle, name: str, labels: dict[str, str]) -> dict[str, Any]:
    """Metadata of an object that goes with the cycle."""
    return {
        "name": name,
        "namespace": cycle.metadata.namespace,
        "labels": labels,
        "ownerReferences": [owner_reference(cycle)],
    }


def claim_name(cycle: Cycle) -> str:
    """The claim that the cycle's pods mount."""
    existing = cycle.spec.workspace.persistent_volume_claim
    return existing.claim_name if existing else f"{cycle.metadata.name}-workspace"
