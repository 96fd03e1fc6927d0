"""`medgr2 lineage`, and `medgr2 report` in a workspace on this computer: what the jobs know, for people."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from medgr2_api import paths as names
from medgr2_api.stage_contract import ExitCode

from .errors import CommandError

_SHOWN_DIGEST = 12


def local_story(workspace: Path, cycle: str, triplet: str) -> bytes:
    """A candidate's story as JSON. It is in parquet: a process of its own reads it.

    Raises:
        CommandError: no such cycle or candidate, or nothing here that reads parquet.
    """
    if importlib.util.find_spec("pyarrow") is None:
        raise CommandError("lineage reads parquet, which needs the jobs' packages: pip install 'medgr2[jobs]'")
    command = [sys.executable, "-m", "medgr2_jobs.report.lineage", cycle, triplet, "--workspace", str(workspace)]
    done = subprocess.run(command, capture_output=True, check=False)
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        raise CommandError(lines[-1] if lines else f"exit code {done.returncode}", done.returncode)
    return done.stdout


def print_story(document: bytes, as_json: bool) -> int:
    """Prints a story: as it came, or in words."""
    story = json.loads(document)
    if as_json:
        print(json.dumps(story, indent=1, ensure_ascii=False))
        return ExitCode.OK
    print(f"{story['triplet']} of cycle {story['cycle']}, iteration {story['iteration']}")
    for label, text in _lines(story):
        print(f"  {label:<10} {text}")
    return ExitCode.OK


def _lines(story: dict[str, Any]) -> list[tuple[str, str]]:
    image, prompt = story["image"], story["prompt"]
    source = f"{image['source']}: {image['sourcePath']}" if image.get("source") else ""
    found = [
        ("image", ", ".join(filter(None, [image.get("modality"), source, image["path"]]))),
        ("prompt", f"{prompt['paradigm']}, template {prompt['templateSha256'][:_SHOWN_DIGEST]}"),
        ("generator", story["generator"]),
        *([("cost", cost)] if (cost := _cost(story.get("cost") or {})) else []),
    ]
    if story["outcome"] not in (None, "ok"):
        outcome = ": ".join(filter(None, [story["outcome"], story.get("error")]))
        return [*found, ("outcome", outcome), ("decision", _decision(story))]
    found.append(("question", story["question"]))
    if story["options"]:
        found.append(("options", " | ".join(story["options"])))
        found.append(("answer", story["answer"] or "none of them"))
    if story["rationale"]:
        found.append(("rationale", story["rationale"]))
    return [
        *found,
        ("score", _score(story)),
        ("decision", _decision(story)),
        ("seen by", ", ".join(story["seenBy"]) or "no policy so far"),
    ]


def _cost(cost: dict[str, Any]) -> str:
    """What asking took, as far as it was counted; empty for the scripted generator, which asks nobody."""
    if cost.get("inputTokens") is None:
        return ""
    tokens = f"{cost['inputTokens']} tokens in, {cost.get('outputTokens') or 0} out"
    thought = f", {cost['thinkingTokens']} of thinking" if cost.get("thinkingTokens") else ""
    tries = f"{cost['attempts']} requests, " if (cost.get("attempts") or 1) > 1 else ""
    usd = f", {cost['usd']:.6f} USD" if cost.get("usd") is not None else ""
    return f"{tries}{tokens}{thought}{usd}"


def _score(story: dict[str, Any]) -> str:
    if story["score"] is None:
        return "none so far"
    by = story["scoredBy"]
    model = f", by {by['stage'] or 'reward model ' + by['digest'][:_SHOWN_DIGEST]}" if by else ""
    return f"{story['score']:.2f}{model}"


def _decision(story: dict[str, Any]) -> str:
    if story["keep"] is None:
        return "none so far"
    return "kept" if story["keep"] else f"rejected: {', '.join(story['reasons']) or 'no reason given'}"


def local_report(workspace: Path, cycle: str) -> int:
    """Says where the report of a cycle that was run here is.

    Raises:
        CommandError: there is none.
    """
    folder = workspace / names.report(cycle)
    if not (folder / "report.md").is_file():
        known = sorted(path.parent.name for path in workspace.glob("cycles/*/report"))
        raise CommandError(f"no report of {cycle} in {workspace}; cycles with one: {', '.join(known) or 'none'}")
    print(f"report: {folder / 'report.md'}")
    return ExitCode.OK
