"""What may leave the site: the one gate through which the bytes of an image reach a provider.

A question to a provider takes a `ClearedImage`, and only `EgressPolicy` makes one. Nothing else in this room opens a
picture (import-linter, `pyproject.toml`), and only this room connects to providers.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

from PIL import Image

from medgr2_api.data import Benchmark, ResolvedSource

from ..errors import ConfigError
from ..store.images import ImageStore
from .prepared_images import PreparedImages

#: Images kept in memory: questions about the same one follow each other.
_CACHED_IMAGES = 32
_DRAWN_SIDE = 224  # pixels
_GATE = object()


class ClearedImage:
    """An image that the provider of its session may see, with its PNG file's bytes."""

    __slots__ = ("png", "sha256")

    def __init__(self, sha256: str, png: bytes, gate: object) -> None:
        """
        Raises:
            TypeError: it is not the gate that makes it.
        """
        if gate is not _GATE:
            raise TypeError("an image for a provider comes from EgressPolicy.read, which knows whether it may leave")
        self.sha256 = sha256
        self.png = png


class EgressPolicy:
    """Data egress: an image is sent to a provider on site, or to any when every source that has it says yes.

    A source says yes in the table that stage prepare published and in the spec of now: the stricter of the two counts.
    A source that is not in the spec any more says no, and so does a benchmark. Where one that says no was not read,
    nobody knows which images it has, and none leaves.
    """

    def __init__(
        self, inputs: Sequence[ResolvedSource | Benchmark], images: PreparedImages, root: Path, *, external: bool
    ) -> None:
        """
        Args:
            inputs: sources and benchmarks of the spec of now.
            images: what there is, and where it comes from.
            root: the workspace; its image store has the bytes.
            external: who would see the images is outside the site.
        """
        self._read = lru_cache(maxsize=_CACHED_IMAGES)(ImageStore(root).read)
        self.external = external
        self._drawn: dict[str, bytes] = {}
        self.unread = images.unread(inputs) if self.external and images.rows else []
        self._allowed = frozenset[str]() if self.unread else _allowed(inputs, images)

    def allows(self, sha256: str) -> bool:
        """Whether the provider may see this image."""
        return not self.external or sha256 in self._allowed or sha256 in self._drawn

    def read(self, sha256: str) -> ClearedImage:
        """An image to be sent.

        Raises:
            ConfigError: it may not leave.
            CorruptArtifact: it is missing or damaged.
        """
        if not self.allows(sha256):
            raise ConfigError(
                f"image {sha256[:12]} may not leave the site, and the provider is external; it was not sent. "
                + self.remedy
            )
        return ClearedImage(sha256, self._drawn.get(sha256) or self._read(sha256), _GATE)

    @property
    def remedy(self) -> str:
        """What to do for images to be sent."""
        if self.unread:
            return (
                f"The images of {', '.join(self.unread)} may not leave, and stage prepare has not read them as the "
                "spec now says, so it is not known which of the others they are: run prepare again (`--restart-from "
                "prepare@0`)"
            )
        return (
            "Set allowExternal: true for a source in data.sources, or use a provider on site (generator.vllm, or "
            "generator.openAI with external: false)"
        )

    def draw(self) -> str:
        """Draws a picture of noise, which shows nobody: any provider may see it. Returns its sha256."""
        buffer = io.BytesIO()
        Image.effect_noise((_DRAWN_SIDE, _DRAWN_SIDE), 60).convert("RGB").save(buffer, "PNG")
        png = buffer.getvalue()
        sha256 = hashlib.sha256(png).hexdigest()
        self._drawn[sha256] = png
        return sha256


def allowed_images(egress: EgressPolicy, images: Mapping[str, str]) -> dict[str, str]:
    """The images (sha256 → modality) that the provider may see.

    Raises:
        ConfigError: there are images, and it may see none.
    """
    allowed = {sha256: modality for sha256, modality in images.items() if egress.allows(sha256)}
    if images and not allowed:
        raise ConfigError(
            f"none of the {len(images)} training images may leave the site, and the generator is external. "
            + egress.remedy
        )
    return allowed


def _allowed(inputs: Sequence[ResolvedSource | Benchmark], images: PreparedImages) -> frozenset[str]:
    """Images of which every source says yes, then and now. The same may stand in several rows: each has to say so."""
    names = {each.name for each in inputs if isinstance(each, ResolvedSource) and each.allow_external}
    allowed: dict[str, bool] = {}
    for row in images.rows:
        permitted = row.allow_external is True and images.origins[row.image_sha256] <= names
        allowed[row.image_sha256] = allowed.get(row.image_sha256, True) and permitted
    return frozenset(sha256 for sha256, permitted in allowed.items() if permitted)
