"""Doctor says whether those who are to follow the trainings can."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.unit.jobs.preflight.test_data_checks import case

from medgr2_api.stage_contract import SECRETS_ENV
from medgr2_jobs.preflight import tracking_checks
from medgr2_jobs.preflight.check_result import CheckStatus

TRACKING = {
    "mlflow": {},
    "wandb": {"mode": "Online", "baseURL": "http://wandb.internal", "apiKeySecretRef": {"name": "wandb", "key": "key"}},
}


def test_packages_and_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SECRETS_ENV, str(tmp_path))
    context = case(tmp_path, tracking=TRACKING)
    mlflow, wandb, key = tracking_checks.tracking(context)
    assert [mlflow.status, wandb.status, key.status] == [CheckStatus.OK, CheckStatus.OK, CheckStatus.WARNING]
    assert "secret 'wandb' has no key 'key'" in key.message
    (tmp_path / "wandb").mkdir()
    (tmp_path / "wandb" / "key").write_text("0123456789abcdef")
    assert [found.status for found in tracking_checks.tracking(context)] == [CheckStatus.OK] * 2
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    missing, *_ = tracking_checks.tracking(context)
    assert missing.status is CheckStatus.WARNING
    assert "install MedGR2 with `mlflow`" in missing.message


def test_nobody_who_follows_is_nothing_to_look_at(tmp_path: Path) -> None:
    assert list(tracking_checks.tracking(case(tmp_path))) == []
