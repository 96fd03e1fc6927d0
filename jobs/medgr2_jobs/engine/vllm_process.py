"""`vllm serve` as a child of a stage, from vLLM's own environment: it starts, answers and ends with the stage."""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from medgr2_api import redaction
from medgr2_api.vllm_options import PARALLELISM

from ..errors import TemporaryError
from ..runner.background_process import die_with_parent
from . import environment
from .environment import Build, Environment
from .token_client import Address, TokenClient

#: Name of the base model on a server of ours.
MODEL = "base"
#: What `vllm serve` takes for `--max-lora-rank`.
_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
#: Seconds until it answers; a large model on a slow disk takes many minutes.
_START = 3600
_POLL = 0.5
#: Seconds between SIGTERM and SIGKILL.
_PATIENCE = 20
_LOG_LINES = 12
#: Of this process's environment what says how Python runs here; vLLM has a Python of its own.
_NOT_ITS = ("PYTHONPATH", "PYTHONHOME", "PYTHONDONTWRITEBYTECODE", "VIRTUAL_ENV")
#: And what torchrun tells a process of a training: vLLM has processes of its own.
_TORCHRUN = re.compile(r"(LOCAL_|GROUP_|ROLE_)?(RANK|WORLD_SIZE)|ROLE_NAME|MASTER_(ADDR|PORT)|TORCHELASTIC_.*")
#: Options by which the user says how long a prompt with its answer may be, and in which precision the model runs.
_LENGTH, _PRECISION = "--max-model-len", "--dtype"


class VLLMProcess:
    """A running `vllm serve` of one base model."""

    def __init__(
        self,
        model: Path,
        log: Path,
        *,
        arguments: Sequence[str] = (),
        lora_rank: int = 0,
        threads: int = 1,
        made: Environment | None = None,
        gpus: str | None = None,
    ) -> None:
        """Starts it; `wait` says when it answers.

        Args:
            model: folder of a whole model.
            log: where its output goes.
            arguments: further ones of `vllm serve`, the user's.
            lora_rank: highest rank of adapters that it will be given; 0: none will be.
            threads: CPU threads, where there is no GPU.
            made: the environment; None: that of this computer.
            gpus: those that it has, as CUDA_VISIBLE_DEVICES names them; None: those of this process.

        Raises:
            ConfigError: there is no vLLM for this computer.
            TemporaryError: its environment could not be made.
        """
        self.model, self.lora_rank, self._log = model, lora_rank, log
        chosen = made or environment.here()
        environment.ensure(chosen)
        self._gpus = gpus
        port, key = _free_port(), secrets.token_urlsafe(32)
        self.client = TokenClient(Address(f"http://127.0.0.1:{port}", key), self._ended)
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as stream:
            self._process = subprocess.Popen(
                # not bin/vllm: its first line names an interpreter, and a long path is none
                [str(chosen.python), "-m", "vllm.entrypoints.cli.main", *self._command(chosen, port, arguments)],
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                env=self._environment(chosen, key, threads),
                start_new_session=True,  # its own processes can be ended with it
                preexec_fn=lambda: die_with_parent(signal.SIGTERM),  # as a whole, also after a `kill -9` of the stage
            )

    @property
    def pid(self) -> int:
        """Of its first process, which leads a process group."""
        return self._process.pid

    def wait(self, meanwhile: Callable[[], None] = lambda: None) -> None:
        """Returns when it answers.

        Args:
            meanwhile: called twice a second; may raise to stop.

        Raises:
            TemporaryError: it ended, or it takes too long; the end of its log is in the message.
        """
        deadline = time.monotonic() + _START
        while not self.client.healthy():
            meanwhile()
            if ended := self._ended():
                raise TemporaryError(f"vLLM could not be started: {ended}")
            if time.monotonic() > deadline:
                raise TemporaryError(f"vLLM does not answer within {_START} s; its log is {self._log}")
            time.sleep(_POLL)

    def close(self) -> None:
        """Ends it, with every process of its own."""
        if self._process.poll() is None:
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_PATIENCE)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def _ended(self) -> str:
        code = self._process.poll()
        if code is None:
            return ""
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        lines = self._log.read_text(errors="replace").splitlines()
        # the error comes first, then how each process was taken down by it
        errors = [line for line in lines if "Error" in line] or lines
        tail = redaction.redact("\n  ".join(errors[-_LOG_LINES:]))
        return f"it ended with {how}; its log {self._log} ends with\n  {tail}"

    def _command(self, chosen: Environment, port: int, arguments: Sequence[str]) -> list[str]:
        given = {argument.split("=")[0].replace("_", "-") for argument in arguments}
        precision = "bfloat16" if chosen.build is Build.CUDA else "float32"  # as `vlm.load_model`
        return [
            "serve",
            str(self.model),
            *("--served-model-name", MODEL),
            *("--host", "127.0.0.1", "--port", str(port)),
            *("--allowed-media-domains", "nowhere.invalid"),  # it fetches no address
            *("--limit-mm-per-prompt", json.dumps({"image": 1, "video": 0})),
            "--enable-scale-out",  # tokens in, tokens out
            *("--generation-config", "vllm"),  # each request says all of its own
            *([] if _PRECISION in given else [_PRECISION, precision]),
            *([] if _LENGTH in given or chosen.build is Build.CPU else [_LENGTH, "auto"]),
            *([] if chosen.build is Build.CUDA else ["--enforce-eager"]),
            *(["--enable-lora", "--max-lora-rank", str(served_rank(self.lora_rank))] if self.lora_rank else []),
            *self._parallelism(given),
            *arguments,
        ]

    def _parallelism(self, given: set[str]) -> list[str]:
        """One model over all GPUs that are its own, unless the user shares them out."""
        number = len(self._gpus.split(",")) if self._gpus else 1
        return [] if number == 1 or given & set(PARALLELISM) else [PARALLELISM[0], str(number)]

    def _environment(self, chosen: Environment, key: str, threads: int) -> dict[str, str]:
        kept = {
            name: value for name, value in os.environ.items() if name not in _NOT_ITS and not _TORCHRUN.fullmatch(name)
        }
        # of its own, below the cache folder: what it compiles is kept, and belongs to its version
        own = {"VLLM_CACHE_ROOT": chosen.folder / "cache", "VLLM_CONFIG_ROOT": chosen.folder / "config"}
        cpu = {
            "VLLM_CPU_KVCACHE_SPACE": os.environ.get("VLLM_CPU_KVCACHE_SPACE", "1"),
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "OMP_NUM_THREADS": str(threads),
            "TORCHDYNAMO_DISABLE": "1",  # the first request would wait for a C++ compiler, minutes on a busy computer
        }
        return {
            **kept,
            **({} if self._gpus is None else {"CUDA_VISIBLE_DEVICES": self._gpus}),
            **{name: str(folder) for name, folder in own.items()},
            **(cpu if chosen.build is Build.CPU else {}),
            "VLLM_API_KEY": key,  # not on the command line, which everybody on the computer can read
            "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True",
            "VLLM_NO_USAGE_STATS": "1",
            "DO_NOT_TRACK": "1",
            "HF_HUB_OFFLINE": "1",
        }


def served_rank(rank: int) -> int:
    """The least that a server takes and that suffices."""
    return next((one for one in _RANKS if one >= rank), _RANKS[-1])


def _free_port() -> int:
    """One that nobody listens on now; who takes it in between makes the server end, and the next attempt begins."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
