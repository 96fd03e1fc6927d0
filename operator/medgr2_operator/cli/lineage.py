"""`medgr2 lineage`: what the jobs know, in words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from medgr2_api.printable import one_line
from medgr2_api.stage_contract import ExitCode

from . import jobs_process

_SHOWN_DIGEST = 12


def local_lineage(workspace: Path, cycle: str, triplet: str, as_json: bool) -> int:
    """Prints a candidate's lineage, or that of all of them as JSON lines.

    Raises:
        CommandError: no such cycle or candidate, or nothing here that reads parquet.
    """
    jobs_process.require("lineage")
    options = ("--workspace", str(workspace))
    if not triplet:
        return jobs_process.run("report.lineage", cycle, *options)
    return print_lineage(jobs_process.output("report.lineage", cycle, triplet, *options), as_json)


def print_lineage(document: bytes, as_json: bool) -> int:
    """Prints a lineage: as it came, or in words."""
    lineage = json.loads(document)
    if as_json:
        print(json.dumps(lineage, indent=1, ensure_ascii=False))
        return ExitCode.OK
    print(f"{one_line(lineage['triplet'])} of cycle {lineage['cycle']}, iteration {lineage['iteration']}")
    for label, text in _lines(lineage):
        print(f"  {label:<10} {one_line(text)}")
    return ExitCode.OK


def _lines(lineage: dict[str, Any]) -> list[tuple[str, str]]:
    if lineage["image"] is None:  # what generate published is not there any more
        return _outcome_lines(lineage)
    image, prompt = lineage["image"], lineage["prompt"]
    source = f"{image['source']}: {image['sourcePath']}" if image.get("source") else ""
    lines = [
        ("image", ", ".join(filter(None, [image.get("modality"), source, image["path"]]))),
        *([("prompt", asked)] if (asked := _prompt(prompt)) else []),
        ("generator", lineage["generator"] + _learnt_from(lineage.get("student") or {})),
        *([("cost", cost)] if (cost := _cost(lineage.get("cost") or {})) else []),
    ]
    if lineage["outcome"] not in (None, "ok"):
        outcome = ": ".join(filter(None, [lineage["outcome"], lineage.get("error")]))
        return [*lines, ("outcome", outcome), ("decision", _decision(lineage))]
    lines.append(("question", lineage["question"]))
    if lineage["options"]:
        lines.append(("options", " | ".join(lineage["options"])))
        lines.append(("answer", lineage["answer"] or "none of them"))
    if lineage["rationale"]:
        lines.append(("rationale", lineage["rationale"]))
    return [*lines, *_outcome_lines(lineage)]


def _outcome_lines(lineage: dict[str, Any]) -> list[tuple[str, str]]:
    return [
        ("score", _score(lineage)),
        ("decision", _decision(lineage)),
        ("seen by", ", ".join(lineage["seenBy"]) or "no policy so far"),
    ]


def _prompt(prompt: dict[str, Any]) -> str:
    """What the generator was asked by; empty for the scripted one, which is not asked."""
    template = prompt["templateSha256"][:_SHOWN_DIGEST]
    return ", ".join(filter(None, [prompt["paradigm"], template and f"template {template}"]))


def _learnt_from(student: dict[str, Any]) -> str:
    """Whose pictures a student has seen; empty for every other generator, or where that is not known any more."""
    if not student.get("sources"):
        return ""
    held = "" if student["mayLeave"] else ", of which some may not leave the site"
    return f", which learnt from pictures of {', '.join(student['sources'])}{held}"


def _cost(cost: dict[str, Any]) -> str:
    """What asking took, as far as it was counted; empty for the scripted generator, which asks nobody."""
    if cost.get("inputTokens") is None:
        return ""
    tokens = f"{cost['inputTokens']} tokens in, {cost.get('outputTokens') or 0} out"
    thought = f", {cost['thinkingTokens']} of thinking" if cost.get("thinkingTokens") else ""
    tries = f"{cost['attempts']} requests, " if (cost.get("attempts") or 1) > 1 else ""
    usd = f", {cost['usd']:.6f} USD" if cost.get("usd") is not None else ""
    return f"{tries}{tokens}{thought}{usd}"


def _score(lineage: dict[str, Any]) -> str:
    if lineage["score"] is None:
        return "none so far" if lineage["keep"] is None else "none"
    by = lineage["scoredBy"]
    model = f", by {by['stage'] or 'reward model ' + by['digest'][:_SHOWN_DIGEST]}" if by else ""
    return f"{lineage['score']:.2f}{model}"


def _decision(lineage: dict[str, Any]) -> str:
    if lineage["keep"] is None:
        return "none so far"
    return "kept" if lineage["keep"] else f"rejected: {', '.join(lineage['reasons']) or 'no reason given'}"
