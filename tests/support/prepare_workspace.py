"""A workspace with data that tests spoil before they run stage prepare."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from medgr2_api import paths
from medgr2_api.stage_contract import RESULT_PATH_ENV, StageRequest, StageResult
from medgr2_jobs.data import synthetic_images
from medgr2_jobs.runner.main import execute
from medgr2_jobs.store.artifact import ArtifactReader
from tests.support.fixtures import artifact_ref, prepare_parameters, stage_request


class PrepareWorkspace:
    """A workspace with OmniMedVQA files `seed/` and `bench/` that tests spoil before they run prepare."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root = root / "workspace"
        self.root.mkdir()
        self.result_path = root / "result.json"
        monkeypatch.setenv(RESULT_PATH_ENV, str(self.result_path))
        synthetic_images.write(self.root / "seed", dataset="seed", seed=1, images=20, questions_per_image=2)
        synthetic_images.write(self.root / "bench", dataset="bench", seed=2, images=5, questions_per_image=2)
        self.data: dict[str, Any] = {
            "sources": [{"name": "seed", "format": "OmniMedVQA", "uri": "seed/questions.json"}],
            "split": {"validationFraction": 0.2},
            "benchmarks": [{"name": "bench", "format": "OmniMedVQA", "uri": "bench/questions.json"}],
        }

    def records(self, name: str = "seed") -> list[dict[str, Any]]:
        records: list[dict[str, Any]] = json.loads((self.root / name / "questions.json").read_text())
        return records

    def change(self, row: int, name: str = "seed", **changes: Any) -> None:
        records = self.records(name)
        records[row] |= changes
        (self.root / name / "questions.json").write_text(json.dumps(records))

    def run(self, **overrides: Any) -> tuple[StageResult, StageRequest]:
        data = {**self.data, **overrides.pop("data", {})}
        request = stage_request("prepare", 0, prepare_parameters(data=data, **overrides))
        code = execute(request, self.root)
        result = StageResult.model_validate_json(self.result_path.read_text())
        assert result.exit_code == code
        return result, request

    def refused(self, code: int, *fragments: str, **overrides: Any) -> None:
        """Runs prepare; it must end with this code and a message with these fragments, and leave nothing behind."""
        result, request = self.run(**overrides)
        assert result.exit_code == code, result
        for fragment in fragments:
            assert fragment in result.message, result.message
        assert len(result.message) <= 1024
        folder = self.root / paths.artifact("prepare", request.input_hash)
        left = [path for path in folder.rglob("*") if path.is_file()] if folder.exists() else []
        assert not [path for path in left if "work" not in path.relative_to(folder).parts], left

    def tables(self, **overrides: Any) -> ArtifactReader:
        result, request = self.run(**overrides)
        assert result.exit_code == 0, result
        return ArtifactReader(self.root, artifact_ref(self.root, request))
