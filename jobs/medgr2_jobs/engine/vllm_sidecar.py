"""The vLLM beside a stage's container, which the operator renders (`render/vllm_sidecar.py`).

They share a folder in memory: the sidecar's key lies there, the stage writes `wanted` (name, highest rank of adapters
and folder of the model, a line each; empty: nothing), the sidecar starts that server in place of the one before, and
leaves `ended` (name and exit code) when it ends by itself.
"""

from __future__ import annotations

import hashlib
import time
from pathlib import Path

from medgr2_api.stage_contract import VLLM_ENDED, VLLM_KEY, VLLM_WANTED

from ..errors import TemporaryError
from ..models.checkpoint import Checkpoint
from ..runner import mounted_secrets
from ..store import atomic
from .token_client import Address, TokenClient
from .vllm_engine import Meanwhile
from .vllm_process import served_rank
from .vllm_sampler import Served

#: Seconds until it answers; as for one that is a child.
_START = 3600
_POLL = 0.5


class SidecarServers:
    """One server at a time, in the container beside this one."""

    def __init__(self, root: str, folder: Path) -> None:
        """
        Args:
            root: where it answers, such as `http://127.0.0.1:8000`.
            folder: what both containers share.
        """
        self._root, self._folder = root, folder
        self._running: tuple[Path, int, Served] | None = None

    def serving(self, checkpoint: Checkpoint, lora_rank: int, meanwhile: Meanwhile) -> Served:
        """Another base model, or adapters of a higher rank, need another server.

        Raises:
            TemporaryError: it ended, or does not answer in time.
        """
        if self._running is None or self._running[0] != checkpoint.base or self._running[1] < lora_rank:
            self._running = checkpoint.base, lora_rank, self._started(checkpoint.base, lora_rank, meanwhile)
        return self._running[2]

    def close(self) -> None:
        """Its GPUs are free for others, as far as the pod lets them be."""
        self._running = None
        atomic.write_text(self._folder / VLLM_WANTED, "")

    def _started(self, base: Path, rank: int, meanwhile: Meanwhile) -> Served:
        served = served_rank(rank) if rank else 0
        # of this start: the server before it, of another name, may still answer for a moment
        name = hashlib.sha256(f"{base}\n{served}\n{time.time_ns()}".encode()).hexdigest()[:16]
        atomic.write_text(self._folder / VLLM_WANTED, f"{name}\n{served}\n{base}\n")
        deadline, key = time.monotonic() + _START, self._folder / VLLM_KEY
        while time.monotonic() < deadline:
            meanwhile()
            if ended := self._ended(name):
                raise TemporaryError(f"the vLLM beside this stage could not be started: {ended}")
            if key.is_file() and key.stat().st_size:
                address = Address(self._root, mounted_secrets.read_file(key, "the key of the vLLM beside this stage"))
                client = TokenClient(address, lambda: self._ended(name))
                if client.healthy() and any(model.get("id") == name for model in client.models()):
                    return Served(client, name)
            time.sleep(_POLL)
        raise TemporaryError(f"the vLLM beside this stage does not answer within {_START} s; see its container's log")

    def _ended(self, name: str) -> str:
        """How the server of that name ended; empty: it has not."""
        try:
            of, code = (self._folder / VLLM_ENDED).read_text().split()
        except (FileNotFoundError, ValueError):
            return ""
        return f"it ended with exit code {code}; the log of container vllm says why" if of == name else ""
