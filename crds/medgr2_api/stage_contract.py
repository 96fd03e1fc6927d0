"""What a stage is asked (`StageRequest`), what it answers (`StageResult`), and what its exit code means."""

from __future__ import annotations

from enum import IntEnum
from typing import Annotated, Any

from pydantic import Field

from . import redaction
from .model import Model
from .tracking import Tracking
from .types import Figures, FiniteOrNone

#: The termination message of a pod holds 4 KiB for all containers; ours stays at half of it.
RESULT_MAX_BYTES = 2048

# The environment of a stage's process: the operator and `medgr2 run` set it, the jobs read it.
REQUEST_ENV = "MEDGR2_STAGE_REQUEST"
"""The `StageRequest`, as JSON."""
RESULT_PATH_ENV = "MEDGR2_RESULT_PATH"
"""Where to leave the `StageResult`."""
WORKSPACE_ENV = "MEDGR2_WORKSPACE"
"""The folder that all stages share."""
SECRETS_ENV = "MEDGR2_SECRETS_DIR"
"""Secrets, as `<name>/<key>` below it."""
PROGRESS_PORT_ENV = "MEDGR2_PROGRESS_PORT"
"""Port of `/progress` and `/metrics`; not set: none."""
VLLM_BASE_URL_ENV = "MEDGR2_VLLM_BASE_URL"
VLLM_API_KEY_FILE_ENV = "MEDGR2_VLLM_API_KEY_FILE"
"""Where the vLLM beside the stage answers."""
VLLM_CONTROL_ENV = "MEDGR2_VLLM_CONTROL_DIR"
"""Folder by which a stage tells the vLLM beside it what to serve; not set: that serves what it always serves."""
VLLM_GPUS_ENV = "MEDGR2_VLLM_GPUS"
"""GPUs of the vLLM that a stage starts, as CUDA_VISIBLE_DEVICES names them; unset: those of the stage."""
VLLM_NO_GPUS = "none"
"""In its place: the stage needs them all itself, and starts no vLLM."""
VLLM_KEY = "vllm-api-key"
"""In that folder: what the server asks for."""
VLLM_WANTED = "wanted"
"""In that folder: name, highest rank of adapters and folder of the model, a line each; empty: serve nothing."""
VLLM_ENDED = "ended"
"""In that folder: name and exit code of a server that ended by itself."""
NUM_NODES_ENV = "MEDGR2_NUM_NODES"
"""Number of pods (nodes) that one distributed training runs on."""
NUM_PROC_PER_NODE_ENV = "MEDGR2_NUM_PROC_PER_NODE"
"""Processes in each of them."""
RDZV_ENDPOINT_ENV = "MEDGR2_RDZV_ENDPOINT"
"""`host:port` of the pod with index 0, where they find each other."""
RDZV_ID_ENV = "MEDGR2_RDZV_ID"
"""Name of the attempt: processes of another one cannot join."""
RDZV_TIMEOUT_ENV = "MEDGR2_RDZV_TIMEOUT"
"""Seconds to wait for the other pods; not set: 600."""
DEEPSPEED_ENV = "MEDGR2_DEEPSPEED"
"""Zero2 or Zero3; not set: plain data parallelism."""
INDEX_ENV = "JOB_COMPLETION_INDEX"
"""Set by the Job controller in every pod of an Indexed Job: the shard, or torchrun's node rank."""


class ExitCode(IntEnum):
    """The exit codes of a stage and of the command line (sysexits.h where it has one)."""

    OK = 0
    ERROR = 1
    """Unexpected failure: an application error, retried."""
    USAGE = 2
    """Bad command line or configuration."""
    USAGE_SYSEXITS = 64
    DATA_ERROR = 65
    """Bad input data: the message names file, row and field. Not retried."""
    TEMPORARY = 75
    """A failure that may pass (disk full, provider down): an application error, retried with backoff."""
    CONFIG = 78
    """A configuration the stage refuses. Not retried."""
    CHECKPOINTED = 85
    """Asked to stop; a checkpoint is on the volume and the next attempt goes on from it."""
    SIGTERM = 143
    """Ended from outside: by SIGTERM before a checkpoint could be written, or because another process of the same
    training ended or never came."""


PERMANENT_EXIT_CODES = frozenset({ExitCode.USAGE, ExitCode.USAGE_SYSEXITS, ExitCode.DATA_ERROR, ExitCode.CONFIG})


#: `StageResult.reason` of a generate stage that has to stop because the next question might pass the budget.
BUDGET_SPENT = "BudgetSpent"


Count = Annotated[int, Field(ge=0, le=2**53)]
"""A number of units: no more than a float tells apart, whatever a pod answers."""


class Progress(Model):
    """What a running stage says of itself; written to the progress file and served on `/progress`."""

    phase: str = ""
    """What the stage is doing, in a word or two."""
    step: Count = 0
    """Number of units of work that are done."""
    total: Count = 0
    """Number of units of work in all; 0 when it is not known."""
    eta_seconds: FiniteOrNone = None
    """Estimated number of seconds until the stage ends."""
    metrics: Figures = Field(default_factory=dict)
    """The latest figures, such as loss or reward."""


class ArtifactRef(Model):
    """A published artifact that a stage reads."""

    stage: str
    """Stage that published it."""
    iteration: int
    """Iteration that it belongs to."""
    path: str
    """Folder relative to the workspace: `artifacts/<stage>/<inputHash>`."""
    output_digest: str
    """What the reader must find in the manifest there."""


class CycleRef(Model):
    """Which cycle an attempt works for."""

    name: str
    """The cycle's metadata.name."""
    namespace: str = "default"
    """The cycle's namespace."""
    uid: str
    """The cycle's uid; locally one that the workspace keeps."""


class Shard(Model):
    """Which part of a sharded stage this process does."""

    index: int = 0
    """Number of this part, from 0."""
    count: int = 1
    """Number of parts in all."""

    def part_of(self, number: int) -> range:
        """Of so many pieces of work those of this part: a contiguous run, about an equal share."""
        return range(number * self.index // self.count, number * (self.index + 1) // self.count)


class StageRequest(Model):
    """Everything a stage is told; JSON in the environment variable `MEDGR2_STAGE_REQUEST`."""

    cycle: CycleRef
    """The cycle that the stage works for."""
    iteration: Annotated[int, Field(ge=0)]
    """Iteration; 0 for what runs once before the loop."""
    stage: str
    """What to do."""
    token: str = ""
    """The restartFrom token that this attempt belongs to; empty at first."""
    attempt: Annotated[int, Field(ge=1)] = 1
    """Number of this attempt, from 1."""
    input_hash: str
    """Where to publish: `artifacts/<stage>/<inputHash>`."""
    parameters: dict[str, Any]
    """The stage's resolved parameters (`stages`), as JSON."""
    inputs: dict[str, ArtifactRef] = Field(default_factory=dict)
    """Artifacts to read, by role: `prepare`, `candidates`, `reward`, `policy`, `evaluate-0` and so on."""
    shard: Shard = Shard()
    """The part of the stage that this process does."""
    generator_budget_usd: Annotated[float | None, Field(alias="generatorBudgetUSD")] = None
    """What the whole cycle may spend at the provider; null: no limit. What was spent is read from the ledgers on the
    volume (`workspace.spend`), which survive what a status does not learn of; a shard keeps to its share."""
    grace_seconds: float = 300
    """Seconds between SIGTERM and SIGKILL."""
    checkpoint_seconds: float = 900
    """A training writes a checkpoint when the last one is this old."""
    stall_seconds: float = 1800
    """A training in which no step ends for so long is given up (exit code 75)."""
    tracking: Tracking | None = None
    """Who follows the training; null: nobody."""
    collect: bool = False
    """Only read the manifest of an earlier success and report it: its pod was gone before its result was read."""
    threads: int = 1
    """CPU threads the stage may use."""


class StageResult(Model):
    """What a stage leaves behind, at most 2 KiB: the termination message of its container."""

    exit_code: int
    """One of `ExitCode`."""
    reason: str = ""
    """One CamelCase word: why it ended so."""
    message: str = ""
    """For people: what happened, where, and what to do; of a success what the stage decided, and why."""
    input_hash: str = ""
    """The request's, so that a stale result is not taken for a new one."""
    output_digest: str = ""
    """Digest of the published artifact; empty unless it succeeded."""
    reused: bool = False
    """A valid manifest was already there; nothing was run."""
    promoted: bool | None = None
    """A stage whose model has to be promoted: false keeps the model before it."""
    checkpoint_step: int = -1
    """Last step that is safe on the volume; -1: none. An attempt that moved it made progress."""
    metrics: Figures = Field(default_factory=dict)
    """A few headline figures."""
    usage: Figures = Field(default_factory=dict)
    """Money, time and memory: `wallSeconds`, `cpuSeconds`, `gpuSeconds`, `peakMemoryBytes` and `peakGPUMemoryBytes` of
    this attempt (of the process that published; of shards the largest peak); `generatorUSD` of all attempts at this
    artifact so far."""

    def to_termination_message(self) -> str:
        """The JSON text, cut (message first, then metrics, then usage) until it fits `RESULT_MAX_BYTES`."""
        result = self.model_copy(
            update={
                "reason": _printable(self.reason, 64),
                "message": _printable(self.message, 1024),
                "input_hash": _printable(self.input_hash, 128),
                "output_digest": _printable(self.output_digest, 128),
            }
        )
        text = result.model_dump_json(by_alias=True, exclude_none=True)
        while len(text.encode()) > RESULT_MAX_BYTES:
            if len(result.message) > 64:
                result.message = result.message[: len(result.message) // 2]
            elif result.metrics:
                result.metrics = dict(list(result.metrics.items())[: len(result.metrics) // 2])
            elif result.message:
                result.message = ""
            else:
                result.usage = {}
            text = result.model_dump_json(by_alias=True, exclude_none=True)
        return text


def _printable(text: str, length: int) -> str:
    """At most `length` characters without secrets, with '?' for what JSON would have to escape at length or cannot
    hold."""
    plain = redaction.redact(text)[:length].encode("utf-8", "replace").decode()
    return "".join(char if char.isprintable() or char == "\n" else "?" for char in plain)
