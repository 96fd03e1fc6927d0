"""Fetching from the Hugging Face hub, or a mirror of it, through huggingface_hub."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medgr2_api.types import relative_path
from medgr2_api.uris import hub_parts

from ..errors import ConfigError, StageError, TemporaryError
from ..store import atomic
from . import pin_file
from .request import Order, Source, Tick, below

if TYPE_CHECKING:
    from huggingface_hub import RepoFile

_TOKEN = "data.fetch.hubTokenSecretRef"
_AT_ONCE = 8
_CACHE = "hub"


def fetch(order: Order, partial: Path, tick: Tick) -> Source:
    """Fetches what an `hf://` URI names, at the commit that its revision names now.

    An interrupted fetch goes on: files that are whole are kept, in a cache of the hub's own form that belongs to this
    fetch alone; `files/` holds hard links to them. Of broken files the client can use nothing.

    Raises:
        ConfigError: no such repository, revision or path; no access; offline.
        TemporaryError: the hub cannot be reached, or sent something else than it announced.
        DiskFull: no space left.
    """
    from huggingface_hub import HfApi, RepoFile

    repo, revision, asked = hub_parts(order.uri)
    if order.kind == "model" and order.uri.startswith("hf://datasets/"):
        raise ConfigError(f"{order.named}: is a dataset; a model is named hf://org/name@revision")
    repo_type = order.kind
    with _errors(order, repo, revision):
        api = HfApi(endpoint=order.hub_endpoint, token=order.hub_token or False)
        commit = api.repo_info(repo, repo_type=repo_type, revision=revision or None).sha
        if commit is None:
            raise ConfigError(f"{order.named}: the hub names no commit; is data.fetch.hubEndpoint that of a hub?")
        tree = api.list_repo_tree(repo, recursive=True, revision=commit, repo_type=repo_type)
        wanted = _wanted(order, [entry for entry in tree if isinstance(entry, RepoFile)], repo, asked)
        atomic.remove_tree(partial / pin_file.FILES)
        for broken in (partial / _CACHE).rglob("*.incomplete"):  # a killed client's: nobody else writes here
            broken.unlink()
        _download(order, repo, commit, wanted, partial, tick)
    single = len(wanted) == 1 and next(iter(wanted.values())).path == asked
    etags = {name: entry.lfs.sha256 if entry.lfs else entry.blob_id for name, entry in wanted.items()}
    return Source(commit, next(iter(wanted)) if single else "", etags)


def _wanted(order: Order, entries: list[RepoFile], repo: str, asked: str) -> dict[str, RepoFile]:
    """The files to fetch, by their path in `files/`."""
    found: dict[str, RepoFile] = {}
    for entry in entries:
        name = below(entry.path, asked)
        if name is not None and pin_file.taken(name, order.kind):
            try:
                found[relative_path(name)] = entry
            except ValueError as error:
                raise ConfigError(f"{order.named}: {error}") from None
    if found:
        return found
    top = sorted({entry.path.partition("/")[0] for entry in entries})
    if asked and not any(below(entry.path, asked) for entry in entries):
        raise ConfigError(f"{order.named}: {repo} has no {asked!r} at this revision; it has {', '.join(top[:20])}")
    raise ConfigError(f"{order.named}: holds nothing that can be used; it has {', '.join(top[:20]) or 'no files'}")


def _download(order: Order, repo: str, commit: str, wanted: dict[str, RepoFile], partial: Path, tick: Tick) -> None:
    """All files, several at once; the first error ends it."""
    from huggingface_hub import hf_hub_download

    files = partial / pin_file.FILES
    bar = _progress(tick, sum(entry.size for entry in wanted.values()))

    def one(name: str, entry: RepoFile) -> None:
        cached = Path(
            hf_hub_download(
                repo,
                entry.path,
                repo_type=order.kind,
                revision=commit,
                endpoint=order.hub_endpoint,
                token=order.hub_token or False,
                cache_dir=partial / _CACHE,
                tqdm_class=bar,
            )
        ).resolve()
        _check(order, entry, cached)
        with atomic.disk_errors(files / name):
            _link(cached, files / name)

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        running = [pool.submit(one, name, entry) for name, entry in wanted.items()]
        try:
            for done in as_completed(running):
                done.result()
        finally:
            for waiting in running:
                waiting.cancel()


def _check(order: Order, entry: RepoFile, cached: Path) -> None:
    """What arrived must be what the hub announced: its client compares lengths only."""
    if entry.lfs is not None:
        right = atomic.sha256_file(cached) == entry.lfs.sha256
    else:
        content = cached.read_bytes()  # what is not LFS is small
        blob = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False)
        right = blob.hexdigest() == entry.blob_id
    if not right:
        cached.unlink()
        raise TemporaryError(f"{order.named}: {entry.path} arrived damaged; run the same command again")


def _link(cached: Path, target: Path) -> None:
    """A hard link where the cache is on the same volume; it is never written to again."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(cached, target)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        shutil.copyfile(cached, target)


def _progress(tick: Tick, total: int) -> type[Any]:
    """A progress bar for huggingface_hub that shows nothing and tells `tick`."""
    from tqdm.auto import tqdm

    lock, done = threading.Lock(), [0]

    class Bar(tqdm):  # type: ignore[misc] # which has no types
        def __init__(self, *given: Any, **options: Any) -> None:
            super().__init__(*given, **{**options, "disable": True})

        def update(self, n: float | None = 1) -> None:
            with lock:
                done[0] += int(n or 0)
                tick(min(done[0], total), total)

    return Bar


@contextmanager
def _errors(order: Order, repo: str, revision: str) -> Iterator[None]:
    """The client's errors in the words of a stage's."""
    import httpx2
    from huggingface_hub import errors as hub

    try:
        yield
    except StageError:
        raise
    except (OSError, ValueError, httpx2.HTTPError) as error:
        for cause in _chain(error):
            if isinstance(cause, hub.OfflineModeIsEnabled):
                raise ConfigError(_offline(order)) from error
            if isinstance(cause, hub.HfHubHTTPError):
                raise _of_status(order, repo, revision, cause) from error
            if isinstance(cause, httpx2.TransportError):
                raise TemporaryError(f"{order.named}: the hub cannot be reached ({_first(cause)})") from error
            if isinstance(cause, hub.HFValidationError):
                raise ConfigError(f"{order.named}: {_first(cause)}") from error
        if isinstance(error, OSError) and error.errno is None:  # the client's own: a file of the wrong length
            raise TemporaryError(f"{order.named}: {_first(error)}") from error
        raise


def _of_status(order: Order, repo: str, revision: str, error: Any) -> StageError:
    from huggingface_hub import errors as hub

    status = error.response.status_code
    guessed = " (nor is there such a folder in the workspace)" if order.guessed else ""
    token = (
        f"the token of {order.hub_secret} is not accepted or may not read it: set {_TOKEN} to one that may"
        if order.hub_secret
        else f"if it is not public, set {_TOKEN} to a Secret with a token that may read it"
    )
    if isinstance(error, hub.RevisionNotFoundError):
        return ConfigError(f"{order.named}: {repo} has no revision {revision or 'main'!r}")
    if isinstance(error, hub.GatedRepoError):
        return ConfigError(f"{order.named}: {repo} is gated: ask for access on its page; {token}")
    if isinstance(error, hub.RepositoryNotFoundError):
        return ConfigError(f"{order.named}: the hub shows no {order.kind} {repo}{guessed}; {token}")
    if status in (401, 403):
        return ConfigError(f"{order.named}: the hub refuses access to {repo} ({status}); {token}")
    if status == 404:
        return ConfigError(f"{order.named}: not found ({_first(error)})")
    if status == 429 or status >= 500:
        return TemporaryError(f"{order.named}: the hub answers {status}; try again later")
    return ConfigError(f"{order.named}: the hub answers {status} ({_first(error)})")


def _offline(order: Order) -> str:
    folder = pin_file.folder_of(Path(order.root), order.uri, order.kind)
    guessed = "there is no such folder in the workspace, " if order.guessed else ""
    return (
        f"{order.named}: {guessed}it was not fetched yet, and HF_HUB_OFFLINE is set: run `medgr2 fetch` where there is "
        f"a network and copy inputs/{folder.name} here"
    )


def _chain(error: BaseException) -> Iterator[BaseException]:
    found: BaseException | None = error
    while found is not None:
        yield found
        found = found.__cause__ or found.__context__


def _first(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
