"""What one picture may take of the decoder process: pixels, memory, processor time.

Sizes are computed from what a file claims, before anything is decoded. What slips through (a decoder that takes more
than the picture holds, a file that claims less than it has) meets the kernel's limits: the process fails or dies, and
the picture with it.
"""

from __future__ import annotations

import errno
import os
import resource
import signal
import stat
from typing import TypeGuard

from .protocol import BadField

MiB = 2**20
#: A picture that claims more pixels, or a DICOM frame more samples, is refused before it is decoded.
MAX_PIXELS = 120_000_000
#: Bytes that decoding one picture may take beside what the process has at rest.
MEMORY = 1280 * MiB
#: Bytes of a picture's file.
FILE = 512 * MiB
#: Seconds of processor time, not of the clock: a busy machine must not change what is read.
SECONDS = 30.0
#: Seconds on the clock, for what waits and does not work.
WAIT_SECONDS = 300.0
#: What says that the disk fails, or this machine, and not the file.
_DISK = frozenset(
    {errno.EIO, errno.ENXIO, errno.ENODEV, errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN, errno.EMFILE, errno.ENFILE}
)
_confined = False
TOO_MUCH_MEMORY = f"takes more than {MEMORY // MiB:,} MiB of memory to decode; it was given up. Scale it down first"


def is_the_disks(error: BaseException) -> TypeGuard[OSError]:
    """Whether an error is the disk's fault: then nothing is wrong with the file."""
    return isinstance(error, OSError) and error.errno in _DISK


def confine() -> None:
    """Once, when the decoder process starts: no core dumps, no file written, and from now on limits for pictures."""
    global _confined
    _confined = True
    for limit in (resource.RLIMIT_CORE, resource.RLIMIT_FSIZE):
        resource.setrlimit(limit, (0, 0))


def begin() -> None:
    """Before each picture. The kernel ends the process when its time is up, also inside a library. Nothing happens in
    another process than the decoder."""
    if not _confined:
        return
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (address_space() + MEMORY, hard))
    signal.setitimer(signal.ITIMER_PROF, SECONDS)


def end() -> None:
    """After each picture."""
    if _confined:
        signal.setitimer(signal.ITIMER_PROF, 0)


def address_space() -> int:
    """Bytes of it that this process has."""
    with open("/proc/self/statm", "rb") as file:
        return int(file.read().split()[0]) * resource.getpagesize()


def check(width: int, height: int, bytes_per_pixel: float, file_size: int = 0) -> None:
    """Refuses what would take too much.

    Args:
        width: pixels.
        height: pixels.
        bytes_per_pixel: of everything that is in memory at once.
        file_size: bytes of the file, which are in memory beside it.

    Raises:
        BadField: with the reason; the caller knows the field.
    """
    pixels = width * height
    if pixels > MAX_PIXELS:
        raise BadField(
            "-",
            f"claims {width} x {height} pixels, more than the limit of {MAX_PIXELS:,}; it was not opened. "
            "Scale it down first",
        )
    needed = pixels * bytes_per_pixel + file_size
    if needed > MEMORY:
        raise BadField(
            "-",
            f"{width} x {height} pixels of its kind take {needed / MiB:,.0f} MiB to decode, more than the limit of "
            f"{MEMORY // MiB:,} MiB; it was not opened. Scale it down first",
        )


def read_file(path: str) -> bytes:
    """The bytes of a regular file; never waits for a writer, as opening a pipe does.

    Raises:
        BadField: it is none, too large, or cannot be read.
        OSError: the disk fails.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    except FileNotFoundError:
        raise BadField("-", "image file is missing") from None
    except (OSError, ValueError) as error:
        if is_the_disks(error):
            raise
        raise BadField("-", f"cannot be opened ({what(error)})") from None
    try:
        state = os.fstat(descriptor)
        if not stat.S_ISREG(state.st_mode):
            raise BadField("-", "is a folder" if stat.S_ISDIR(state.st_mode) else "is a device or a pipe, and no file")
        if state.st_size > FILE:
            raise BadField("-", f"its file has {state.st_size / MiB:,.0f} MiB; at most {FILE // MiB} are read")
        with open(descriptor, "rb", buffering=0, closefd=False) as file:
            return file.readall()
    finally:
        os.close(descriptor)


def blamed(error: BaseException, field: str = "-", doing: str = "cannot be read") -> BadField:
    """What stands for an error in our tables: without its text, which may quote what is in the file.

    Raises:
        OSError: it is the disk's fault, and not the file's.
    """
    if isinstance(error, BadField):
        return error
    if isinstance(error, MemoryError):
        return BadField(field, TOO_MUCH_MEMORY)
    if is_the_disks(error):
        raise error
    return BadField(field, f"{doing}: {type(error).__name__}")


def what(error: BaseException) -> str:
    """An error in a few words."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(f"{error}".split())[:160] or type(error).__name__
