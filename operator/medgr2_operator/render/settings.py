"""What the operator is configured with, and the spec does not say."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class RenderSettings:
    """The operator's defaults for the objects it makes."""

    image: str
    """Image of the stages, where the cycle names none."""
    vllm_image: str = "vllm/vllm-openai:v0.31.0"
    """Image of the vLLM sidecar, where the cycle names none."""
    image_pull_policy: str = "IfNotPresent"
    """As in a container."""
    cpu_request: str = "1"
    """CPU of containers without GPUs whose stage says nothing about it."""
    memory_request: str = "2Gi"
    """Memory of containers without GPUs whose stage says nothing about it."""
    collect_cpu_request: str = "100m"
    """CPU of a pod that only reads a manifest."""
    collect_memory_request: str = "256Mi"
    """Memory of a pod that only reads a manifest."""
    user_id: int = 65532
    """User and group of the pods, where `template.securityContext` names none; the owner of new files."""
    progress_port: int = 8080
    """Where a stage serves `/progress` and `/metrics`."""
    vllm_startup_seconds: int = 3600
    """Longest time a vLLM sidecar may take to load its model, download included."""
