"""The policy that is being trained, behind a vLLM: its newest adapters are written where the server reads them, and
loaded under a name of their own, while the server runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ..errors import ConfigError
from ..store import atomic
from .vllm_engine import load_adapter
from .vllm_sampler import Served

#: Nats within which a log-probability is that of what is certain.
_CERTAIN = 1e-4

Write = Callable[[Path], None]
"""Writes the adapters into a folder that it makes."""


class ServedAdapters:
    """What one attempt of a training has on a server: one version of its adapters, the newest."""

    def __init__(self, base: Served, folder: Path, training: str, attempt: int) -> None:
        """
        Args:
            base: the model under the adapters, on its server.
            folder: where they are written; the server reads the same path.
            training: names the training among all that a server may work for.
            attempt: of the training.
        """
        self.base = base
        self._folder, self._prefix = folder.resolve(), f"{training}-"
        self._names = f"{self._prefix}{attempt}-"
        self._count = 0
        self._newest = ""

    def begin(self) -> None:
        """Takes away what attempts before this one have left, here and on the server."""
        atomic.remove_tree(self._folder)
        for model in self.base.client.models():
            if (name := str(model.get("id"))).startswith(self._prefix):
                self._unload(name)

    def exchange(self, write: Write) -> Served:
        """Has the server answer with these adapters; those before them are unloaded and removed.

        Raises:
            ConfigError: the server takes none while it runs, or not these.
            TemporaryError: it does not answer.
            DiskFull: no space left.
        """
        before, self._count = self._newest, self._count + 1
        name = f"{self._names}{self._count}"
        folder, half = self._folder / name, self._folder / f".{name}"
        with atomic.disk_errors(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
            write(half)
            half.rename(folder)  # a server never sees a part of them
        load_adapter(self.base.client, name, folder)
        self._newest = name
        if before:
            self._unload(before)
            atomic.remove_tree(self._folder / before)
        return Served(self.base.client, name)

    def end(self) -> None:
        """Nothing of this attempt is left."""
        if self._newest:
            self._unload(self._newest)
        atomic.remove_tree(self._folder)

    def _unload(self, name: str) -> None:
        try:
            self.base.client.post("/v1/unload_lora_adapter", {"lora_name": name})
        except ConfigError as error:
            if "not found" not in str(error).lower() and "cannot be found" not in str(error):
                raise


def check_logprobs(served: Served) -> None:
    """Whether the server tells the log-probabilities by which it draws: a token that nothing competes with has 0 then.

    Raises:
        ConfigError: it tells the model's own, before temperature and top-p.
    """
    body = {
        "model": served.model,
        "token_ids": [1],
        "sampling_params": {"temperature": 1.0, "top_k": 1, "max_tokens": 1, "logprobs": 0, "detokenize": False},
    }
    (answer,) = served.client.generate(1, lambda _: body)
    (token,) = answer["choices"][0]["logprobs"]["content"]
    if abs(float(token["logprob"])) > _CERTAIN:
        raise ConfigError(
            f"the vLLM at {served.client.address.root} tells the model's own log-probabilities, and not those by which "
            "it draws at another temperature or top-p than 1: start it with --logprobs-mode processed_logprobs, or "
            "leave temperature and top_p out of policy.grpo.trainer"
        )
