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
from .request import MODEL_CONFIG, FetchedSource, FetchRequest, Tick, check_family, relative_to

if TYPE_CHECKING:
    from huggingface_hub import RepoFile

_TOKEN = "data.fetch.hubTokenSecretRef"
_PARALLEL_DOWNLOADS = 8
_CACHE = "hub"


def fetch(request: FetchRequest, partial: Path, tick: Tick) -> FetchedSource:
    """Fetches what an `hf://` URI names, at the commit that its revision names now.

    An interrupted fetch goes on: files that are whole are kept, in a cache of the hub's own form that belongs to this
    fetch alone; `files/` holds hard links to them. Of broken files the client can use nothing.

    Raises:
        ConfigError: no such repository, revision or path; no access; offline.
        TemporaryError: the hub cannot be reached, or sent something else than it announced.
        DiskFull: no space left.
    """
    from huggingface_hub import HfApi, RepoFile

    repo, revision, requested_path = hub_parts(request.uri)
    if request.kind == "model" and request.uri.startswith("hf://datasets/"):
        raise ConfigError(f"{request.label}: is a dataset; a model is named hf://org/name@revision")
    repo_type = request.kind
    with _errors(request, repo, revision):
        api = HfApi(endpoint=request.hub_endpoint, token=request.hub_token or False)
        commit = api.repo_info(repo, repo_type=repo_type, revision=revision or None).sha
        if commit is None:
            raise ConfigError(f"{request.label}: the hub names no commit; is data.fetch.hubEndpoint that of a hub?")
        tree = api.list_repo_tree(repo, recursive=True, revision=commit, repo_type=repo_type)
        selected = _files_to_fetch(
            request, [entry for entry in tree if isinstance(entry, RepoFile)], repo, requested_path
        )
        atomic.remove_tree(partial / pin_file.FILES)
        for broken in (partial / _CACHE).rglob("*.incomplete"):  # a killed client's: nobody else writes here
            broken.unlink()
        if request.kind == "model" and (config := selected.get(MODEL_CONFIG)) is not None:
            check_family(request, _cached(request, repo, commit, config, partial).read_bytes())
        _download(request, repo, commit, selected, partial, tick)
    single = len(selected) == 1 and next(iter(selected.values())).path == requested_path
    etags = {name: entry.lfs.sha256 if entry.lfs else entry.blob_id for name, entry in selected.items()}
    return FetchedSource(commit, next(iter(selected)) if single else "", etags)


def _files_to_fetch(
    request: FetchRequest, entries: list[RepoFile], repo: str, requested_path: str
) -> dict[str, RepoFile]:
    """The files to fetch, by their path in `files/`."""
    selected: dict[str, RepoFile] = {}
    for entry in entries:
        name = relative_to(entry.path, requested_path)
        if name is not None and pin_file.is_fetched(name, request.kind):
            try:
                selected[relative_path(name)] = entry
            except ValueError as error:
                raise ConfigError(f"{request.label}: {error}") from None
    if selected:
        return selected
    top = sorted({entry.path.partition("/")[0] for entry in entries})
    if requested_path and not any(relative_to(entry.path, requested_path) for entry in entries):
        raise ConfigError(
            f"{request.label}: {repo} has no {requested_path!r} at this revision; it has {', '.join(top[:20])}"
        )
    raise ConfigError(f"{request.label}: holds nothing that can be used; it has {', '.join(top[:20]) or 'no files'}")


def _download(
    request: FetchRequest, repo: str, commit: str, selected: dict[str, RepoFile], partial: Path, tick: Tick
) -> None:
    """All files, several at once; the first error ends it."""
    files = partial / pin_file.FILES
    bar = _progress(tick, sum(entry.size for entry in selected.values()))

    def one(name: str, entry: RepoFile) -> None:
        cached = _cached(request, repo, commit, entry, partial, bar)
        with atomic.disk_errors(files / name):
            _link(cached, files / name)

    with ThreadPoolExecutor(_PARALLEL_DOWNLOADS) as pool:
        running = [pool.submit(one, name, entry) for name, entry in selected.items()]
        try:
            for done in as_completed(running):
                done.result()
        finally:
            for waiting in running:
                waiting.cancel()


def _cached(
    request: FetchRequest, repo: str, commit: str, entry: RepoFile, partial: Path, bar: type[Any] | None = None
) -> Path:
    """A file in this fetch's cache, downloaded if it is not there yet."""
    from huggingface_hub import hf_hub_download

    cached = Path(
        hf_hub_download(
            repo,
            entry.path,
            repo_type=request.kind,
            revision=commit,
            endpoint=request.hub_endpoint,
            token=request.hub_token or False,
            cache_dir=partial / _CACHE,
            tqdm_class=bar,
        )
    ).resolve()
    _check(request, entry, cached)
    return cached


def _check(request: FetchRequest, entry: RepoFile, cached: Path) -> None:
    """What arrived must be what the hub announced: its client compares lengths only."""
    if entry.lfs is not None:
        right = atomic.sha256_file(cached) == entry.lfs.sha256
    else:
        content = cached.read_bytes()  # what is not LFS is small
        blob = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False)
        right = blob.hexdigest() == entry.blob_id
    if not right:
        cached.unlink()
        raise TemporaryError(f"{request.label}: {entry.path} arrived damaged; run the same command again")


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
def _errors(request: FetchRequest, repo: str, revision: str) -> Iterator[None]:
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
                raise ConfigError(_offline(request)) from error
            if isinstance(cause, hub.HfHubHTTPError):
                raise _of_status(request, repo, revision, cause) from error
            if isinstance(cause, httpx2.TransportError):
                raise TemporaryError(f"{request.label}: the hub cannot be reached ({_first(cause)})") from error
            if isinstance(cause, hub.HFValidationError):
                raise ConfigError(f"{request.label}: {_first(cause)}") from error
        if isinstance(error, OSError) and error.errno is None:  # the client's own: a file of the wrong length
            raise TemporaryError(f"{request.label}: {_first(error)}") from error
        raise


def _of_status(request: FetchRequest, repo: str, revision: str, error: Any) -> StageError:
    from huggingface_hub import errors as hub

    status = error.response.status_code
    guessed = " (nor is there such a folder in the workspace)" if request.guessed else ""
    token = (
        f"the token of {request.hub_secret} is not accepted or may not read it: set {_TOKEN} to one that may"
        if request.hub_secret
        else f"if it is not public, set {_TOKEN} to a Secret with a token that may read it"
    )
    if isinstance(error, hub.RevisionNotFoundError):
        return ConfigError(f"{request.label}: {repo} has no revision {revision or 'main'!r}")
    if isinstance(error, hub.GatedRepoError):
        return ConfigError(f"{request.label}: {repo} is gated: ask for access on its page; {token}")
    if isinstance(error, hub.RepositoryNotFoundError):
        return ConfigError(f"{request.label}: the hub shows no {request.kind} {repo}{guessed}; {token}")
    if status in (401, 403):
        return ConfigError(f"{request.label}: the hub refuses access to {repo} ({status}); {token}")
    if status == 404:
        return ConfigError(f"{request.label}: not found ({_first(error)})")
    if status == 429 or status >= 500:
        return TemporaryError(f"{request.label}: the hub answers {status}; try again later")
    return ConfigError(f"{request.label}: the hub answers {status} ({_first(error)})")


def _offline(request: FetchRequest) -> str:
    folder = pin_file.folder_of(Path(request.root), request.uri, request.kind)
    guessed = "there is no such folder in the workspace, " if request.guessed else ""
    return (
        f"{request.label}: {guessed}it was not fetched yet, and HF_HUB_OFFLINE is set: run `medgr2 fetch` where there "
        f"is a network and copy inputs/{folder.name} here"
    )


def _chain(error: BaseException) -> Iterator[BaseException]:
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__


def _first(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
