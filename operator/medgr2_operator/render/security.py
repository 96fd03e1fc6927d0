"""Security contexts that the Pod Security Standard `restricted` accepts."""

from __future__ import annotations

from typing import Any

from .render_context import Attempt


def of_pod(attempt: Attempt) -> dict[str, Any]:
    """Of an attempt's pod."""
    return with_users(attempt.settings.user_id, attempt.template.security_context)


def with_users(user: int, own: dict[str, Any]) -> dict[str, Any]:
    """The restricted defaults with the user's words over them; `null` takes one away (OpenShift picks users itself)."""
    defaults: dict[str, Any] = {
        "runAsNonRoot": True,
        "runAsUser": user,
        "runAsGroup": user,
        "fsGroup": user,
        "fsGroupChangePolicy": "OnRootMismatch",  # else every pod's start walks through all files of the volume
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    merged = {**defaults, **own}
    return {name: value for name, value in merged.items() if value is not None}


def of_container() -> dict[str, Any]:
    """No way to more rights, nothing to write to but the mounts."""
    return {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": True,
    }
