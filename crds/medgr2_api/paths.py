"""Names of folders and files on the volume. Paths only: nothing here touches a disk.

```
<workspace>/
  images/<ab>/<sha256>.png            image store, content addressed
  artifacts/<stage>/<inputHash>/      published once, shared by all cycles of the workspace
    manifest.json                     the commit point
    a<attempt>…/                      the parts one attempt wrote
    work/<cycle uid>/                 checkpoints of an unfinished run
  cache/huggingface/                  models that a stage or a vLLM beside one fetched from the hub (on a cluster)
  inputs/<key>/                       data and models that prepare fetched, pinned; may be copied from another site
  reviews/<sha256>.jsonl              experts' decisions on kept triplets
  private/                            for the owner alone: the secret of the pseudonyms, and what they stand for
  cycles/<cycle>/                     one cycle's view
    state.json, approved.json, suspend, report/, logs/, fences/, progress/, results/, iterations/
    tensorboard/, mlflow/, wandb/     what follows the trainings: a run for each attempt
    spend/<cycle uid>/                what was reserved and paid at the generator's provider
```
"""

from __future__ import annotations

import hashlib
from pathlib import PurePosixPath

MANIFEST = "manifest.json"
STATE = "state.json"
LOCK = "run.lock"
APPROVED = "approved.json"
#: There while `medgr2 suspend` asks a run to stop the cycle.
SUSPEND = "suspend"
#: For the owner alone: no command hands it out.
PRIVATE = PurePosixPath("private")
#: Part of a trained model's artifact: which model its adapters stand on. Not there: the model is whole.
ADAPTER_BASE = "model/base.json"
#: The secret that makes the workspace's pseudonyms.
PSEUDONYM_KEY = PRIVATE / "pseudonyms.key"
#: What pseudonyms stand for, a file per artifact of prepare.
NAMES = PRIVATE / "names"


def image(sha256: str) -> PurePosixPath:
    """Where the image with this sha256 lies."""
    return PurePosixPath("images", sha256[:2], f"{sha256}.png")


def artifact(stage: str, input_hash: str) -> PurePosixPath:
    """The folder a stage publishes to."""
    return PurePosixPath("artifacts", stage, input_hash)


def shard(index: int) -> str:
    """Name of a shard's folder inside its stage's artifact."""
    return f"shard-{index:03d}"


def cycle(name: str) -> PurePosixPath:
    """A cycle's own folder."""
    return PurePosixPath("cycles", name)


def attempt_name(iteration: int, stage: str, token: str, attempt: int, shard_index: int = 0) -> str:
    """Name of an attempt's log, progress and result files: `i002-grpo-ta-a1-s0`."""
    mark = f"-t{token}" if token else ""
    return f"i{iteration:03d}-{stage}{mark}-a{attempt}-s{shard_index}"


def fence(cycle_name: str, iteration: int, stage: str) -> PurePosixPath:
    """The fence file: the newest attempt writes its number here; an older one then publishes nothing."""
    return cycle(cycle_name) / "fences" / f"i{iteration:03d}-{stage}.json"


def log(cycle_name: str, attempt: str) -> PurePosixPath:
    """A stage's stdout and stderr."""
    return cycle(cycle_name) / "logs" / f"{attempt}.log"


def tensorboard(cycle_name: str) -> PurePosixPath:
    """Event files of a cycle's trainings, a folder an attempt."""
    return cycle(cycle_name) / "tensorboard"


def mlflow(cycle_name: str) -> PurePosixPath:
    """MLflow's file store of a cycle's trainings."""
    return cycle(cycle_name) / "mlflow"


def wandb(cycle_name: str) -> PurePosixPath:
    """W&B's runs of a cycle's trainings."""
    return cycle(cycle_name) / "wandb"


def progress(cycle_name: str, attempt: str) -> PurePosixPath:
    """A running stage's `Progress`."""
    return cycle(cycle_name) / "progress" / f"{attempt}.json"


def result(cycle_name: str, attempt: str) -> PurePosixPath:
    """Where a local stage leaves its `StageResult` (a pod uses its termination message)."""
    return cycle(cycle_name) / "results" / f"{attempt}.json"


def iteration_link(cycle_name: str, iteration: int, stage: str) -> PurePosixPath:
    """Link from a cycle's iteration to the artifact it used."""
    return cycle(cycle_name) / "iterations" / f"i{iteration:03d}" / stage


def fetched(key: str) -> PurePosixPath:
    """Where something that prepare fetched lies; the key says what it is."""
    return PurePosixPath("inputs", key)


def names(input_hash: str) -> PurePosixPath:
    """What the pseudonyms in an artifact of prepare stand for."""
    return NAMES / f"{input_hash}.jsonl"


def review(sha256: str) -> PurePosixPath:
    """An expert's decisions."""
    return PurePosixPath("reviews", f"{sha256}.jsonl")


def review_history(cycle_name: str, iteration: int) -> PurePosixPath:
    """Which reviews of an iteration were imported, a sha256 a line, the newest last."""
    return PurePosixPath("reviews", f"{cycle_name}-i{iteration:03d}.history")


def local_uid(cycle_name: str) -> str:
    """The uid of a cycle that no API server gave one: the same in every run, so that what was paid stays known."""
    return hashlib.sha256(f"local/{cycle_name}".encode()).hexdigest()[:32]


def spend(cycle_name: str, uid: str) -> PurePosixPath:
    """Folder of a cycle's ledgers, one file per artifact and shard. They stay when the artifact is published."""
    return cycle(cycle_name) / "spend" / uid


def report(cycle_name: str) -> PurePosixPath:
    """The newest report of a cycle."""
    return cycle(cycle_name) / "report"
