"""Several processes of one training: how they find each other."""

from __future__ import annotations

import hashlib
from typing import Any

from medgr2_api.cycle import Cycle
from medgr2_api.stage_contract import NUM_NODES_ENV, NUM_PROC_PER_NODE_ENV, RDZV_ENDPOINT_ENV, RDZV_ID_ENV

from . import labels
from .render_context import RenderContext

PORT = 29500

_MAX_LENGTH = 63


def service_name(cycle: Cycle, stage: str) -> str:
    """`<cycle, shortened>-<stage>-<8 hex>`: an RFC 1035 label, different for each cycle that ever was."""
    digest = hashlib.sha256(f"{cycle.metadata.uid}/{stage}".encode()).hexdigest()[:8]
    tail = f"-{stage}-{digest}"
    return cycle.metadata.name[: _MAX_LENGTH - len(tail)].rstrip("-") + tail


def service(context: RenderContext) -> dict[str, Any]:
    """The headless Service that gives the pods names.

    One per stage of a cycle, for all its iterations and attempts (the pods' names tell them apart): a Service for each
    attempt would be one more thing to delete, and many would pile up over fifty restarts.
    """
    cycle, stage = context.cycle, context.create.key.name
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": labels.owned(
            cycle, service_name(cycle, stage), {**labels.of_cycle(cycle, "rendezvous"), labels.STAGE: str(stage)}
        ),
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": True,  # they look for each other before anything is ready
            "selector": {labels.CYCLE_UID: cycle.metadata.uid, labels.STAGE: str(stage)},
            "ports": [{"name": "rendezvous", "port": PORT}],
        },
    }


def subdomain(context: RenderContext) -> dict[str, str]:
    """The pods' place in DNS; the Job controller sets their host names to `<job>-<index>`."""
    return {"subdomain": service_name(context.cycle, context.create.key.name)} if context.nodes > 1 else {}


def environment(context: RenderContext) -> dict[str, str]:
    """What `torchrun` is told; empty for a stage of one process. A pod's node rank is its JOB_COMPLETION_INDEX."""
    if context.nodes == context.processes == 1:
        return {}
    host = "127.0.0.1"  # alone, also beside other shards: nobody else takes part
    if context.nodes > 1:
        namespace = context.cycle.metadata.namespace
        host = f"{context.create.name}-0.{service_name(context.cycle, context.create.key.name)}.{namespace}.svc"
    return {
        NUM_NODES_ENV: str(context.nodes),
        NUM_PROC_PER_NODE_ENV: str(context.processes),
        RDZV_ENDPOINT_ENV: f"{host}:{PORT}",
        RDZV_ID_ENV: context.create.name,  # a pod of an earlier attempt cannot join
    }
