"""The one reader of secrets: provider keys, tokens of the hub, keys of stores, and those of the command line.

A value is used in a header or a signature, where anything but one printable line either fails in a library, which then
quotes it, or is a pasting error. So it is refused here, by name and without its value.
"""

from __future__ import annotations

from . import redaction

_LONGEST = 16 * 1024
_QUOTES = "\"'`"


class SecretError(ValueError):
    """The value cannot be used; the message does not quote it."""


def read(data: bytes | str, what: str) -> str:
    """A secret's value; from now on it is taken out of whatever leaves this process.

    Args:
        data: what its file or variable holds; one line break at the end is not part of it.
        what: names it in the message, such as `secret 'openai', key 'api-key'`.

    Raises:
        SecretError: it is empty, or anything but one line of printable ASCII without white space and quotes around it.
    """
    if isinstance(data, str):
        data = data.encode("utf-8", "surrogateescape")
    line = data.removesuffix(b"\n")
    if problem := _problem(line):
        raise SecretError(
            f"{what}: {problem}; it must be one line of printable characters, and nothing else. Write it anew, for "
            "example with printf '%s' (its value is not shown here)"
        )
    value = line.decode("ascii")
    redaction.register(value)
    return value


def _problem(line: bytes) -> str:
    """What is wrong; empty: nothing. It says nothing of the value but kinds of characters."""
    if not line.strip():
        return "is empty"
    if len(line) > _LONGEST:
        return f"has more than {_LONGEST} bytes"
    if line.startswith((b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")):
        return "begins with a byte order mark"
    for byte, name in ((b"\r", "a carriage return (a file of Windows?)"), (b"\n", "a line break"), (b"\0", "a NUL"),
                       (b"\t", "a tab")):  # fmt: skip
        if byte in line:
            return f"holds {name}"
    if any(byte > 0x7E for byte in line):
        return "holds a character that is not ASCII"
    if any(byte < 0x20 for byte in line):
        return "holds a control character"
    if line != line.strip():
        return "has spaces around it"
    if len(line) > 1 and line[0] == line[-1] and chr(line[0]) in _QUOTES:
        return "has quotes around it"
    return ""
