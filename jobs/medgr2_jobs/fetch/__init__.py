"""Gets what a cycle names onto the volume: from the Hugging Face hub, from S3, from elsewhere on this computer.

Each URI is fetched once, into `inputs/<key>/`, and pinned there; later runs verify and use that, without a network,
also when the source has changed since. A folder `inputs/` that was copied from another site serves as well.

Not through fsspec: its file systems copy, but pin neither commit nor etag, take a broken object up nowhere, and need
s3fs, a second S3 client beside pyarrow's.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from medgr2_api.uris import is_remote, looks_like_hub_id

from ..errors import ConfigError
from ..store.safe_path import inside
from . import pin_file, worker_client
from .pin_file import Kind

if TYPE_CHECKING:
    from medgr2_api.stages.prepare import PrepareParameters

    from .worker_client import Context

BUILTIN = "builtin://"
#: What folders with models are called; no organisation of the hub is.
_MODEL_FOLDERS = frozenset(("models", "model", "checkpoints", "checkpoint", "weights"))

#: Folders that a stage has verified, or fetched itself: a model is not read again each time it is asked for.
_verified: WeakKeyDictionary[Context, set[Path]] = WeakKeyDictionary()


def local_path(ctx: Context, uri: str, what: str, kind: Kind = "dataset") -> Path:
    """The file or folder on the volume that a URI stands for; fetched and pinned first where it lies elsewhere.

    Args:
        ctx: of stage prepare.
        uri: a path on the volume, `hf://`, `s3://` or `file://`; a model may also be an id of the hub (`org/name`),
            where no such folder is on the volume.
        what: where it stands in the spec, for messages.
        kind: of a model only what may be loaded is fetched.

    Raises:
        ConfigError: no such path, repository or revision; no access.
        TemporaryError: the network, or the other end, fails.
        CorruptArtifact: what was fetched is not what it was then.
        DiskFull: no space left.
        Checkpointed: asked to stop; the next run goes on.
    """
    source = remote_uri(ctx.root, uri, kind)
    if source is None:
        path = inside(ctx.root, uri, what)
        if not path.exists():
            raise ConfigError(
                f"{what}: {uri!r} is not on the volume (looked for {path}); copy it there, or name where it is to be "
                "fetched from: hf://org/name@revision, s3://bucket/key or file:///path"
            )
        return path
    folder = pin_file.folder_of(ctx.root, source, kind)
    inside(ctx.root, str(folder.relative_to(ctx.root)), what)
    sound = _verified.setdefault(ctx, set())
    fetched = pin_file.load(folder, source, kind)
    if fetched is None:
        worker_client.fetch(ctx, source, what, kind, guessed=source != uri)
        fetched = pin_file.load(folder, source, kind)
        assert fetched is not None  # nothing removes it
    elif folder not in sound:
        total = sum(file.bytes for file in fetched.files)

        def tick(done: int) -> None:
            ctx.check_stop()
            ctx.progress(f"verify {source}", done, total)

        pin_file.verify(folder, fetched, tick)
    sound.add(folder)
    return folder / pin_file.FILES / fetched.path


def remote_uri(root: Path, uri: str, kind: Kind) -> str | None:
    """The URI that a name stands for, where it has to be fetched; None for a path on the volume."""
    if is_remote(uri):
        return uri
    if kind == "model" and looks_like_hub_id(uri) and not _is_folder_name(root, uri):
        return f"hf://{uri}"
    return None


def _is_folder_name(root: Path, name: str) -> bool:
    """Whether `models/qwen` is meant as a folder of the workspace, also where it is not there: by how it begins."""
    first = name.partition("/")[0]
    return first in _MODEL_FOLDERS or (root / first).exists()


def referenced_uris(parameters: PrepareParameters) -> Iterator[tuple[str, str, Kind]]:
    """Everything that prepare reads from somewhere: URI, where it stands in the spec, what it is."""
    data = parameters.data
    for part, inputs in (("sources", data.sources), ("benchmarks", data.benchmarks)):
        for source in inputs:
            for field, uri in (("uri", source.uri), ("images", source.images)):
                if uri:
                    yield uri, f"data.{part}[{source.name}].{field}", "dataset"
    models = {
        "policy.baseModel": parameters.policy_base_model,
        "rewardModel.baseModel": parameters.reward_base_model,
        "rewardModel.checkpoint": parameters.reward_checkpoint,
        "generator.distillation.baseModel": parameters.student_base_model,
    }
    for field, name in models.items():
        if name is not None and not name.startswith(BUILTIN):
            yield name, field, "model"


def pins(ctx: Context) -> list[dict[str, Any]]:
    """What the spec's URIs stand for in this run, once `local_path` was called for each; sorted, equal at every site.

    Returns:
        For each: uri, kind, revision (a commit of the hub, or empty), bytes, sha256 (over paths and contents), and
        files with path, bytes and sha256. Paths on the volume have no entry.
    """
    pin_by_source = {}
    for uri, _, kind in referenced_uris(ctx.parameters):
        source = remote_uri(ctx.root, uri, kind)
        if source is not None:
            fetched = pin_file.load(pin_file.folder_of(ctx.root, source, kind), source, kind)
            if fetched is not None:
                pin_by_source[source, kind] = fetched.pin()
    return [pin_by_source[each] for each in sorted(pin_by_source)]
