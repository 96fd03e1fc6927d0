"""What stands for patients, files and records in all that is published, shown or logged (docs/privacy.md).

A pseudonym is an HMAC under a secret of the workspace, or of a Secret that the spec names: who does not have it can
neither turn one back nor try names until one fits. What each stands for is written beside the data, for the owner
alone: `private/names/<inputHash>.jsonl`. Neither is in any artifact or manifest, and `medgr2 cp` hands out neither.
"""

from __future__ import annotations

import hmac
import json
import logging
import os
import re
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from medgr2_api import paths
from medgr2_api.data import DataFormat, NamesShown
from medgr2_api.hashing import sha256_of

from ..errors import ConfigError
from ..store import atomic

if TYPE_CHECKING:
    from medgr2_api.data import Benchmark, Data, DataSource
    from medgr2_api.uris import SecretKeyRef

    from ..runner.context import StageContext

_log = logging.getLogger(__name__)
_DIGITS = 16
_KEY = re.compile(r"[0-9a-f]{64}\n")
_KEY_SECONDS = 10.0  # that another process may take to write it, on a volume without hard links
_LEAST_SECRET = 16  # characters: a shorter one could be guessed from the pseudonyms that it makes


class Lookup:
    """What pseudonyms stand for, written while they are made."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._known: set[str] = set()

    def note(self, source: str, pseudonym: str, name: str, *, once: bool = False) -> None:
        """Writes one down. `once`: it comes once only, so that nothing has to be remembered."""
        if not once:
            if pseudonym in self._known:
                return
            self._known.add(pseudonym)
        line = {"pseudonym": pseudonym, "source": source, "name": name}
        self._stream.write(json.dumps(line) + "\n")  # escapes: a name may be no UTF-8


@dataclass(frozen=True)
class Names:
    """How the names of one source are shown."""

    key: bytes
    clear: bool
    """Paths and ids as they are; a patient is a pseudonym all the same."""
    source: str = ""
    lookup: Lookup | None = None
    """None: what they stand for is kept nowhere."""

    def of(self, source: DataSource | Benchmark) -> Names:
        """The names of another source. Phantoms are drawn by us, and their names say nothing of anybody."""
        clear = source.names is NamesShown.CLEAR or source.format is DataFormat.PHANTOM
        return replace(self, source=source.name, clear=clear)

    def identity(self, name: str) -> str:
        """What stands for a patient or a study: 16 hex digits; empty for nobody. In no lookup: see docs/privacy.md."""
        return self._digest("identity", name) if name else ""

    def file(self, path: str) -> str:
        """A path below the source, as tables and messages show it."""
        return path if self.clear else self.hidden(path)

    def hidden(self, path: str) -> str:
        """A path that tells who the patient is."""
        return self._noted(f"file-{self._digest('file', path)}", path)

    def group(self, dataset: str) -> str:
        """What a record calls its origin: an institution, or the folder that a file is in."""
        return dataset if self.clear or not dataset else self._noted(f"group-{self._digest('group', dataset)}", dataset)

    def record(self, number: int, own_id: str) -> str:
        """A record's id: its own, or else its number in its source, which does not depend on the workspace."""
        if self.clear:
            return own_id
        pseudonym = f"{number:06d}"
        if self.lookup is not None:
            self.lookup.note(self.source, f"{self.source}/{pseudonym}", own_id, once=True)
        return pseudonym

    def _noted(self, pseudonym: str, name: str) -> str:
        if self.lookup is not None:
            self.lookup.note(self.source, pseudonym, name)
        return pseudonym

    def _digest(self, kind: str, name: str) -> str:
        message = f"{kind}\0{name}".encode("utf-8", "surrogatepass")
        return hmac.digest(self.key, message, "sha256").hex()[:_DIGITS]


@contextmanager
def opened(ctx: StageContext[Any], data: Data) -> Iterator[Names]:
    """The names of a cycle's sources (`Names.of`); what they stand for is on the volume when the block ends, however.

    Raises:
        ConfigError: the secret of the workspace is damaged, or the one that the spec names is not there or too short.
    """
    key = _key(ctx, data)
    if not key:
        yield Names(b"", clear=True)
        return
    path = ctx.root / paths.names(ctx.request.input_hash)
    _make_private(path.parent)
    temporary = atomic.temporary_name(path)
    with atomic.disk_errors(path):
        try:
            with open(temporary, "x", encoding="ascii", opener=_private_opener) as stream:
                yield Names(key, clear=False, lookup=Lookup(stream))
                stream.flush()
                os.fsync(stream.fileno())
        finally:  # also when too many records are bad: the message names some of them
            if temporary.exists():
                temporary.replace(path)
                atomic.fsync_folder(path.parent)


def shown_pins(pins: list[dict[str, Any]], data: Data, names: Names) -> list[dict[str, Any]]:
    """What was fetched (`fetch.pins`), with the files of private sources as they may be published.

    The digest of such a pin is one over pseudonyms: over paths it would let anybody try names.
    """
    private: dict[str, Names] = {}
    inputs: list[DataSource | Benchmark] = [*data.sources, *data.benchmarks]
    for source in inputs:
        own = names.of(source)
        if not own.clear:
            private |= {uri: own for uri in (source.uri, source.images) if uri}
    return [_shown_pin(pin, private[pin["uri"]]) if pin["uri"] in private else pin for pin in pins]


def _shown_pin(pin: dict[str, Any], names: Names) -> dict[str, Any]:
    files = [{**file, "path": names.file(file["path"])} for file in pin["files"]]
    return {**pin, "files": files, "sha256": sha256_of([(file["path"], file["sha256"]) for file in files])}


def _key(ctx: StageContext[Any], data: Data) -> bytes:
    """Empty where nothing has a name that could be anybody's."""
    if data.pseudonym_secret_ref is not None:
        return _of_secret(ctx, data.pseudonym_secret_ref)
    return b"" if data.drawn else of_workspace(ctx.root)


def _of_secret(ctx: StageContext[Any], reference: SecretKeyRef) -> bytes:
    value = ctx.secret(reference.name, reference.key)
    if len(value) < _LEAST_SECRET:
        raise ConfigError(
            f"data.pseudonymSecretRef: secret {reference.name!r}, key {reference.key!r} has fewer than {_LEAST_SECRET} "
            "characters, so that it could be guessed; take a random one: openssl rand -hex 32"
        )
    return value.encode()


def of_workspace(root: Path) -> bytes:
    """The workspace's own secret, made when it is first needed; the same for every process on the volume.

    Raises:
        ConfigError: the file is there, and is none.
    """
    path = root / paths.PSEUDONYM_KEY
    if not path.exists():
        _make_private(path.parent)
        if any((root / paths.NAMES).glob("*.jsonl")):
            _log.warning("%s is gone, and pseudonyms were made with it: from now on the same name gets another", path)
        _create(path, secrets.token_hex(32) + "\n")
    deadline = time.monotonic() + _KEY_SECONDS
    while not _KEY.fullmatch(text := _text(path)):
        if time.monotonic() > deadline:
            raise ConfigError(
                f"{path}: must hold 64 hex digits and a line break, and does not; restore it, or remove it: then the "
                "same name gets another pseudonym from now on"
            )
        time.sleep(0.05)
    return bytes.fromhex(text.strip())


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}; the stages have to be able to read it") from None


def _create(path: Path, text: str) -> None:
    """Writes a file for the owner alone; of several processes at once exactly one succeeds, and all find its file."""
    temporary = atomic.temporary_name(path)
    with atomic.disk_errors(path):
        try:
            _write(temporary, text)
            os.link(temporary, path)  # whole from the first moment
        except FileExistsError:
            return
        except OSError as error:
            if error.errno not in atomic.NO_HARD_LINKS:
                raise
            try:
                _write(path, text)
            except FileExistsError:
                return
        finally:
            temporary.unlink(missing_ok=True)
        atomic.fsync_folder(path.parent)


def _write(path: Path, text: str) -> None:
    with open(path, "x", encoding="ascii", opener=_private_opener) as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())


def _private_opener(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _make_private(folder: Path) -> None:
    atomic.make_folder(folder)
    os.chmod(folder, 0o700)
