"""Takes secrets out of texts on their way out: logs, results, conditions, events, tables, the terminal.

A value that was read (`secret_value.py`) is found in whatever form a library prints it: with escapes of Python, JSON,
HTML or URLs (also one inside another), as base64 (alone or in a `user:password` pair), as hex, folded over lines, or in
part. What nobody registered is found where its surroundings give it away: authorization headers, signed URLs,
well-known shapes of keys.
"""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Iterator, Mapping
from typing import Any

MARK = "***"

#: Consecutive characters of a secret that are taken out wherever they stand: less says too little of it.
_PART = 10
#: Shorter values are ordinary words: they are taken out where they stand alone.
_WORD = 8
#: Every run of `_WORD` characters has one of `_HINT` that begins at a multiple of `_STRIDE`.
_HINT, _STRIDE = 5, 4
#: What libraries write instead of a character, or between two of them. Numbered groups hold the character's code.
_WRITTEN = re.compile(
    r"""
      %(?:25)*([0-9A-Fa-f]{2})                                             # URLs
    | &(?:amp;)*(?:\#(\d{1,3})|\#[xX]([0-9A-Fa-f]{1,2})|(quot|amp|apos|lt|gt));  # HTML
    | \\+(?:x([0-9A-Fa-f]{2})|u00([0-9A-Fa-f]{2})|[rnt])                    # Python, JSON
    | [\s\\'"\u200b\ufeff]+
    """,
    re.VERBOSE,
)
_PASSED_OVER = re.compile("[\\s'\"\u200b\ufeff]+")
_UPPER = {code: code + 32 for code in range(ord("A"), ord("Z") + 1)}

_VALUE = r"""[^\s'",;&<>(){}\[\]\\]"""
_SEPARATOR = r"""[\\'"]*\s*[:=,]\s*(?:[\\'"(\[]|b(?=[\\'"]))*\s*"""
#: Words one of which is in a text that has it, what gives a secret away → what is left of it.
_PATTERNS: tuple[tuple[tuple[str, ...], re.Pattern[str], str], ...] = tuple(
    (tuple(words.split()), re.compile(pattern, re.IGNORECASE), left)
    for words, pattern, left in (
        # a header with its scheme, as text, as a tuple or in a dict
        (
            "authorization",
            rf"((?:proxy-)?authorization{_SEPARATOR})(?:(?:bearer|basic|token|digest)\s+)?{_VALUE}+",
            rf"\1{MARK}",
        ),
        ("bearer", r"\b(bearer[ \t]+)(?=[^\s]*[\d._~+/-])[A-Za-z0-9._~+/=-]{6,}", rf"\1{MARK}"),
        ("bearer", r"\b(bearer[ \t]+)[A-Za-z0-9._~+/=-]{20,}", rf"\1{MARK}"),
        ("basic", r"\b(basic[ \t]+)(?=[A-Za-z]*[\d+/=])[A-Za-z0-9+/]{8,}={0,2}", rf"\1{MARK}"),
        (
            "key token secret cookie password",
            r"((?:x-goog-api-key|x-api-key|api[-_ ]?key|x-amz-security-token|x-auth-token|access[-_]token|auth[-_]token"
            rf"|hf[-_]token|secret[-_]access[-_]key|client[-_]secret|set-cookie|cookie|password){_SEPARATOR}){_VALUE}{{6,}}",
            rf"\1{MARK}",
        ),
        (
            "=",
            r"([?&;](?:amp;)?(?:x-amz-(?:signature|credential|security-token)|x-goog-(?:signature|credential)|signature|sig"
            r"|awsaccesskeyid|googleaccessid|api[-_]?key|key|access[-_]?token|token|password|secret)=)[^&;#\s'\"<>\\]+",
            rf"\1{MARK}",
        ),
        ("://", r"(://)[^/\s:@'\"]*:[^/\s@'\"]+@", rf"\1{MARK}@"),
        (
            "sk- hf_ gh xox akia asia aiza",
            r"\b(?:sk-|hf_|gh[pousr]_|xox[abprs]-|AKIA|ASIA|AIza)[A-Za-z0-9_-]{16,}",
            MARK,
        ),
        ("eyj", r"\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}(?:\.[A-Za-z0-9_-]*)?", MARK),
        ("-----begin", r"-----BEGIN [A-Z ]*PRIVATE KEY-----[\s\S]*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", MARK),
    )
)
_ENVIRONMENT = re.compile(r"(TOKEN|API_?KEY|SECRET|PASSWORD|PASSWD|CREDENTIAL|ACCESS_KEY)", re.IGNORECASE)
_NO_SECRET = re.compile(r"(_DIR|_FILE|_PATH|_URL|_URI|_ENDPOINT)$|^TOKENIZERS_", re.IGNORECASE)


class Redactor:
    """Knows secrets, and takes them out of texts."""

    def __init__(self) -> None:
        self._parts: dict[int, set[str]] = {}
        """Runs of a length's characters of any form of a secret, as `_read` gives them."""
        self._hints: set[str] = set()
        """Their runs of five characters: nearly every text has none of them, and that is soon seen."""
        self._words: set[str] = set()

    def register(self, value: str) -> None:
        """Takes this value out of every text from now on."""
        if not value.strip():
            return
        if len(value) < _WORD:
            self._words.add(value)
        for form in _forms(value):
            length = min(_PART, len(form))
            if length >= _WORD:
                runs = (form[start : start + length] for start in range(len(form) - length + 1))
                self._parts.setdefault(length, set()).update(runs)
                self._hints.update(form[start : start + _HINT] for start in range(len(form) - _HINT + 1))

    def register_environment(self, environment: Mapping[str, str]) -> None:
        """Takes out what the names of variables call a secret: libraries read it without asking us."""
        for name, value in environment.items():
            if _ENVIRONMENT.search(name) and not _NO_SECRET.search(name) and len(value) >= _WORD:
                self.register(value)

    def redact(self, text: str) -> str:
        """The text with `***` for every secret in it."""
        if self._parts:
            text = self._without_parts(text)
        for word in self._words:
            text = re.sub(rf"(?<!\w){re.escape(word)}(?!\w)", MARK, text)
        lower = text.lower()
        for words, pattern, left in _PATTERNS:
            if any(word in lower for word in words):
                text = pattern.sub(left, text)
        return text

    def _without_parts(self, text: str) -> str:
        escapes = any(character in text for character in "%&\\")
        plain = (_WRITTEN.sub(_letter, text) if escapes else _PASSED_OVER.sub("", text)).translate(_UPPER)
        if self._hints.isdisjoint(plain[start : start + _HINT] for start in range(0, len(plain), _STRIDE)):
            return text
        letters, starts, ends = _read(text)
        hidden: list[tuple[int, int]] = []
        for length, parts in self._parts.items():
            for first in range(len(letters) - length + 1):
                if letters[first : first + length] in parts:
                    hidden.append((starts[first], ends[first + length - 1]))
        left: list[str] = []
        at = 0
        for start, end in sorted(hidden):
            if start > at or not left:
                left += [text[at:start], MARK]
            at = max(at, end)
        return "".join([*left, text[at:]]) if hidden else text


def _forms(value: str) -> Iterator[str]:
    """What to look for in a text that was read."""
    data = value.encode("utf-8", "surrogatepass")
    for written in (value, value.replace(" ", "+"), data.decode("latin-1")):
        yield _read(written)[0]
    yield data.hex()
    for before in range(3):  # base64 writes three bytes at a time: the secret may begin at any of them
        encoded = base64.b64encode(b"\0" * before + data)
        whole = (before + len(data)) // 3 * 4
        inner = encoded[(before * 8 + 5) // 6 : whole].decode()
        yield _read(inner)[0]
        yield _read(inner.translate(str.maketrans("+/", "-_")))[0]


def _read(text: str) -> tuple[str, list[int], list[int]]:
    """The characters that a text stands for, in lower case, without quotes, backslashes and white space, and where each
    begins and ends in it."""
    letters: list[str] = []
    starts: list[int] = []
    ends: list[int] = []

    def add(letter: str, start: int, end: int) -> None:
        letters.append(letter)
        starts.append(start)
        ends.append(end)

    at = 0
    for match in _WRITTEN.finditer(text):
        for index in range(at, match.start()):
            add(text[index], index, index + 1)
        at = match.end()
        if letter := _letter(match):
            add(letter, match.start(), match.end())
    for index in range(at, len(text)):
        add(text[index], index, index + 1)
    return "".join(letters).translate(_UPPER), starts, ends


def _letter(match: re.Match[str]) -> str:
    """The character that is written so; empty: it is none, or one that is passed over."""
    if hexadecimal := match[1] or match[3] or match[5] or match[6]:
        letter = chr(int(hexadecimal, 16))
    elif match[2]:
        letter = chr(int(match[2]))
    elif match[4]:
        letter = html.unescape(f"&{match[4]};")
    else:
        return ""
    return "" if _WRITTEN.fullmatch(letter) else letter


_process = Redactor()


def register(value: str) -> None:
    """Takes this value out of every text that leaves this process from now on."""
    _process.register(value)


def register_environment(environment: Mapping[str, str]) -> None:
    """Takes out of every text what the names of these variables call a secret."""
    _process.register_environment(environment)


def redact(text: str) -> str:
    """A text as it may leave this process."""
    return _process.redact(text)


def redact_values(document: Any) -> Any:
    """A JSON document with every text in it as it may leave this process."""
    if isinstance(document, str):
        return redact(document)
    if isinstance(document, dict):
        return {key: redact_values(value) for key, value in document.items()}
    if isinstance(document, list | tuple):
        return [redact_values(value) for value in document]
    return document
