"""The prompts: one versioned template per paradigm, over one output schema."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache
from importlib import resources

from jinja2 import DictLoader, Environment, StrictUndefined, Template

from medgr2_api.generator import Paradigm

from .schema import OPTION_COUNT

_FILES = {
    Paradigm.DIRECT: "direct.jinja",
    Paradigm.STEP_BY_STEP: "step_by_step.jinja",
    Paradigm.META_COGNITIVE: "meta_cognitive.jinja",
}
_SHARED = "_output.jinja"


@dataclass(frozen=True)
class Prompt:
    """The template of a paradigm."""

    template: Template
    sha256: str
    """Over the template and what it includes: which text exactly was used, whatever its version says."""

    def render(self, *, modality: str, question_type: str) -> str:
        """The user turn that goes beside the image."""
        return self.template.render(modality=modality, question_type=question_type, option_count=OPTION_COUNT)


@cache
def load(paradigm: Paradigm) -> Prompt:
    """The template of a paradigm."""
    folder = resources.files(__package__) / "prompts"
    sources = {name: (folder / name).read_text(encoding="utf-8") for name in (_FILES[paradigm], _SHARED)}
    environment = Environment(loader=DictLoader(sources), undefined=StrictUndefined, autoescape=False)  # not HTML
    digest = hashlib.sha256("\0".join(sources.values()).encode()).hexdigest()
    return Prompt(environment.get_template(_FILES[paradigm]), digest)
