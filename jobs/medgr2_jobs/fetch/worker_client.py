"""The stage's side of a fetching process: starts it, shows its progress, stops it with the stage."""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from .. import errors
from ..errors import StageError, TemporaryError
from .pin_file import Kind
from .request import FetchRequest

if TYPE_CHECKING:  # a fetching process starts for each URI, and needs none of it
    from medgr2_api.data import Fetch
    from medgr2_api.stages.prepare import PrepareParameters
    from medgr2_api.uris import SecretKeyRef

    from ..runner.context import StageContext

    Context = StageContext[PrepareParameters]

_COMMAND = (sys.executable, "-m", "medgr2_jobs.fetch.worker")
_LOOK = 0.2  # seconds between two looks at the stop signal


def fetch(ctx: Context, uri: str, what: str, kind: Kind, *, guessed: bool = False) -> None:
    """Fetches one URI onto the volume.

    Raises:
        ConfigError, TemporaryError, DiskFull, CorruptArtifact: as the fetching process says.
        Checkpointed: the stage was asked to stop; what is there so far is kept.
    """
    request = _request(ctx, uri, what, kind, guessed)
    with subprocess.Popen(
        _COMMAND,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=_environment(ctx),
        start_new_session=True,  # Ctrl-C is the caller's to handle
    ) as process:
        try:
            assert process.stdin is not None
            with contextlib.suppress(BrokenPipeError):  # it ended already; that is told below
                process.stdin.write(request.model_dump_json().encode() + b"\n")
                process.stdin.close()
            last = _follow(ctx, process, f"fetch {uri}")
        finally:
            process.kill()
    if last.get("ok"):
        return
    if "error" not in last:
        raise TemporaryError(f"{request.label}: fetching ended without a result; see the lines above in this log")
    kind_of_error = getattr(errors, str(last["error"]), StageError)
    raise kind_of_error(str(last["message"]))


def _follow(ctx: Context, process: subprocess.Popen[bytes], phase: str) -> dict[str, Any]:
    """The last line the process said."""
    last: dict[str, Any] = {}
    for line in _lines(ctx, process):
        last = json.loads(line)
        if "total" in last:
            ctx.progress(phase, int(last["done"]), int(last["total"]))
    return last


def _lines(ctx: Context, process: subprocess.Popen[bytes]) -> Iterator[bytes]:
    assert process.stdout is not None
    buffer = b""
    while True:
        ctx.check_stop()
        if not select.select([process.stdout], [], [], _LOOK)[0]:
            continue
        data = os.read(process.stdout.fileno(), 65536)
        if not data:
            return
        *lines, buffer = (buffer + data).split(b"\n")
        yield from lines


def _request(ctx: Context, uri: str, what: str, kind: Kind, guessed: bool) -> FetchRequest:
    """Only the secrets that this URI needs are read."""
    reach: Fetch = ctx.parameters.data.fetch
    request = FetchRequest(parent=os.getpid(), root=str(ctx.root), uri=uri, kind=kind, what=what, guessed=guessed)
    if uri.startswith("hf://"):
        request.hub_endpoint = reach.hub_endpoint
        request.hub_token, request.hub_secret = _secret(ctx, reach.hub_token_secret_ref)
    elif uri.startswith("s3://"):
        request.s3_endpoint, request.s3_region = reach.s3.endpoint_url, reach.s3.region
        request.s3_access_key, request.s3_secret = _secret(ctx, reach.s3.access_key_id_secret_ref)
        request.s3_secret_key, other = _secret(ctx, reach.s3.secret_access_key_secret_ref)
        request.s3_secret += f" and {other}" if other else ""
    return request


def _secret(ctx: Context, reference: SecretKeyRef | None) -> tuple[str | None, str]:
    """Its value, and how messages call it."""
    if reference is None:
        return None, ""
    return ctx.secret(reference.name, reference.key), f"Secret {reference.name} (key {reference.key})"


def _environment(ctx: Context) -> dict[str, str]:
    """The hub's cache is on the volume, unless the user has one; nothing is asked that the order does not name."""
    return {
        **os.environ,
        "HF_HOME": os.environ.get("HF_HOME") or str(ctx.root.resolve() / "cache" / "huggingface"),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
