"""The rules in Python: the same cases that an API server is given, with messages as clear."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from pydantic import ValidationError
from tests.support.cycle_documents import HERE, changed

from medgr2_api.cel_rules import Rule
from medgr2_api.crd import crd
from medgr2_api.cycle import Cycle
from medgr2_api.model import Model

CASES: list[dict[str, Any]] = yaml.safe_load((HERE / "rule_cases.yaml").read_text())
UPDATES = [case for case in CASES if "old" in case]


def _messages(case: dict[str, Any]) -> list[str]:
    refused = case.get("refused", [])
    return refused if isinstance(refused, list) else [refused]


@pytest.mark.parametrize("case", [case for case in CASES if "old" not in case], ids=lambda case: case["name"])
def test_python_decides_as_the_case_says(case: dict[str, Any]) -> None:
    document = changed(case.get("set", {}))
    if not case.get("refused"):
        Cycle.model_validate(document)
        return
    with pytest.raises(ValidationError) as caught:
        Cycle.model_validate(document)
    assert any(message in str(caught.value) for message in _messages(case)), str(caught.value)


def test_objects_of_update_cases_are_valid_by_themselves() -> None:
    for case in UPDATES:
        Cycle.model_validate(changed(case.get("set", {})))


def test_every_rule_is_broken_by_a_case() -> None:
    expected = [message for case in CASES for message in _messages(case)]
    for rule in _all_rules(crd()):
        if "API key" in rule["message"]:  # the same message for variables and arguments
            continue
        assert any(message in rule["message"] for message in expected), rule["message"]


def test_rules_without_a_python_check_are_transitions_or_have_a_validator_beside_them() -> None:
    models = [model for model in _models(Model) if model.rules]
    assert len(models) > 8
    unchecked = [rule.cel for model in models for rule in model.rules if rule.check is None]
    assert [cel for cel in unchecked if "oldSelf" not in cel and "metadata.name" not in cel] == []


def test_a_rule_annotates_a_type_and_enforces_itself() -> None:
    rule = Rule("self > 1", "must be more than one", lambda value: value > 1)
    rule.enforce(2)
    with pytest.raises(ValueError, match="more than one"):
        rule.enforce(1)


def test_refused_input_is_not_repeated() -> None:
    key = "sk-abcdefghijklmnopqrstuvwxyz"
    for path in ("spec.policy.grpo.trainer", "spec.rewardModel.training.trainer", "spec.template.affinity"):
        with pytest.raises(ValidationError) as caught:
            Cycle.model_validate(changed({path: {"deep": [{"er": key}]}}))
        assert "API key" in str(caught.value)
        assert key not in str(caught.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_json_cannot_hold_are_refused(value: float) -> None:
    for values in ({"spec.policy.sft.trainer": {"a": [value]}}, {"spec.policy.sft.learningRate": value}):
        with pytest.raises(ValidationError):
            Cycle.model_validate(changed(values))


def _models(model: type[Model]) -> list[type[Model]]:
    return [found for child in model.__subclasses__() for found in (child, *_models(child))]


def _all_rules(node: Any) -> list[dict[str, str]]:
    if isinstance(node, list):
        return [rule for item in node for rule in _all_rules(item)]
    if not isinstance(node, dict):
        return []
    return node.get("x-kubernetes-validations", []) + [rule for item in node.values() for rule in _all_rules(item)]
