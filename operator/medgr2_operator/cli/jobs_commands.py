"""`medgr2 doctor`, `prompt`, `fetch`, `compare`, `vllm`: what they look at is the jobs' business, as is their work."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import NoReturn

from medgr2_api import paths
from medgr2_api.stage_contract import SECRETS_ENV, ExitCode

from ..local.state import StateError, StateFile
from ..plan.spec_edits import edits_of
from . import jobs_process
from .cycle_file import read_cycle
from .cycles import existing

#: What `medgr2 run --dry-run` asks and pays.
DRY_RUN_QUESTIONS = 5


def doctor(
    file: Path, workspace: Path, secrets: Path | None, questions: int, as_json: bool, real_images: bool = False
) -> int:
    """Checks a cycle before it runs; ends with 1 when something would fail. The workspace need not be there yet."""
    read_cycle(file)
    if workspace.exists() and not workspace.is_dir():
        print(f"{workspace}: is no folder; name the one that all stages share", file=sys.stderr)
        return ExitCode.USAGE
    jobs_process.require("doctor")
    options = ["--workspace", str(workspace), "--questions", str(questions)]
    options += ["--secrets-dir", str(secrets)] if secrets else []
    options += ["--real-images"] if real_images else []
    options += ["--json"] if as_json else []
    return jobs_process.run("preflight", str(file), *options)


def prompt(paradigm: str, modality: str, question_type: str, provider: str, image: Path | None) -> int:
    """Prints what a generator is sent about one image."""
    jobs_process.require("prompt")
    options = ["--paradigm", paradigm, "--modality", modality, "--question-type", question_type]
    options += ["--provider", provider] if provider else []
    return jobs_process.run("generate.preview", *options, *(["--image", str(image)] if image else []))


def fetch(file: Path, workspace: Path, secrets: Path | None) -> NoReturn:
    """Fetches what a cycle names; this process becomes the jobs'."""
    read_cycle(file)
    jobs_process.require("fetch")
    environment = {SECRETS_ENV: str(secrets.resolve()) if secrets else ""}
    jobs_process.become("fetch", str(file), "--workspace", str(workspace), environment=environment)


def install_vllm(build: str) -> int:
    """Makes vLLM's environment and prints its folder."""
    jobs_process.require("vllm install")
    return jobs_process.run("engine", "install", *(["--build", build] if build else []))


def compare(cycles: list[str], workspace: Path, file_format: str, final: bool) -> int:
    """Prints a table of finished cycles."""
    existing(workspace)
    missing = [name for name in cycles if not (workspace / paths.report(name)).exists()]
    if missing:
        known = sorted(path.parent.name for path in workspace.glob("cycles/*/report"))
        print(
            f"no report of {', '.join(missing)} in {workspace}; finished cycles there: {', '.join(known) or 'none'}",
            file=sys.stderr,
        )
        return ExitCode.USAGE
    jobs_process.require("compare")
    for name in cycles:
        _note_edits(workspace, name)
    options = ["--format", file_format, *(["--final"] if final else [])]
    return jobs_process.run("report.compare", str(workspace), *cycles, *options)


def _note_edits(workspace: Path, name: str) -> None:
    """Says of a cycle that it was edited since its results were made."""
    try:
        stored = StateFile(workspace, name).load()
    except StateError as error:  # the reports are compared, not the states
        print(error, file=sys.stderr)
        return
    if stored is not None and (edits := edits_of(stored)):
        print(f"{name}: its results are not of the spec as it is now: {'; '.join(edits.lines())}", file=sys.stderr)
