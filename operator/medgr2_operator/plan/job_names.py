"""Names of Jobs: the same attempt always gets the same name, and no two attempts share one."""

from __future__ import annotations

import hashlib

from .types import AttemptKey

#: 63 for a pod's host name, less `-<index>` of an Indexed Job and the five random characters of a pod.
MAX_LENGTH = 52


def job_name(cycle: str, uid: str, key: AttemptKey) -> str:
    """`<cycle, shortened>-i002-grpo-a1-<8 hex>`: an RFC 1035 label of at most 52 characters."""
    identity = "/".join((uid, str(key.iteration), key.name, key.token, str(key.attempt)))
    digest = hashlib.sha256(identity.encode()).hexdigest()[:8]
    tail = f"-i{key.iteration:03d}-{key.name}-a{key.attempt}-{digest}"
    return cycle[: MAX_LENGTH - len(tail)].rstrip("-") + tail
