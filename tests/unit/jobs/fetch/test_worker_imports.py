"""What a fetching process imports: one starts for each URI."""

from __future__ import annotations

import subprocess
import sys


def test_a_fetching_process_imports_little() -> None:
    program = "import sys, medgr2_jobs.fetch.worker; print(*sys.modules)"
    imported = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    ).stdout.split()
    assert {"medgr2_jobs.fetch.hub"} < set(imported)
    assert not {"numpy", "PIL", "medgr2_api.stages", "huggingface_hub", "pyarrow"} & set(imported)
