"""What `medgr2 doctor` takes to compare the pictures of training and tests: 57,000 files, all of the same size.

python -m bench.leak_check [--files 57000]

Nine tenths of the files are named by records of a source, the rest by those of a benchmark; a hundred are in both, as
other files with the same bytes. Equal sizes are the worst case: every file has to be read.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image
from tests.support.cycle_documents import spec_with

from medgr2_api.cycle import Cycle, Metadata
from medgr2_api.presets import resolve
from medgr2_jobs.preflight import data_checks
from medgr2_jobs.preflight.check_result import PreflightContext

SHARED = 100


def write(root: Path, files: int) -> None:
    """The pictures, and the records that name them."""
    random, parts = np.random.default_rng(0), {"train": files * 9 // 10, "test": files - files * 9 // 10}
    kept: list[bytes] = []
    for name, count in parts.items():
        (root / name / "images").mkdir(parents=True)
        rows = []
        for number in range(count):
            path = root / name / "images" / f"{number:06d}.bmp"
            Image.fromarray(random.integers(0, 255, (64, 64), np.uint8)).save(path)
            if name == "train" and number < SHARED:
                kept.append(path.read_bytes())
            elif name == "test" and number < SHARED:
                path.write_bytes(kept[number])
            rows.append(
                {"question_id": f"{name}{number}", "question_type": "x", "question": "x?", "gt_answer": "a",
                 "image_path": f"images/{path.name}", "option_A": "a", "option_B": "b", "modality_type": "CT"}
            )  # fmt: skip
        (root / name / "q.json").write_text(json.dumps(rows))


def main() -> None:
    """Prints JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=57_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write(root, options.files)
        source = {"name": "train", "format": "OmniMedVQA", "uri": "train"}
        benchmark = {"name": "test", "format": "OmniMedVQA", "uri": "test"}
        spec = spec_with({"data": {"sources": [source], "benchmarks": [benchmark]}})
        context = PreflightContext(Cycle(metadata=Metadata(name="x"), spec=spec), resolve(spec), root, 0)
        started = time.perf_counter()
        records = list(data_checks.records(context))
        read = time.perf_counter()
        (found,) = data_checks.overlap(context)
        compared = time.perf_counter()
    assert found.message.startswith(f"{SHARED} of its "), found
    assert [each.status.value for each in records] == ["ok", "ok"], records
    figures = {
        "files": options.files,
        "records_read_seconds": round(read - started, 1),
        "compared_seconds": round(compared - read, 1),
        "seconds": round(compared - started, 1),
        "peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
