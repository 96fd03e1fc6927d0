"""`python -m medgr2_jobs.preflight CYCLE.yaml --workspace DIR`: looks a cycle over before it is run.

Prints a line per check result (`--json`: a JSON list), and ends with 0, or with 1 when something would fail.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from medgr2_api import command_line
from medgr2_api.presets import resolve
from medgr2_api.stage_contract import SECRETS_ENV, ExitCode
from medgr2_api.yaml_loader import load_cycle

from . import (
    capacity_checks,
    compute_checks,
    data_checks,
    plugin_checks,
    provider_checks,
    tracking_checks,
    trainer_checks,
)
from .check_result import CheckResult, CheckStatus, PreflightContext

#: In the order in which a person would look: what is there, whether it fits, and last what costs money.
CHECKS: tuple[Callable[[PreflightContext], Iterator[CheckResult]], ...] = (
    plugin_checks.plugins,
    trainer_checks.trainers,
    tracking_checks.tracking,
    data_checks.data,
    data_checks.records,
    data_checks.models,
    data_checks.overlap,
    capacity_checks.disk,
    capacity_checks.tokens,
    compute_checks.memory,
    compute_checks.duration,
    provider_checks.egress,
    provider_checks.trial,
)


def examine(context: PreflightContext) -> Iterator[CheckResult]:
    """All results, check by check."""
    for check in CHECKS:
        yield from check(context)


def main(arguments: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="medgr2 doctor", description="Looks a cycle over before it is run.")
    parser.add_argument("file", type=Path)
    parser.add_argument("--workspace", type=Path, required=True)
    parser.add_argument("--secrets-dir", type=Path)
    parser.add_argument("--questions", type=int, default=3, help="questions to ask the generator, and to pay")
    parser.add_argument("--real-images", action="store_true", help="ask about images of the sources that may be sent")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    if options.secrets_dir:
        os.environ[SECRETS_ENV] = str(options.secrets_dir)
    cycle = load_cycle(options.file)  # `medgr2 doctor` has validated it
    context = PreflightContext(cycle, resolve(cycle.spec), options.workspace, options.questions, options.real_images)
    results = []
    for result in examine(context):
        results.append(result)
        if not options.json:
            print(f"{result.status:<8} {result.where}: {result.message}", flush=True)
    if options.json:
        documents = [{"verdict": result.status, "where": result.where, "message": result.message} for result in results]
        print(json.dumps(documents, indent=1, ensure_ascii=False))
    return ExitCode.ERROR if any(result.status is CheckStatus.FAILED for result in results) else ExitCode.OK


if __name__ == "__main__":
    command_line.end(main)
