"""Fetching from S3 and what speaks its protocol, through pyarrow's file system."""

from __future__ import annotations

import hashlib
import json
import os
import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from medgr2_api.types import relative_path

from ..errors import ConfigError, StageError, TemporaryError
from ..store import atomic
from . import pin_file
from .request import MODEL_CONFIG, FetchedSource, FetchRequest, Tick, check_family, relative_to

if TYPE_CHECKING:
    from pyarrow.fs import FileInfo, S3FileSystem

_KEYS = "data.fetch.s3.accessKeyIDSecretRef and secretAccessKeySecretRef"
_PARALLEL_DOWNLOADS = 8
_CHUNK = 16 << 20  # bytes of one request; eight of them are in memory at most
_CONNECT_SECONDS, _REQUEST_SECONDS, _ATTEMPTS = 10, 60, 4
#: What the AWS client calls an error, and what it says of the answer, in the text of pyarrow's OSError.
_REFUSED = re.compile(
    r"ACCESS_DENIED|INVALID_ACCESS_KEY_ID|SIGNATURE_DOES_NOT_MATCH|INVALID_CLIENT_TOKEN|UNRECOGNIZED_CLIENT|UserNotFound"
    r"|HTTP (?:status|response code):? 40[13]"
)
_MISSING = re.compile(r"NO_SUCH_(?:BUCKET|KEY)|RESOURCE_NOT_FOUND|HTTP (?:status|response code):? 404|does not exist")


def fetch(request: FetchRequest, partial: Path, tick: Tick) -> FetchedSource:
    """Fetches an object, or all objects below a prefix.

    An interrupted fetch goes on: whole files are kept while their etag is the same, broken ones from their last chunk.

    Raises:
        ConfigError: no such bucket or key, or no access.
        TemporaryError: the store cannot be reached, or an object changed while it was read.
        DiskFull: no space left.
    """
    bucket, _, requested_path = request.uri.removeprefix("s3://").partition("/")
    requested_path = requested_path.strip("/")
    with _errors(request, bucket):
        store = _connect(request, bucket)
        selected = _objects_to_fetch(request, store, bucket, requested_path)
        if request.kind == "model" and (config := selected.get(MODEL_CONFIG)) is not None:
            with store.open_input_file(config.path) as stream:
                check_family(request, stream.read())
        copy = _Copy(request, store, partial, sum(info.size for info in selected.values()), tick)
        copy.run(selected)
    single = len(selected) == 1 and next(iter(selected.values())).path == f"{bucket}/{requested_path}"
    return FetchedSource(
        path=next(iter(selected)) if single else "", etags={name: copy.done[name] for name in selected}
    )


def _connect(request: FetchRequest, bucket: str) -> S3FileSystem:
    from pyarrow import fs

    options: dict[str, Any] = {}
    if request.s3_endpoint:
        address = urlsplit(request.s3_endpoint)
        options |= {"scheme": address.scheme, "endpoint_override": address.netloc + address.path.rstrip("/")}
    if request.s3_access_key:
        options |= {"access_key": request.s3_access_key, "secret_key": request.s3_secret_key}
    region = request.s3_region or ("us-east-1" if request.s3_endpoint else fs.resolve_s3_region(bucket))
    return fs.S3FileSystem(
        anonymous=not request.s3_access_key,
        region=region,
        connect_timeout=_CONNECT_SECONDS,
        request_timeout=_REQUEST_SECONDS,
        retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=_ATTEMPTS),
        **options,
    )


def _objects_to_fetch(
    request: FetchRequest, store: S3FileSystem, bucket: str, requested_path: str
) -> dict[str, FileInfo]:
    """The objects to fetch, by their path in `files/`."""
    from pyarrow import fs

    place = f"{bucket}/{requested_path}".rstrip("/")
    info_at_path = store.get_file_info(place) if requested_path else None
    if info_at_path is not None and info_at_path.type is fs.FileType.File:
        infos = [info_at_path]
    else:
        infos = [info for info in store.get_file_info(fs.FileSelector(place, recursive=True)) if info.is_file]
    selected: dict[str, FileInfo] = {}
    for info in sorted(infos, key=lambda info: info.path):
        name = relative_to(info.path, place)
        if name is None or not pin_file.is_fetched(name, request.kind):
            continue
        try:
            selected[relative_path(name)] = info
        except ValueError as error:
            raise ConfigError(f"{request.label}: key {info.path!r}: {error}") from None
    if not selected:
        raise ConfigError(f"{request.label}: holds nothing that can be used ({len(infos)} objects are there)")
    return selected


class _Copy:
    """Objects on their way to `files/`. What is whole is written down, with its etag, in `journal.jsonl`."""

    def __init__(self, request: FetchRequest, store: S3FileSystem, partial: Path, total: int, tick: Tick) -> None:
        self.done: dict[str, str] = {}
        """Etag by path."""
        self._request, self._store, self._total, self._tick = request, store, total, tick
        self._files, self._parts = partial / pin_file.FILES, partial / "parts"
        self._journal = partial / "journal.jsonl"
        self._kept = self._read_journal()
        self._lock = threading.Lock()
        self._bytes = 0

    def run(self, selected: dict[str, FileInfo]) -> None:
        """All objects, several at once; the first error ends it."""
        self._parts.mkdir(parents=True, exist_ok=True)
        pin_file.remove_unlisted(self._files, set(selected))
        with ThreadPoolExecutor(_PARALLEL_DOWNLOADS) as pool:
            running = [pool.submit(self._one, name, info) for name, info in selected.items()]
            try:
                for done in as_completed(running):
                    done.result()
            finally:
                for waiting in running:
                    waiting.cancel()

    def _one(self, name: str, info: FileInfo) -> None:
        target = self._files / name
        with atomic.disk_errors(target), self._store.open_input_file(info.path) as stream:
            etag = _etag(stream)
            size = stream.size()
            if self._kept.get(name) != etag or not target.is_file() or target.stat().st_size != size:
                part = self._parts / hashlib.sha256(f"{name}\n{etag}".encode()).hexdigest()
                self._read(stream, part, size)
                self._check(info, etag, size)
                atomic.make_folder(target.parent)
                part.replace(target)
            else:
                self._count(size)
        with self._lock:
            self.done[name] = etag
            with self._journal.open("a", encoding="utf-8") as journal:
                journal.write(json.dumps({"path": name, "etag": etag}) + "\n")

    def _read(self, stream: Any, part: Path, size: int) -> None:
        """Reads the object into `part`, durably chunk by chunk, from the last chunk that surely is on the disk."""
        had = part.stat().st_size if part.is_file() else 0
        begin = max(0, had // _CHUNK - 1) * _CHUNK
        with part.open("r+b" if had else "wb") as file:
            file.truncate(begin)
            file.seek(begin)
            stream.seek(begin)
            self._count(begin)
            while begin < size:
                chunk = stream.read(_CHUNK)
                if not chunk:
                    raise TemporaryError(f"{self._request.label}: ended after {begin} of {size} bytes; try again")
                file.write(chunk)
                file.flush()
                os.fsync(file.fileno())
                begin += len(chunk)
                self._count(len(chunk))

    def _check(self, info: FileInfo, etag: str, size: int) -> None:
        """What took several requests must be the same object at the end as at the beginning."""
        if size > _CHUNK:
            with self._store.open_input_file(info.path) as again:
                if _etag(again) != etag:
                    raise TemporaryError(f"{self._request.label}: {info.path} changed while it was read; try again")

    def _count(self, number: int) -> None:
        with self._lock:
            self._bytes += number
            self._tick(min(self._bytes, self._total), self._total)

    def _read_journal(self) -> dict[str, str]:
        """Etag by path; a line that was being written when the power went counts for nothing."""
        kept = {}
        try:
            lines = self._journal.read_text(encoding="utf-8", errors="replace").splitlines()
        except FileNotFoundError:
            return {}
        for line in lines:
            try:
                row = json.loads(line)
                kept[str(row["path"])] = str(row["etag"])
            except (ValueError, KeyError, TypeError):
                continue
        return kept


def _etag(stream: Any) -> str:
    metadata = stream.metadata() or {}
    value = metadata.get(b"ETag", metadata.get("ETag", b""))
    return (value.decode() if isinstance(value, bytes) else str(value)).strip('"')


@contextmanager
def _errors(request: FetchRequest, bucket: str) -> Iterator[None]:
    """pyarrow's errors in the words of a stage's."""
    try:
        yield
    except StageError:
        raise
    except OSError as error:
        text = " ".join(str(error).split())
        if _REFUSED.search(text):
            keys = (
                f"the keys of {request.s3_secret} do not open it" if request.s3_secret else "it was asked anonymously"
            )
            raise ConfigError(f"{request.label}: bucket {bucket!r} is refused: {keys}; set {_KEYS} ({text})") from error
        if isinstance(error, FileNotFoundError) or _MISSING.search(text):
            raise ConfigError(f"{request.label}: there is no such bucket, or no such key in it ({text})") from error
        if error.errno is not None and "AWS" not in text:
            raise  # the volume's, not the store's
        raise TemporaryError(f"{request.label}: the store cannot be reached, or fails: {text}") from error
