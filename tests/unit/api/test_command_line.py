"""How a command line ends: a sentence and an exit code, whatever happened."""

from __future__ import annotations

import errno
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from medgr2_api.command_line import explain
from medgr2_api.stage_contract import ExitCode


class OurError(Exception):
    exit_code = ExitCode.DATA_ERROR


@pytest.mark.parametrize(
    ("error", "text", "code"),
    [
        (OurError("row 7: no answer"), "row 7: no answer", 65),
        (KeyboardInterrupt(), "interrupted", 130),
        (BrokenPipeError(), "", 0),
        (
            FileNotFoundError(errno.ENOENT, "No such file or directory", "a.yaml"),
            "a.yaml: No such file or directory",
            2,
        ),
        (PermissionError(errno.EACCES, "Permission denied", Path("b")), "b: Permission denied", 2),
        (OSError(errno.EROFS, "Read-only file system", "c"), "c: Read-only file system", 2),
        (OSError(errno.ENOSPC, "No space left on device", "d"), "d: No space left on device", 75),
        (OSError(errno.EXDEV, "Invalid cross-device link", "e", None, "f"), "e → f: Invalid cross-device link", 2),
        (ConnectionRefusedError(errno.ECONNREFUSED, "refused"), "no connection: [Errno 111] refused", 75),
        (TimeoutError("30 s"), "no connection: 30 s", 75),
        (MemoryError(), "out of memory", 75),
        (ModuleNotFoundError("No module named 'torch'", name="torch.nn"), "the package torch is not installed", 78),
    ],
)
def test_an_exception_in_words(error: BaseException, text: str, code: int) -> None:
    said, ended = explain(error)
    assert said.startswith(text)
    assert bool(said) == bool(text)
    assert ended == code


def test_what_nobody_foresaw_is_a_fault_of_ours() -> None:
    text, code = explain(KeyError("status"))
    assert text.startswith("KeyError: 'status' (a fault of medgr2: please report it; MEDGR2_DEBUG=1")
    assert code == 1


def run(body: str, redirect: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    """A program that ends by `command_line.end`, from a shell."""
    program = f"from medgr2_api import command_line\n{textwrap.dedent(body)}\ncommand_line.end(main)"
    return subprocess.run(
        ["bash", "-c", f'set -o pipefail; "$0" -c "$1" {redirect}', sys.executable, program],
        capture_output=True,
        text=True,
        env={"PATH": "/usr/bin:/bin", **environment},
        check=False,
    )


MUCH = """
def main():
    for number in range(100_000):
        print(number)
"""
FAILS = "def main(): return {}['missing']"


def test_a_traceback_only_when_it_is_asked_for() -> None:
    plain, debug = run(FAILS), run(FAILS, MEDGR2_DEBUG="1")
    assert (plain.returncode, debug.returncode) == (1, 1)
    assert "Traceback" not in plain.stderr
    assert "KeyError: 'missing'" in plain.stderr
    assert "Traceback" in debug.stderr


@pytest.mark.parametrize(
    ("redirect", "code", "said"),
    [
        ("| head -1", 0, ""),
        (">&-", 0, ""),
        ("2>&- >&- <&-", 0, ""),
        ("> /dev/full", 75, "No space left on device"),
        ("2> /dev/full", 0, ""),
    ],
)
def test_streams_that_take_nothing(redirect: str, code: int, said: str) -> None:
    done = run(MUCH, redirect)
    assert done.returncode == code, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("end", ["", "\\n"])
@pytest.mark.parametrize("count", [1, 100_000])
@pytest.mark.parametrize(("redirect", "code"), [("| true", 0), ("> /dev/full", 75)])
def test_output_of_any_length_and_end_that_cannot_be_written(
    redirect: str, code: int, count: int, end: str, unbuffered: str
) -> None:
    body = f"""
        def main():
            print("line\\n" * {count} + "last", end="{end}")
            return 0
    """
    done = run(body, redirect, PYTHONUNBUFFERED=unbuffered)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
    assert len(done.stderr.splitlines()) == (1 if code else 0), done.stderr


def test_output_that_nobody_reads_hides_no_failure() -> None:
    body = """
        def main():
            print("line\\n" * 100, end="last")
            return 65
    """
    assert run(body, "> /dev/full").returncode == 65


def test_no_file_of_ours_takes_the_place_of_a_closed_stream(tmp_path: Path) -> None:
    body = f"""
    def main():
        import os
        with open({str(tmp_path / "state.json")!r}, "w") as stream:
            print("not for the file")
            os.write(1, b"nor this")
            stream.write("the state")
    """
    assert run(body, ">&-").returncode == 0
    assert (tmp_path / "state.json").read_text() == "the state"


def test_exit_codes_of_others_stay() -> None:
    assert run("def main(): return 65").returncode == 65
    assert run("import sys\ndef main(): sys.exit(3)").returncode == 3
    assert run("def main(): pass").returncode == 0


def test_an_interrupt_at_any_moment() -> None:
    done = run("import os, signal\ndef main(): os.kill(os.getpid(), signal.SIGINT)")
    assert (done.returncode, done.stderr.strip()) == (130, "interrupted")
