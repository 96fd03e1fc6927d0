"""What `kubectl explain` and `--help` say: whole, useful sentences, and nothing that only we can look up."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from typer.main import get_command

from medgr2_api.crd import openapi
from medgr2_operator.cli.app import app

#: Numbers of our decision records, and words that only who wrote them understands.
PRIVATE = re.compile(r"DECISIONS\b|decisions\.md|\bADR\b|\bhouse\b|without a word")
#: A fragment that needs the line above it to be understood.
FRAGMENT = re.compile(r"(?:Of|As|Whose|Which|For|When|Until|Also|Such as)\b(?:[^,:;]{0,24})\.?")


def descriptions(schema: dict[str, Any], place: str = "") -> Iterator[tuple[str, str]]:
    """(place, description) of every field that has one."""
    if text := schema.get("description"):
        yield place, text
    for name, field in (schema.get("properties") or {}).items():
        yield from descriptions(field, f"{place}.{name}")
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), dict):
            yield from descriptions(schema[key], f"{place}[]")


def helps(command: Any, place: str) -> Iterator[tuple[str, str]]:
    """(place, text) of every command, argument and option."""
    yield place, command.help or ""
    for parameter in command.params:
        if not parameter.name.startswith(("install_completion", "show_completion", "help")):
            yield f"{place} {parameter.name}", getattr(parameter, "help", "") or ""
    for name, inner in getattr(command, "commands", {}).items():
        yield from helps(inner, f"{place} {name}")


FIELDS = list(descriptions(openapi()))
HELPS = list(helps(get_command(app), "medgr2"))


def test_there_is_something_to_read() -> None:
    assert len(FIELDS) > 250
    assert len(HELPS) > 60


@pytest.mark.parametrize(("texts", "shortest"), [(FIELDS, 20), (HELPS, 10)], ids=["fields", "help"])
def test_every_text_is_a_useful_sentence(texts: list[tuple[str, str]], shortest: int) -> None:
    bad = [
        (place, text)
        for place, text in texts
        if len(text) < shortest
        or len(text.split()) < 2
        or PRIVATE.search(text)
        or FRAGMENT.fullmatch(text)
        or not text.strip().endswith((".", "…", ")", ":", "`"))
    ]
    assert not bad, "\n".join(f"{place}: {text}" for place, text in bad)
