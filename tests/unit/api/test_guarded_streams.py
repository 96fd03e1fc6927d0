"""What a process of ours writes, by print, by a library, in a traceback, or in a forked child."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import textwrap

import pytest

from medgr2_api import printable, redaction
from medgr2_api.guarded_streams import GuardedStream, guarded

SECRET = "sk-7fQx9PzL2mVw8RtY4nBk"


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        env={**os.environ, "SOME_TOKEN": SECRET, **environment},
        check=False,
    )


@pytest.mark.parametrize(
    "how",
    [
        "print(secret)",
        "print(secret, file=sys.stderr)",
        "sys.stdout.write(secret)",
        "[print(letter, end='') for letter in secret]",
        "sys.stdout.writelines([secret[:9], secret[9:]])",
        "raise ValueError(f'Illegal header value {secret.encode()!r}')",
        "warnings.warn(secret)",
        "logging.getLogger('library').error('key %s', secret)",
        "logging.lastResort.handle(logging.makeLogRecord({'msg': secret, 'levelno': 40}))",
        "pprint.pprint({'headers': {'x': [secret] * 9}}, width=20)",
        "threading.Thread(target=lambda: 1 / len(secret[:0]) or secret).start()",
        "threading.Thread(target=fail).start()",
        "os.fork() or (print(secret), sys.stdout.flush(), os._exit(0)); os.wait()",
        "traceback.print_stack(); print(repr(repr(secret)))",
    ],
)
def test_no_way_out_shows_a_secret(how: str) -> None:
    done = run(
        f"""
        import logging, os, pprint, sys, threading, traceback, warnings
        from medgr2_api.guarded_streams import guarded
        secret = os.environ["SOME_TOKEN"]
        def fail():
            raise RuntimeError(secret)
        with guarded():
            {how}
        """
    )
    written = done.stdout + done.stderr
    assert written
    assert SECRET not in written
    assert SECRET[:12] not in written
    if "raise ValueError" in how:
        assert done.returncode == 1
        assert "ValueError: Illegal header value b'***'" in done.stderr


def test_control_characters_are_shown_not_obeyed() -> None:
    raw = io.StringIO()
    stream = GuardedStream(raw)
    stream.write("a\x1b[2Jb\rc\x07\x9b31m\u202ed\x00e\tf\ud800\n")
    assert raw.getvalue() == "a\\u001b[2Jb\\u000dc\\u0007\\u009b31m\\u202ed\\u0000e\tf\\ud800\n"


def test_what_has_no_line_break_waits_for_the_flush() -> None:
    raw = io.StringIO()
    stream = GuardedStream(raw)
    redaction.register(SECRET)
    stream.write(SECRET[:9])
    stream.write(SECRET[9:] + " and")
    assert raw.getvalue() == ""
    stream.flush()
    assert raw.getvalue() == "*** and"


def test_a_stream_of_few_characters_is_no_reason_to_fail() -> None:
    done = run(
        """
        from medgr2_api.guarded_streams import guarded
        with guarded():
            print("π \\udc80")
        """,
        PYTHONIOENCODING="ascii",
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "\\u03c0 \\udc80\n"


def test_bytes_go_past_it_and_the_streams_come_back() -> None:
    before = sys.stdout
    with guarded():
        with guarded():
            assert isinstance(sys.stdout, GuardedStream)
            assert not isinstance(sys.stdout.raw, GuardedStream)
        assert isinstance(sys.stdout, GuardedStream)
    assert sys.stdout is before
    done = run(
        """
        import sys
        from medgr2_api.guarded_streams import guarded
        with guarded():
            sys.stdout.buffer.write(b"\\x1b\\x00raw")
        """
    )
    assert done.stdout == "\x1b\x00raw"


def test_one_line_is_one_line() -> None:
    assert printable.one_line("a\n  answer: B\tc\r\x1b]0;x\x07 λ") == r"a\n  answer: B\tc\u000d\u001b]0;x\u0007 λ"
    assert printable.shown("قلب 心 – normal\n") == "قلب 心 – normal\n"
    assert printable.shown("\U000e0041") == r"\udb40\udc41"
