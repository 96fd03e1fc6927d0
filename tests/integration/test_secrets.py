"""Keys of a provider: what may be one, and that none leaves by any of the ways that a stage has."""

from __future__ import annotations

import base64
import json
import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from medgr2_api.stage_contract import RESULT_PATH_ENV
from medgr2_jobs.store.rows.candidates import Candidate
from tests.support import jobs_fixtures
from tests.support.chat_server import Answer, ChatServer, serving
from tests.support.generate_fixtures import asked, prepare_root, start

KEY = "sk-7fQx9P'zL2m\"Vw8\\RtY4nBk+/="


@pytest.fixture
def server() -> Iterator[ChatServer]:
    with serving() as running:
        yield running


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return prepare_root(tmp_path, monkeypatch)


def _written(root: Path, output: str) -> str:
    """All that the stage wrote: its log, its result, every file on the volume."""
    files = (path for path in root.rglob("*") if path.is_file())
    return output + "".join(path.read_bytes().decode("latin-1") for path in files)


@pytest.mark.parametrize("kind", ["openAI", "gemini"])
@pytest.mark.parametrize(
    "value", [b"sk-abcdefghij\nklmnop", b"sk-abcdefghij\r\n", "sk-abcdefghij€".encode(), b"\xef\xbb\xbfsk-abcdefghij"]
)
def test_a_key_that_is_no_line_is_refused_by_name(root: Path, server: ChatServer, kind: str, value: bytes) -> None:
    (root.parent / "secrets/provider/key").write_bytes(value)
    result = root / "result.json"
    process = start(root, asked(root, server.url, kind=kind, candidates=2), **{RESULT_PATH_ENV: str(result)})
    output = process.output(120)
    assert process.returncode == 78, output
    message = json.loads(result.read_text())["message"]
    assert message.startswith("secret 'provider', key 'key': ")
    assert "one line of printable characters" in message
    assert "abcdefghij" not in _written(root, output)
    assert not server.ledger.requests


ECHOES: dict[str, Callable[[str], str]] = {
    "plain": lambda key: key,
    "repr": lambda key: repr(f"Bearer {key}"),
    "base64": lambda key: base64.b64encode(f"user:{key}".encode()).decode(),
    "url": lambda key: urllib.parse.quote(key, safe=""),
    "json": lambda key: json.dumps({"headers": {"authorization": key}}),
    "cut": lambda key: key[:16],
    "late": lambda key: "x" * 240 + key,
}


@pytest.mark.parametrize("echo", ECHOES)
@pytest.mark.parametrize("status", [400, 401, 500])
def test_a_server_that_repeats_the_key_gets_it_nowhere(root: Path, server: ChatServer, echo: str, status: int) -> None:
    (root.parent / "secrets/provider/key").write_text(KEY + "\n")
    body = json.dumps({"error": {"message": f"strange {ECHOES[echo](KEY)}"}})
    server.answer = lambda number, question: Answer(status=status, body=body)
    result = root / "result.json"
    request = asked(root, server.url, candidates=2)
    process = start(root, request, **{RESULT_PATH_ENV: str(result), "OMP_NUM_THREADS": "1"})
    output = process.output(120)
    assert server.ledger.authorizations == {f"Bearer {KEY}"}
    written = _written(root, output)
    for form in ECHOES.values():
        leaked = form(KEY).strip("'\"")[-24:]
        assert leaked not in written.replace("x" * 20, ""), leaked
    assert KEY[:12] not in written
    if status == 400:
        assert process.returncode == 75
        assert "***" in output


def test_the_key_is_not_in_the_table_of_what_was_refused(root: Path, server: ChatServer) -> None:
    (root.parent / "secrets/provider/key").write_text(KEY)
    body = json.dumps({"error": {"message": f"no {ECHOES['repr'](KEY)}"}})
    server.answer = lambda number, question: Answer(status=400, body=body) if question["seed"] % 2 else Answer()
    rows = jobs_fixtures.run(root, asked(root, server.url)).rows(Candidate)
    errors = {row.error for row in rows if row.error}
    assert errors
    assert all("***" in error and "7fQx9P" not in error for error in errors)
