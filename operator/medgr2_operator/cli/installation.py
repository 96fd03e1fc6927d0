"""Which packages of an extra are missing, and the command that installs them into this environment."""

from __future__ import annotations

import json
import re
import shlex
import sys
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path
from urllib.parse import unquote, urlsplit

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def missing(extra: str) -> list[str]:
    """Packages of an extra of ours that are not installed."""
    wanted = [line for line in distribution("medgr2").requires or () if f'extra == "{extra}"' in line.replace("'", '"')]
    names = (match[0] for line in wanted if (match := _NAME.match(line)))
    return [name for name in names if not _is_installed(name)]


def install_command(extra: str) -> str:
    """What to type: from where this installation came, and for the Python that runs it."""
    origin = json.loads(distribution("medgr2").read_text("direct_url.json") or "{}")
    url = str(origin.get("url", ""))
    words = [sys.executable, "-m", "pip", "install"]
    if not url:
        return shlex.join([*words, f"medgr2[{extra}]"])
    if not url.startswith("file:"):
        return shlex.join([*words, f"medgr2[{extra}] @ {url}"])
    source = unquote(urlsplit(url).path)
    constraints = Path(source, "constraints.txt")
    words += ["--constraint", str(constraints)] if constraints.is_file() else []
    editable = origin.get("dir_info", {}).get("editable", False)
    return shlex.join([*words, *(["--editable"] if editable else []), f"{source}[{extra}]"])


def _is_installed(name: str) -> bool:
    try:
        version(name)
    except PackageNotFoundError:
        return False
    return True
