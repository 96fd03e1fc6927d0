"""Which images may be shown to the provider, and the one place where their bytes are read for it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache

from medgr2_api.stages.generate import Provider

from ..errors import ConfigError
from ..store.images import ImageStore
from .sampling_plan import ImageUse

#: Images kept in memory: questions about the same one follow each other.
_CACHED_IMAGES = 32


class EgressPolicy:
    """Data egress: an image is sent to a provider on site, or to any when every source of the image allows it."""

    def __init__(self, provider: Provider, images: Iterable[ImageUse], store: ImageStore) -> None:
        """
        Args:
            provider: who would see the images.
            images: of prepare's table.
            store: where the bytes lie.
        """
        self._read = lru_cache(maxsize=_CACHED_IMAGES)(store.read)
        self.external = provider.has_egress
        allowed: dict[str, bool] = {}
        for row in images:  # the same picture may come from two sources: one that says no is enough
            allowed[row.image_sha256] = allowed.get(row.image_sha256, True) and row.allow_external is True
        self._allowed = frozenset(sha256 for sha256, permitted in allowed.items() if permitted)

    def allows(self, sha256: str) -> bool:
        """Whether the provider may see this image."""
        return not self.external or sha256 in self._allowed

    def read(self, sha256: str) -> bytes:
        """The PNG file's bytes, to be sent.

        Raises:
            ConfigError: the image may not leave.
            CorruptArtifact: it is missing or damaged.
        """
        if not self.allows(sha256):
            raise ConfigError(
                f"image {sha256[:12]} may not leave the site, and the provider is external; it was not sent. "
                "Set allowExternal: true for its source in data.sources, or use a provider on site"
            )
        return self._read(sha256)


def allowed_images(egress: EgressPolicy, images: Mapping[str, str]) -> dict[str, str]:
    """The images (sha256 → modality) that the provider may see.

    Raises:
        ConfigError: there are images, and it may see none.
    """
    allowed = {sha256: modality for sha256, modality in images.items() if egress.allows(sha256)}
    if images and not allowed:
        raise ConfigError(
            f"none of the {len(images)} training images may leave the site, and the generator is external: set "
            "allowExternal: true for a source in data.sources, or use a provider on site (generator.vllm, or "
            "generator.openAI with external: false)"
        )
    return allowed
