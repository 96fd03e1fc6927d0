"""Whole manifests, against those in golden/.

After a wanted change: `MEDGR2_UPDATE_GOLDEN=1 pytest tests/unit/render/test_golden.py`, and read the diff.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.support import kubernetes_rules as rules
from tests.support.render_cases import CASES, SETTINGS, Case

from medgr2_operator.render.job import job
from medgr2_operator.render.pvc import claim

GOLDEN = Path(__file__).parent / "golden"
EACH = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def objects(case: Case) -> list[dict[str, Any]]:
    """All that the reconciler would create for this attempt, the claim first."""
    pvc = claim(case.cycle())
    return [*([pvc] if pvc else []), *job(case.cycle(), case.create(), SETTINGS, case.single_node)]


@pytest.mark.parametrize("name", CASES)
def test_manifests(name: str) -> None:
    path = GOLDEN / f"{name}.yaml"
    text = yaml.safe_dump_all(objects(CASES[name]), sort_keys=False, width=120, allow_unicode=True)
    if os.environ.get("MEDGR2_UPDATE_GOLDEN"):
        path.write_text(text)
    assert path.read_text() == text


def test_no_manifest_is_left_over() -> None:
    assert {path.stem for path in GOLDEN.iterdir()} == set(CASES)


@EACH
def test_the_api_knows_every_field(case: Case) -> None:
    assert [problem for manifest in objects(case) for problem in rules.unknown_fields(manifest)] == []


@EACH
def test_the_api_accepts_the_job(case: Case) -> None:
    assert rules.job_violations(objects(case)[-1]) == []


@EACH
def test_pods_are_restricted(case: Case) -> None:
    assert rules.restricted_violations(objects(case)[-1]) == []


@EACH
def test_pods_have_no_token_and_no_links(case: Case) -> None:
    pod = objects(case)[-1]["spec"]["template"]["spec"]
    assert (pod["automountServiceAccountToken"], pod["enableServiceLinks"]) == (False, False)
    assert "activeDeadlineSeconds" not in objects(case)[-1]["spec"]


@EACH
def test_everything_is_owned_by_the_cycle(case: Case) -> None:
    for manifest in objects(case):
        (owner,) = manifest["metadata"]["ownerReferences"]
        assert owner["uid"] == case.cycle().metadata.uid
        assert owner["controller"] is True
        assert owner["blockOwnerDeletion"] is False


@EACH
def test_rendering_is_pure(case: Case) -> None:
    cycle, create = case.cycle(), case.create()
    before = cycle.model_dump_json(), create.request.model_dump_json()
    rendered = job(cycle, create, SETTINGS, case.single_node)
    assert rendered == job(cycle, create, SETTINGS, case.single_node)
    _spoil(rendered)
    assert before == (cycle.model_dump_json(), create.request.model_dump_json())
    assert objects(case) == objects(case)


def _spoil(value: Any) -> None:
    """Empties every list and object."""
    if isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            _spoil(item)
        value.clear()
