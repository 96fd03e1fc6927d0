"""`medgr2 doctor` and `medgr2 prompt`: what a cycle would meet and send, before it is run. The jobs' code knows it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from medgr2_api.stage_contract import ExitCode

from .loading import load

#: What `medgr2 run --dry-run` asks and pays.
DRY_RUN_QUESTIONS = 5


def doctor(file: Path, workspace: Path, secrets: Path | None, questions: int, as_json: bool) -> int:
    """Looks a cycle over; ends with 1 when something would fail."""
    load(file)
    if not workspace.is_dir():
        print(f"{workspace}: no such folder; it is the one that all stages share", file=sys.stderr)
        return ExitCode.USAGE
    options = ["--workspace", str(workspace), "--questions", str(questions)]
    options += ["--secrets-dir", str(secrets)] if secrets else []
    options += ["--json"] if as_json else []
    return _jobs("preflight", str(file), *options)


def prompt(paradigm: str, modality: str, question_type: str, provider: str, image: Path | None) -> int:
    """Prints what a generator is sent about one image."""
    options = ["--paradigm", paradigm, "--modality", modality, "--question-type", question_type, "--provider", provider]
    return _jobs("generate.preview", *options, *(["--image", str(image)] if image else []))


def _jobs(module: str, *arguments: str) -> int:
    """A module of the jobs, in a process of its own: the command line imports nothing of theirs."""
    return subprocess.run([sys.executable, "-m", f"medgr2_jobs.{module}", *arguments], check=False).returncode
