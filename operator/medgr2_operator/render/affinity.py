"""On which nodes a pod may run."""

from __future__ import annotations

from typing import Any

from . import labels
from .render_context import Attempt


def placement(attempt: Attempt) -> dict[str, Any]:
    """The pod's nodeSelector, tolerations and affinity.

    What a stage says instead of the template is about the nodes of its work (GPUs); collecting needs none of them.
    """
    template = attempt.template
    selector, tolerations = template.node_selector, template.tolerations
    if not attempt.collects:
        selector = selector if attempt.stage.node_selector is None else attempt.stage.node_selector
        tolerations = tolerations if attempt.stage.tolerations is None else attempt.stage.tolerations
    affinity = _together(template.affinity, attempt) if attempt.single_node else template.affinity
    found = {"nodeSelector": selector, "tolerations": tolerations, "affinity": affinity}
    return {name: value for name, value in found.items() if value}


def _together(affinity: dict[str, Any], attempt: Attempt) -> dict[str, Any]:
    """The affinity, narrowed to the node where pods with the same volume run; to any node while there is none.

    The scheduler places one pod after the other, so stages that start at the same moment meet too; a node's name,
    read a moment before, could not do that.
    """
    pods = affinity.get("podAffinity") or {}
    required = "requiredDuringSchedulingIgnoredDuringExecution"
    term = {"labelSelector": {"matchLabels": labels.of_volume(attempt.cycle)}, "topologyKey": "kubernetes.io/hostname"}
    return {**affinity, "podAffinity": {**pods, required: [*(pods.get(required) or []), term]}}
