"""The workspace's PersistentVolumeClaim."""

from __future__ import annotations

import json
from typing import Any

from medgr2_api.cycle import Cycle
from medgr2_api.data import WhenDeleted

from . import labels
from .metadata import claim_name as claim_name
from .metadata import owner_reference


def claim(cycle: Cycle) -> dict[str, Any] | None:
    """The claim to make from volumeClaimTemplate; None where the user brings one.

    Of the template's metadata only labels and annotations count. A retained claim has no owner and no uid: a new cycle
    of the same name finds it again, as with a StatefulSet.
    """
    workspace = cycle.spec.workspace
    template = workspace.volume_claim_template
    if template is None:
        return None
    ours = labels.of_cycle(cycle, "workspace")
    metadata: dict[str, Any] = {"name": claim_name(cycle), "namespace": cycle.metadata.namespace}
    if workspace.retention.when_deleted is WhenDeleted.DELETE:
        metadata["ownerReferences"] = [owner_reference(cycle)]
    else:
        del ours[labels.CYCLE_UID]
    given = template.get("metadata") or {}
    metadata["labels"] = {**(given.get("labels") or {}), **ours}
    if given.get("annotations"):
        metadata["annotations"] = given["annotations"]
    made: dict[str, Any] = json.loads(
        json.dumps(
            {
                "apiVersion": "v1",
                "kind": "PersistentVolumeClaim",
                "metadata": metadata,
                "spec": template.get("spec") or {},
            }
        )
    )
    return made
