"""Credentials of a kubeconfig are secrets: one printable line, taken out of whatever leaves the process."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
import yaml

from medgr2_api.redaction import redact
from medgr2_operator.kube.kubeconfig import KubeconfigError, connect

TOKEN = "7fQx9PzL2mVw8RtY4nBk"


def _file(folder: Path, user: dict[str, Any]) -> str:
    path = folder / "kubeconfig"
    document = {
        "apiVersion": "v1", "kind": "Config", "current-context": "c", "users": [{"name": "u", "user": user}],
        "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u", "namespace": "lab"}}],
        "clusters": [{"name": "k", "cluster": {"server": "https://127.0.0.1:1"}}],
    }  # fmt: skip
    path.write_text(yaml.safe_dump(document))
    return str(path)


async def _namespace(file: str) -> str:
    async with connect(file) as (_, namespace):
        return namespace


def test_a_token_is_taken_out_of_what_is_said(tmp_path: Path) -> None:
    assert asyncio.run(_namespace(_file(tmp_path, {"token": TOKEN}))) == "lab"
    assert redact(f"refused: {TOKEN!r}") == "refused: '***'"


@pytest.mark.parametrize("token", [f"{TOKEN}\nx", f"{TOKEN}\r", f"{TOKEN}é", f'"{TOKEN}"'])
def test_a_token_that_is_no_line_is_refused_without_being_shown(tmp_path: Path, token: str) -> None:
    with pytest.raises(KubeconfigError) as caught:
        asyncio.run(_namespace(_file(tmp_path, {"token": token})))
    assert "must be one line of printable characters" in str(caught.value)
    assert TOKEN[:6] not in str(caught.value)
