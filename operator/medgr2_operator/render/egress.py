"""What an attempt's pods need the network for: a label, by which the chart's NetworkPolicies tell them apart."""

from __future__ import annotations

from enum import StrEnum

from medgr2_api.stages import definition

from .render_context import RenderContext

LABEL = "medgr2.io/egress"


class Egress(StrEnum):
    """Where pods connect to, beyond the name server and each other."""

    NONE = "none"
    """Nowhere."""
    SITE = "site"
    """A provider on site, which is shown images that may not leave it; a tracking server on site."""
    FETCH = "fetch"
    """Where data and models are fetched from. Nothing of the workspace is sent."""
    EXTERNAL = "external"
    """A provider outside, which is shown what may leave; a tracking server outside."""


def of(context: RenderContext) -> Egress:
    """What this attempt needs."""
    provider, tracking = context.provider, context.tracking
    if tracking.external:
        return Egress.EXTERNAL
    if provider is not None and provider.about.asked:
        if provider.has_egress:
            return Egress.EXTERNAL
        return Egress.FETCH if provider.about.beside_stage else Egress.SITE  # vLLM may fetch its model
    if context.engine is not None and context.engine.server is not None:
        return Egress.SITE  # it is shown every image: `unsupported` refuses one outside
    if any(tracking.servers):
        return Egress.SITE
    fetches = definition(context.create.key.name).fetches and not context.collects
    return Egress.FETCH if fetches else Egress.NONE
