"""The decoders that this process has started, and what memory they took."""

from __future__ import annotations

from pathlib import Path

import psutil


def decoders() -> list[psutil.Process]:
    """Those that run. The process of a test may have other children as well."""
    return [child for child in psutil.Process().children() if any("decoder" in word for word in child.cmdline())]


def peak_memory() -> int:
    """Bytes that the only running decoder has had at most."""
    [decoder] = decoders()
    status = Path(f"/proc/{decoder.pid}/status").read_text()
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])
