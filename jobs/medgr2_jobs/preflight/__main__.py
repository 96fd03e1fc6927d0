"""`python -m medgr2_jobs.preflight CYCLE.yaml --workspace DIR`: looks a cycle over before it is run.

Prints a line per finding (`--json`: a JSON list), and ends with 0, or with 1 when something would fail.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from medgr2_api.presets import resolve
from medgr2_api.stage_contract import SECRETS_ENV, ExitCode
from medgr2_api.yaml_loader import load_cycle

from . import capacity_checks, data_checks, plugin_checks, provider_checks
from .check_result import Case, Finding, Verdict

#: In the order in which a person would look: what is there, whether it fits, and last what costs money.
CHECKS: tuple[Callable[[Case], Iterator[Finding]], ...] = (
    plugin_checks.plugins,
    data_checks.data,
    data_checks.models,
    data_checks.overlap,
    capacity_checks.disk,
    capacity_checks.tokens,
    provider_checks.leaving,
    provider_checks.trial,
)


def examine(case: Case) -> Iterator[Finding]:
    """All findings, check by check."""
    for check in CHECKS:
        yield from check(case)


def main(arguments: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="medgr2 doctor", description="Looks a cycle over before it is run.")
    parser.add_argument("file", type=Path)
    parser.add_argument("--workspace", type=Path, required=True)
    parser.add_argument("--secrets-dir", type=Path)
    parser.add_argument("--questions", type=int, default=3, help="questions to ask the generator, and to pay")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args(arguments)
    if asked.secrets_dir:
        os.environ[SECRETS_ENV] = str(asked.secrets_dir)
    cycle = load_cycle(asked.file)  # `medgr2 doctor` has validated it
    case = Case(cycle, resolve(cycle.spec), asked.workspace, asked.questions)
    findings = []
    for finding in examine(case):
        findings.append(finding)
        if not asked.json:
            print(f"{finding.verdict:<8} {finding.where}: {finding.message}", flush=True)
    if asked.json:
        print(json.dumps([dataclasses.asdict(finding) for finding in findings], indent=1, ensure_ascii=False))
    return ExitCode.ERROR if any(finding.verdict is Verdict.FAILED for finding in findings) else ExitCode.OK


if __name__ == "__main__":
    sys.exit(main())
