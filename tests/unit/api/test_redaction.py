"""Secrets in every form that a library may print."""

from __future__ import annotations

import base64
import email.header
import html
import json
import random
import string
import urllib.parse
from email.message import EmailMessage
from pathlib import Path

import pytest

from medgr2_api import redaction, secret_value
from medgr2_api.redaction import Redactor

PLAIN = "sk-7fQx9PzL2mVw8RtY4nBk"
HARD = "a'b\"c\\d e&f<g>h%i+j/k=l?m#nöp"
#: As a test of ours would pick it: words that also stand in ordinary texts.
SHORT = "hunter"


def _part_of(secret: str, text: str, length: int = 10) -> bool:
    return any(secret[start : start + length] in text for start in range(len(secret) - length + 1))


FORMS = {
    "plain": lambda s: f"key {s} refused",
    "repr": repr,
    "repr of repr": lambda s: repr(repr(f"Bearer {s}\n")),
    "bytes": lambda s: repr(f"Bearer {s}\n".encode()),
    "bytearray": lambda s: repr(bytearray(s.encode())),
    "json": lambda s: json.dumps({"key": s}),
    "json in json": lambda s: json.dumps({"body": json.dumps({"key": s})}),
    "exception": lambda s: repr(ValueError(f"Illegal header value {f'Bearer {s}'.encode()!r}")),
    "url": lambda s: "https://host/v1?x=" + urllib.parse.quote(s, safe=""),
    "url, lower case": lambda s: urllib.parse.quote(s, safe="").lower(),
    "url twice": lambda s: urllib.parse.quote(urllib.parse.quote(s, safe=""), safe=""),
    "form": lambda s: urllib.parse.urlencode({"x": s}),
    "html": lambda s: f"<p>{html.escape(s)}</p>",
    "base64": lambda s: base64.b64encode(s.encode()).decode(),
    "urlsafe base64": lambda s: base64.urlsafe_b64encode(s.encode()).decode(),
    "pair": lambda s: base64.b64encode(f"u:{s}".encode()).decode(),
    "pair, user of two": lambda s: base64.b64encode(f"ab:{s}".encode()).decode(),
    "pair, user of three": lambda s: base64.b64encode(f"abc:{s}@host".encode()).decode(),
    "MIME base64": lambda s: base64.encodebytes((s * 5).encode()).decode(),
    "hex": lambda s: s.encode().hex(),
    "upper": str.upper,
    "folded": lambda s: f"X-Key: {s[:11]}\r\n {s[11:]}",
    "folded, in repr": lambda s: repr(f"X-Key: {s[:11]}\r\n\t{s[11:]}"),
    "concatenated literals": lambda s: f"('{s[:11]}'\n '{s[11:]}')",
    "beginning": lambda s: f"… {s[:14]}",
    "end": lambda s: f"{s[-14:]} …",
}  # fmt: skip


@pytest.mark.parametrize("secret", [PLAIN, HARD])
@pytest.mark.parametrize("form", FORMS)
def test_a_registered_value_does_not_leave_in_any_form(secret: str, form: str) -> None:
    redactor = Redactor()
    redactor.register(secret)
    written = FORMS[form](secret)
    left = redactor.redact(written)
    assert "***" in left
    for other in FORMS:  # nothing of it is left, in this form or another
        assert not _part_of(FORMS[other](secret), left, 14) or _part_of(FORMS[other]("other text here…"), left, 14)
    assert not _part_of(secret, left)


def test_forms_at_random() -> None:
    """Up to three layers of writing over random secrets: no run of 12 characters is left when they are read back."""
    rng = random.Random(7)
    layers = [
        repr,
        json.dumps,
        lambda s: urllib.parse.quote(s, safe=""),
        html.escape,
        lambda s: repr(s.encode()),
        lambda s: f"before {s} after",
    ]
    for _ in range(300):
        secret = "".join(rng.choice(string.ascii_letters + string.digits + "-_/+=.~!@$^*()") for _ in range(32))
        redactor, text = Redactor(), secret
        redactor.register(secret)
        for layer in rng.choices(layers, k=3):
            text = layer(text)
        left = redactor.redact(text)
        squeezed = urllib.parse.unquote(urllib.parse.unquote(html.unescape(left))).replace("\\", "")
        assert not _part_of(secret, squeezed, 12), (secret, text, left)


def test_a_header_as_the_email_package_folds_it() -> None:
    message = EmailMessage()
    message["X-Key"] = email.header.Header(PLAIN + PLAIN[::-1] * 6, maxlinelen=40).encode()
    redactor = Redactor()
    redactor.register(PLAIN + PLAIN[::-1] * 6)
    assert not _part_of(PLAIN, redactor.redact(message.as_string()))


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        ("Authorization: Bearer abc", "abc"),
        ("{'Authorization': 'Bearer a1b2c3d4'}", "a1b2c3d4"),
        ("[(b'authorization', b'Basic dXNlcjpwYXNz')]", "dXNlcjpwYXNz"),
        ('{"Authorization": "Token 0123abcd"}', "0123abcd"),
        ("Illegal header value b'Bearer ya29.a0AfH6SM'", "a0AfH6SM"),
        ("headers: x-goog-api-key: AbCdEfGh123", "AbCdEfGh123"),
        ("{'x-api-key': 'AbCdEfGh123'}", "AbCdEfGh123"),
        ("api_key=abcdef123456, model=x", "abcdef123456"),
        ("GET https://h/v1/models:generate?key=AbCd-12&alt=sse", "AbCd-12"),
        ("https://b.s3.example/k?X-Amz-Credential=AKID%2F2026&X-Amz-Signature=0f3c&x=1", "0f3c"),
        ("https://b.s3.example/k?X-Amz-Credential=AKIDEXAM%2F2026&X-Amz-Signature=0f3c&x=1", "AKIDEXAM"),
        ("https://s.example/f?Expires=1&amp;Signature=aB%2Bc&amp;Key-Pair-Id=1", "aB%2Bc"),
        ("https://s.example/f?sv=1&sig=aBcD%3D", "aBcD"),
        ("proxy http://anna:geheim@proxy.example:3128 refused", "geheim"),
        ("token hf_abcdefghijklmnopqrstuvwx is not valid", "abcdefgh"),
        ("Incorrect API key provided: sk-abcdefghijklmnopqrstuv.", "abcdefgh"),
        ("got eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJ4In0.c2ln", "eyJzdWIi"),
        ("-----BEGIN RSA PRIVATE KEY-----\nMIIE\n-----END RSA PRIVATE KEY-----", "MIIE"),
    ],
)
def test_what_nobody_registered_is_found_by_its_surroundings(text: str, secret: str) -> None:
    left = Redactor().redact(text)
    assert secret not in left
    assert "***" in left


@pytest.mark.parametrize(
    "text",
    [
        "generator.openai.apiKeySecretRef: must be given",
        "HTTP 401: the server refuses the API key",
        "secret 'openai' has no key 'api-key' (looked for text in /secrets/openai/api-key)",
        "basic questions about Basic_Medical_Science, the bearer of the finding",
        "iteration 2: sha256 0f3c0f3c0f3c0f3c0f3c0f3c0f3c0f3c, https://host:8000/v1?x=1",
        "1200 tokens in, 300 out; token: <image>",
    ],
)
def test_ordinary_messages_stay_as_they_are(text: str) -> None:
    redactor = Redactor()
    redactor.register(PLAIN)
    assert redactor.redact(text) == text


def test_a_short_value_is_taken_out_where_it_stands_alone() -> None:
    redactor = Redactor()
    redactor.register(SHORT)
    assert redactor.redact("password hunter, of the hunters") == "password ***, of the hunters"


def test_the_environment_is_known_by_its_names() -> None:
    redactor = Redactor()
    redactor.register_environment({"HF_TOKEN": PLAIN, "MEDGR2_SECRETS_DIR": "/var/run/secrets", "HOME": "/home/anna"})
    assert redactor.redact(f"{PLAIN} in /var/run/secrets of /home/anna") == "*** in /var/run/secrets of /home/anna"


def test_documents_keep_their_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    redactor = Redactor()
    redactor.register(PLAIN)
    monkeypatch.setattr(redaction, "_process", redactor)
    document = {"a": [1, f"x {PLAIN}", None, True], "b": {"c": PLAIN}}
    assert redaction.redact_values(document) == {"a": [1, "x ***", None, True], "b": {"c": "***"}}


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"sk-abc\ndef", "a line break"),
        (b"sk-abcdef\n\n", "a line break"),
        (b"sk-abcdef\r\n", "a carriage return"),
        (b"sk-abc\rdef", "a carriage return"),
        (b"sk-abc\0def", "a NUL"),
        (b"sk-abc\tdef", "a tab"),
        (b"sk-abcdef\t", "a tab"),
        (b" sk-abcdef", "spaces around"),
        (b"sk-abcdef \n", "spaces around"),
        (b"\xef\xbb\xbfsk-abcdef", "byte order mark"),
        ("sk-abcdéf".encode(), "not ASCII"),
        ("sk-abc​def".encode(), "not ASCII"),
        ("sk-abc\u2028def".encode(), "not ASCII"),
        (b"sk-\xff\xfeabc", "not ASCII"),
        (b"sk-abc\x1b[0m", "control character"),
        (b"sk-abc\x7f", "not ASCII"),
        (b'"sk-abcdef"', "quotes"),
        (b"'sk-abcdef'\n", "quotes"),
        (b"", "empty"),
        (b"\n", "empty"),
        (b"   ", "empty"),
        (b"a" * 20_000, "more than"),
    ],
)
def test_only_one_printable_line_is_a_secret(data: bytes, why: str) -> None:
    with pytest.raises(secret_value.SecretError) as caught:
        secret_value.read(data, "secret 'openai', key 'api-key'")
    message = str(caught.value)
    assert message.startswith("secret 'openai', key 'api-key': ")
    assert why in message
    for part in ("sk-", "abc", "def", "aaaa"):
        assert part not in message.split(";")[0].replace("secret 'openai', key 'api-key'", "")


def test_one_line_break_at_the_end_is_none_of_it(tmp_path: Path) -> None:
    assert secret_value.read(b"sk-abcdef with space!\n", "s") == "sk-abcdef with space!"
    assert redaction.redact("got sk-abcdef with space!") == "got ***"
