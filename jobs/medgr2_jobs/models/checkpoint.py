"""A checkpoint of the policy as stages publish it: a whole model, or adapters beside the model that they stand on.

Adapters lie in peft's own layout (`adapter_config.json`, `adapter_model.safetensors`), so that whatever serves adapters
can serve them, with `base.json` beside them: which published model they stand on, by its role, its part and the digest
of its files. No path is in it: an artifact is the same wherever the workspace lies.
"""

from __future__ import annotations

import copy
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model_state_dict
from pydantic import ValidationError
from safetensors.torch import save_file

from medgr2_api import paths
from medgr2_api.model import Model

from ..errors import CorruptArtifact
from ..store import atomic
from ..store.artifact import ArtifactInputs, ArtifactReader
from . import vlm

ADAPTER_FILE = "adapter_model.safetensors"
CONFIG_FILE = "adapter_config.json"
BASE_FILE = Path(paths.ADAPTER_BASE).name
#: Of the base model that stage prepare publishes for the policy.
BASE_ROLE, BASE_PART = "prepare", "models/policy"


class Base(Model):
    """Which published model adapters stand on."""

    role: str
    """Whose artifact: always `prepare`."""
    part: str
    """The folder in it."""
    digest: str
    """Of the folder's files (`ArtifactReader.digest_of`)."""


@dataclass(frozen=True)
class Checkpoint:
    """Where a checkpoint lies."""

    base: Path
    """Folder of a whole model."""
    adapter: Path | None = None
    """Folder of the adapters on it; None: the model is the checkpoint."""
    stands_on: Base | None = None
    """Which published model `base` is, where adapters trained on it can point at it; None: adapters cannot."""

    def load(self) -> Any:
        """The model, ready to answer; adapters are merged."""
        return vlm.load_model(self.base, adapter=self.adapter)

    def processor(self, padding_side: str = "right") -> Any:
        """The model's processor: training never changes it."""
        return vlm.load_processor(self.base, padding_side)


def base(inputs: ArtifactInputs) -> Checkpoint:
    """The model that the policy starts from."""
    reader = inputs.input(BASE_ROLE)
    return Checkpoint(reader.folder_of(BASE_PART), stands_on=_base(reader))


def published(inputs: ArtifactInputs, role: str) -> Checkpoint:
    """The checkpoint of the policy that the artifact of a role holds.

    Raises:
        CorruptArtifact: it has none, it is damaged, or it stands on another model than this cycle's.
    """
    return at(inputs, inputs.input(role).folder_of("model"))


def at(inputs: ArtifactInputs, folder: Path) -> Checkpoint:
    """The checkpoint in a folder.

    Args:
        inputs: among them the artifact that adapters stand on.
        folder: a whole model, or adapters with their `base.json`.

    Raises:
        CorruptArtifact: the adapters stand on another model than this cycle's.
    """
    path = folder / BASE_FILE
    if not path.is_file():
        return Checkpoint(folder)
    try:
        named = Base.model_validate(json.loads(path.read_text()))
    except (ValueError, ValidationError) as error:
        raise CorruptArtifact(f"{path}: does not say which model the adapters stand on ({error})") from error
    found = base(inputs)
    if named != found.stands_on:
        raise CorruptArtifact(
            f"{path}: the adapters stand on another model (digest {named.digest[:12]}) than {BASE_PART} of this "
            "cycle's prepare; run the stage that made them again (`--restart-from`)"
        )
    return Checkpoint(found.base, folder, found.stands_on)


def is_published(reader: ArtifactReader) -> bool:
    """Whether an artifact has a checkpoint: a stage may have skipped its training."""
    return reader.has("model/config.json") or reader.has(paths.ADAPTER_BASE)


def save_adapter(model: Any, folder: Path, stands_on: Base) -> None:
    """Writes a PeftModel's adapters in float32, in peft's layout, and which model they stand on.

    Args:
        model: whose adapters "default" are written.
        folder: where.
        stands_on: the published model under them.
    """
    write_adapter(model, folder, torch.float32)
    atomic.write_text(folder / BASE_FILE, json.dumps(stands_on.dump(), indent=1, sort_keys=True) + "\n")


def write_adapter(model: Any, folder: Path, precision: torch.dtype) -> None:
    """Writes a PeftModel's adapters in peft's layout.

    Not `save_pretrained`: it names the base by its path on this computer, writes a model card, and saves every adapter
    that is on the model, a reference's too.

    Args:
        model: whose adapters "default" are written.
        folder: where.
        precision: of the weights.
    """
    weights = get_peft_model_state_dict(model, adapter_name="default", save_embedding_layers=False)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(
        {name: value.detach().to("cpu", precision).contiguous() for name, value in weights.items()},
        folder / ADAPTER_FILE,
        metadata={"format": "pt"},
    )
    config = copy.copy(model.peft_config["default"])
    config.base_model_name_or_path, config.inference_mode = None, True
    config.save_pretrained(str(folder))


def copy_adapter(source: Path, target: Path, base_model: str | None) -> None:
    """Copies adapters out of the workspace, where what they stand on has another name.

    Args:
        source: folder of the adapters.
        target: the folder to make.
        base_model: what they stand on, as a hub calls it; None: it has no name.
    """
    target.mkdir()
    shutil.copyfile(source / ADAPTER_FILE, target / ADAPTER_FILE)
    config = json.loads((source / CONFIG_FILE).read_text())
    written = json.dumps({**config, "base_model_name_or_path": base_model}, indent=2, sort_keys=True)
    atomic.write_text(target / CONFIG_FILE, written + "\n")


def _base(reader: ArtifactReader) -> Base:
    return Base(role=BASE_ROLE, part=BASE_PART, digest=reader.digest_of(BASE_PART))
