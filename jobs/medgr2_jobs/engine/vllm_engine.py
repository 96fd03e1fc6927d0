"""Which vLLM serves a checkpoint: a child of this process, or a server that is there already."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from ..errors import ConfigError, CorruptArtifact
from ..models.checkpoint import ADAPTER_FILE, Checkpoint
from .environment import Environment
from .token_client import Address, TokenClient
from .vllm_process import MODEL, VLLMProcess
from .vllm_sampler import Served, VLLMSampler

Meanwhile = Callable[[], None]
"""Called while something takes its time; may raise to stop."""


class VLLMServers(Protocol):
    """Where servers come from."""

    def serving(self, checkpoint: Checkpoint, lora_rank: int, meanwhile: Meanwhile) -> Served:
        """A server that answers for the checkpoint's base model, and its name there; it takes adapters of this rank."""
        ...

    def close(self) -> None:
        """Nothing of ours runs any more."""
        ...


class ServedEngine:
    """Asks checkpoints of one or several base models; a checkpoint's adapters are loaded while the server runs."""

    def __init__(self, servers: VLLMServers) -> None:
        self._servers = servers

    def sampler(self, checkpoint: Checkpoint) -> VLLMSampler:
        """That of a checkpoint; a server is started when it is first asked."""
        return VLLMSampler(checkpoint, lambda meanwhile: self._serve(checkpoint, meanwhile))

    def _serve(self, checkpoint: Checkpoint, meanwhile: Meanwhile) -> Served:
        served = self._servers.serving(checkpoint, _rank(checkpoint), meanwhile)
        if checkpoint.adapter is None:
            return served
        name = f"adapter-{_digest(checkpoint.adapter / ADAPTER_FILE)[:16]}"  # equal weights, equal name
        load_adapter(served.client, name, checkpoint.adapter)
        return Served(served.client, name)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._servers.close()


class ChildServers:
    """`vllm serve` as a child, one at a time: two would not fit on the GPUs of a stage."""

    def __init__(
        self,
        log: Path,
        arguments: Sequence[str] = (),
        threads: int = 1,
        made: Environment | None = None,
        gpus: str | None = None,
    ) -> None:
        self._log, self._arguments, self._threads, self._made = log, tuple(arguments), threads, made
        self._gpus = gpus
        self._running: VLLMProcess | None = None

    @property
    def running(self) -> VLLMProcess | None:
        """The one that was started last."""
        return self._running

    def serving(self, checkpoint: Checkpoint, lora_rank: int, meanwhile: Meanwhile) -> Served:
        """Another base model, or adapters of a higher rank, need another server."""
        running = self._running
        if running is not None and (running.model != checkpoint.base or running.lora_rank < lora_rank):
            self.close()
        if self._running is None:
            self._running = VLLMProcess(
                checkpoint.base,
                self._log,
                arguments=self._arguments,
                lora_rank=lora_rank,
                threads=self._threads,
                made=self._made,
                gpus=self._gpus,
            )
            self._running.wait(meanwhile)
        return Served(self._running.client, MODEL)

    def close(self) -> None:
        if self._running is not None:
            self._running.close()
        self._running = None


class UsersServer:
    """A server of the user's, which serves the policy's base model and reads adapters from the same volume."""

    def __init__(self, address: Address) -> None:
        self._client = TokenClient(address)

    def serving(self, checkpoint: Checkpoint, lora_rank: int, meanwhile: Meanwhile) -> Served:  # noqa: ARG002
        """The base model that it serves; it runs already, with the ranks that its owner gave it.

        Raises:
            ConfigError: the checkpoint is a whole model of its own, or the server serves none or several.
        """
        if checkpoint.stands_on is None:
            raise ConfigError(
                f"{checkpoint.base}: a whole model, which a running server cannot be given: train adapters "
                "(policy.sft.lora, policy.grpo.lora), or use policy.engine.vllm"
            )
        return self.base()

    def base(self) -> Served:
        """The model that it serves under no adapters.

        Raises:
            ConfigError: it serves none, or several.
        """
        bases = [str(model["id"]) for model in self._client.models() if not model.get("parent")]
        if len(bases) != 1:
            raise ConfigError(
                f"the vLLM at {self._client.address.root} serves {', '.join(bases) or 'no base model'}: it must serve "
                "policy.baseModel under one name"
            )
        return Served(self._client, bases[0])

    def close(self) -> None:
        """It is not ours. Its adapters stay: another shard may use them, and it forgets those that nobody asks."""


def load_adapter(client: TokenClient, name: str, folder: Path) -> None:
    """Gives a running server an adapter, unless it has it already.

    Raises:
        ConfigError: the server takes none while it runs, or not this one.
        TemporaryError: it does not answer.
    """
    if any(model.get("id") == name for model in client.models()):
        return
    try:
        client.post("/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(folder)})
    except ConfigError as error:
        if "already" in str(error):  # by another shard, since we looked
            return
        raise ConfigError(
            f"{error}. A server that is given adapters runs with --enable-lora, a large enough --max-lora-rank, "
            "VLLM_ALLOW_RUNTIME_LORA_UPDATING=True and the workspace at the same path"
        ) from None


def _rank(checkpoint: Checkpoint) -> int:
    if checkpoint.adapter is None:
        return 0
    path = checkpoint.adapter / "adapter_config.json"
    try:
        return int(json.loads(path.read_text())["r"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CorruptArtifact(f"{path}: says no rank of the adapters ({error})") from error


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
