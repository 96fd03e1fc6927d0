"""The workspace's PersistentVolumeClaim, and the label of the pods that share it."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from medgr2_api.cycle import Cycle
from medgr2_api.data import WhenDeleted

from . import labels


def claim_name(cycle: Cycle) -> str:
    """The claim that the cycle's pods mount."""
    existing = cycle.spec.workspace.persistent_volume_claim
    return existing.claim_name if existing else f"{cycle.metadata.name}-workspace"


def volume_label(cycle: Cycle) -> dict[str, str]:
    """Label of a pod that shares a node with all others of its volume; a claim's name may be too long for a label."""
    return {labels.VOLUME: hashlib.sha256(claim_name(cycle).encode()).hexdigest()[:16]}


def claim(cycle: Cycle) -> dict[str, Any] | None:
    """The claim to make from volumeClaimTemplate; None where the user brings one.

    Of the template's metadata only labels and annotations count. A retained claim has no owner and no uid: a new cycle
    of the same name finds it again, as with a StatefulSet.
    """
    workspace = cycle.spec.workspace
    template = workspace.volume_claim_template
    if template is None:
        return None
    own_labels = labels.of_cycle(cycle, "workspace")
    metadata: dict[str, Any] = {"name": claim_name(cycle), "namespace": cycle.metadata.namespace}
    if workspace.retention.when_deleted is WhenDeleted.DELETE:
        metadata["ownerReferences"] = [labels.owner_reference(cycle)]
    else:
        del own_labels[labels.CYCLE_UID]
    template_metadata = template.get("metadata") or {}
    metadata["labels"] = {**(template_metadata.get("labels") or {}), **own_labels}
    if template_metadata.get("annotations"):
        metadata["annotations"] = template_metadata["annotations"]
    manifest: dict[str, Any] = json.loads(
        json.dumps(
            {
                "apiVersion": "v1",
                "kind": "PersistentVolumeClaim",
                "metadata": metadata,
                "spec": template.get("spec") or {},
            }
        )
    )
    return manifest
