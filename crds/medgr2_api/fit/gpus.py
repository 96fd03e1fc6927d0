"""Kinds of GPU: memory, arithmetic and bandwidth, from their makers' data sheets."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

GIB = 2**30
#: A card of "80 GB" shows a driver about this many bytes for each of them (79.2 GiB of an H100).
_USABLE = 0.99 * GIB


@dataclass(frozen=True)
class GPU:
    """One kind."""

    name: str
    memory: float
    """Bytes that a process can use."""
    flops: float
    """Floating-point operations a second in bfloat16 matrix products, dense."""
    bandwidth: float
    """Bytes a second between the chip and its memory."""
    bfloat16: bool = True
    """Whether it computes in bfloat16 at that rate."""


#: Name → gigabytes, dense TFLOP/s in bfloat16, TB/s. NVIDIA's and AMD's data sheets of each product.
_KINDS: dict[str, tuple[float, float, float]] = {
    "B200": (180, 2250, 8.0),
    "H200": (141, 989, 4.8),
    "H100": (80, 989, 3.35),
    "H100 PCIe": (80, 756, 2.0),
    "H100 NVL": (94, 835, 3.9),
    "A100 80GB": (80, 312, 2.04),
    "A100 40GB": (40, 312, 1.56),
    "A100": (40, 312, 1.56),
    "L40S": (48, 362, 0.864),
    "L40": (48, 181, 0.864),
    "L20": (48, 120, 0.864),
    "L4": (24, 121, 0.30),
    "A40": (48, 150, 0.696),
    "A30": (24, 165, 0.933),
    "A10": (24, 125, 0.60),
    "A10G": (24, 70, 0.60),
    "RTX A6000": (48, 155, 0.768),
    "RTX 6000 Ada": (48, 364, 0.96),
    "RTX 5090": (32, 210, 1.79),
    "RTX 4090": (24, 165, 1.01),
    "RTX 3090": (24, 71, 0.936),
    "MI300X": (192, 1307, 5.3),
    "MI250": (64, 181, 1.6),
}
#: Without bfloat16 in their arithmetic.
_OLD: dict[str, tuple[float, float, float]] = {"V100": (32, 125, 0.90), "T4": (16, 65, 0.32)}

#: Labels of nodes that say which GPU they have: of NVIDIA's feature discovery, of Google's and of other clouds' nodes.
PRODUCT_LABELS = (
    "nvidia.com/gpu.product", "cloud.google.com/gke-accelerator", "gpu.nvidia.com/class", "nvidia.com/gpu.machine",
    "amd.com/gpu.product-name", "karpenter.k8s.aws/instance-gpu-name",
)  # fmt: skip
_MIG = re.compile(r"nvidia\.com/mig-([1-7])g\.([0-9]+)gb")
_GIGABYTES = re.compile(r"(\d+)\s*GI?B", re.IGNORECASE)
#: A kind that nobody has named.
ASSUMED = "H100"


def named(text: str) -> GPU | None:
    """The kind that a text names: `H100 80GB`, `NVIDIA-A100-SXM4-40GB`, `nvidia-l4`; None: not known.

    A number of gigabytes in the text replaces that of the table.
    """
    words = set(re.split(r"[^a-z0-9]+", text.lower()))
    kinds = {**_KINDS, **_OLD}
    fitting = [name for name in kinds if set(name.lower().split()) <= words]
    if not fitting:
        return None
    best = max(fitting, key=lambda name: (len(name.split()), len(name)))
    told = _GIGABYTES.search(text)
    gigabytes, tflops, terabytes = kinds[best]
    if told:
        gigabytes = float(told[1])
    label = best if best.endswith("GB") else f"{best} {gigabytes:.0f}GB"
    return GPU(label, gigabytes * _USABLE, tflops * 1e12, terabytes * 1e12, bfloat16=best not in _OLD)


def of_resources(resources: Mapping[str, object], labels: Mapping[str, str]) -> GPU | None:
    """The kind that a stage is given, by labels that its nodes must have and its slice; None: not told."""
    told = next((gpu for label in PRODUCT_LABELS if label in labels and (gpu := named(labels[label]))), None)
    limits = {**_mapping(resources.get("requests")), **_mapping(resources.get("limits"))}
    for name in limits:
        if found := _MIG.match(name):
            slices, gigabytes = int(found[1]), float(found[2])
            whole = told or named(ASSUMED)
            assert whole is not None
            return GPU(
                f"MIG {slices}g.{gigabytes:.0f}gb of {whole.name}",
                gigabytes * _USABLE,
                whole.flops * slices / 7,
                whole.bandwidth * gigabytes * _USABLE / whole.memory,
                whole.bfloat16,
            )
    return told


def _mapping(value: object) -> dict[str, object]:
    return dict(value) if isinstance(value, Mapping) else {}
