"""Why an attempt cannot be rendered."""

from __future__ import annotations


class RenderError(ValueError):
    """The spec asks for a manifest that cannot be. Trying again cannot help; an edit of the spec can."""

    def __init__(self, path: str, message: str) -> None:
        super().__init__(f"{path}: {message}")
        self.path = path
        """Where in the cycle: `spec.template.patches[2]`."""
