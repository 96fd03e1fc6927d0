"""What every provider's client does: one question, one HTTP request, one reply. It knows no retries and no money."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Protocol

from medgr2_api import redaction
from medgr2_api.generator import Sampling
from medgr2_api.stages.generate import Provider

from ...store.rows.candidates import CandidateOutcome
from .. import candidate_schema
from ..egress_policy import ClearedImage
from ..pricing import TokenUsage
from ..provider_errors import Failure


@dataclass(frozen=True)
class Repair:
    """An earlier answer to the question, and what was wrong with it."""

    answer: str
    reason: str


@dataclass(frozen=True)
class ImageQuestion:
    """What is asked about one image."""

    prompt: str
    image: ClearedImage
    seed: int
    """Sampling seed, for servers that honour one."""
    repair: Repair | None = None

    def __post_init__(self) -> None:
        """
        Raises:
            TypeError: the image did not come through the gate.
        """
        if not isinstance(self.image, ClearedImage):
            raise TypeError("a provider is only sent what EgressPolicy.read has cleared")

    @property
    def image_png(self) -> bytes:
        """The PNG file."""
        return self.image.png

    @property
    def image_sha256(self) -> str:
        """Names the image by its content."""
        return self.image.sha256

    @property
    def text_bytes(self) -> int:
        """Bytes of all text that is sent, the schema included: a bound of its tokens."""
        repair = self.repair.answer + repair_text(self.repair) if self.repair else ""
        return len((self.prompt + repair).encode()) + _SCHEMA_BYTES


@dataclass(frozen=True)
class Reply:
    """What came back for one request."""

    outcome: CandidateOutcome = CandidateOutcome.OK
    """`ok` when there is a text to judge; otherwise refused, truncated or empty."""
    text: str = ""
    usage: TokenUsage | None = None
    """Tokens as counted; None: the provider does not tell."""
    error: str = ""
    """For refused: the provider's word."""
    failure: Failure | None = None
    """Instead of all this: no answer came."""


@dataclass(frozen=True)
class ProviderAccess:
    """How a provider is reached, and how it shall answer."""

    provider: Provider
    key: str | None
    sampling: Sampling

    def redact(self, text: str) -> str:
        """A text for logs and tables: short, and without the key in whatever form."""
        return redaction.redact(text)[:300]


class ProviderClient(Protocol):
    """A model behind an address."""

    repairs: bool
    """Whether an answer that does not fit the schema is sent back once."""

    async def ask(self, question: ImageQuestion) -> Reply:
        """Sends one request; whatever comes of it is a reply."""

    async def close(self) -> None:
        """Closes the connections."""


def repair_text(repair: Repair) -> str:
    """What a model is told about an answer of its own."""
    return f"This answer cannot be used. {repair.reason} Correct it: one JSON object as described, and nothing else."


_SCHEMA_BYTES = len(json.dumps(candidate_schema.response_format()).encode())
