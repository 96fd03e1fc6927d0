"""The chart's alerts: each fires when it should, and not otherwise."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from monitoring.table import ALERTS

from tests.cluster import tools

TESTS = Path(__file__).parents[2] / "monitoring" / "alerts_test.yaml"
RULES = [rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]]
CASES: list[dict[str, Any]] = yaml.safe_load(TESTS.read_text())["tests"]


@pytest.fixture(scope="module")
def promtool() -> Path:
    return tools.ensure(["promtool"])["promtool"]


def run(promtool: Path, *arguments: str | Path) -> tuple[int, str]:
    done = subprocess.run([promtool, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return done.returncode, done.stdout


def asked(case: dict[str, Any]) -> tuple[str, bool]:
    """The alert that a case is about, and whether it has to fire."""
    [test] = case["promql_expr_test"]
    match = re.fullmatch(r'count\(ALERTS\{alertname="(\w+)", alertstate="firing"\}\)', test["expr"])
    assert match, test["expr"]
    return match[1], bool(test["exp_samples"])


def test_the_alerts_fire_when_they_should_and_not_otherwise(promtool: Path) -> None:
    code, output = run(promtool, "test", "rules", TESTS)
    assert code == 0, output


def test_each_alert_has_a_case_in_which_it_fires_and_one_in_which_it_does_not() -> None:
    names = {rule["alert"] for rule in RULES}
    assert {asked(case) for case in CASES} == {(name, fires) for name in names for fires in (True, False)}


def test_the_rules_are_clean(promtool: Path) -> None:
    code, output = run(promtool, "check", "rules", "--lint=all", "--lint-fatal", ALERTS)
    assert code == 0, output


def test_what_an_alert_says_is_whole_when_it_fires(promtool: Path, tmp_path: Path) -> None:
    cases = [
        {
            **{name: value for name, value in case.items() if name != "promql_expr_test"},
            "alert_rule_test": [
                {"eval_time": case["promql_expr_test"][0]["eval_time"], "alertname": asked(case)[0], "exp_alerts": []}
            ],
        }
        for case in CASES
        if asked(case)[1]
    ]
    path = tmp_path / "wrong_on_purpose.yaml"  # promtool shows an alert's words only where it did not expect them
    path.write_text(yaml.safe_dump({"rule_files": [str(ALERTS)], "evaluation_interval": "1m", "tests": cases}))
    code, output = run(promtool, "test", "rules", path)
    shown = re.findall(r"Annotations:\{(.*)\}", output)
    assert code != 0
    assert len(shown) == len(cases)
    for words in shown:
        assert {"summary=", "description=", "runbook="} <= set(re.findall(r"\w+=", words))
        assert "error expanding template" not in words
        assert "<no value>" not in words
        assert "{{" not in words


def test_every_alert_has_severity_and_a_runbook() -> None:
    for rule in RULES:
        assert rule["labels"]["severity"] in {"critical", "warning"}
        assert set(rule["annotations"]) == {"summary", "description", "runbook"}
        assert len(rule["annotations"]["runbook"]) > 100, f"{rule['alert']}: says too little"
