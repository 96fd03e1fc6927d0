"""How fast stage prepare takes OmniMedVQA-shaped data in, and whether its memory grows with the number of rows.

make bench NAME=ingest
python -m bench.ingest --rows 10000 100000        # other sizes

The whole stage runs (images stored, splits, D_grade), each size in a process of its own, over the same 2,000 pictures;
the models are empty folders, so nothing of torch is in the figures.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image
from safetensors.numpy import save_file
from tests.support.fixtures import prepare_parameters, stage_request

from medgr2_jobs.runner.main import execute

PICTURES = 2000
SIDE = 224
FINDINGS = ("cyst", "mass", "nodule", "fracture", "effusion", "oedema", "stenosis", "polyp")
MODALITIES = ("CT", "MRI", "X-Ray", "Ultrasound")


def draw(folder: Path) -> None:
    """The pictures: noise over a few shapes, as JPEG."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(1)
    for number in range(PICTURES):
        coarse = rng.integers(0, 255, (7, 7), np.uint8)
        Image.fromarray(coarse).resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(folder / f"{number:05d}.jpg")


def write(path: Path, rows: int) -> None:
    """The questions, a row at a time."""
    rng = random.Random(2)
    with path.open("w") as file:
        for number in range(rows):
            options = rng.sample(FINDINGS, 4)
            record = {
                "dataset": f"set{number % 17}",
                "question_id": f"q{number:07d}",
                "question_type": "Disease Diagnosis",
                "question": f"Which finding does picture {number} of the series show?",
                "gt_answer": options[number % 4],
                "image_path": f"{number % PICTURES:05d}.jpg",
                "modality_type": MODALITIES[number % PICTURES % 4],
                "rationale": f"The image shows a typical {options[number % 4]} with no sign of another finding.",
                **dict(zip(("option_A", "option_B", "option_C", "option_D"), options, strict=True)),
            }
            file.write(("[" if number == 0 else ",\n") + json.dumps(record))
        file.write("]")


def model(folder: Path) -> None:
    """A folder that passes for a model: prepare checks and links its files."""
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "qwen2_5_vl"}')
    for name in ("preprocessor_config.json", "tokenizer_config.json", "tokenizer.json"):
        (folder / name).write_text("{}")
    save_file({"x": np.zeros(1, np.float32)}, folder / "model.safetensors")


def measure(root: Path, file: str) -> dict[str, float]:
    """Runs the stage in this process; its seconds and its peak memory."""
    data = {
        "sources": [{"name": "seed", "format": "OmniMedVQA", "uri": file, "images": "pictures"}],
        "benchmarks": [],
        "split": {"validationFraction": 0.1},
    }
    parameters = prepare_parameters(data=data, policyBaseModel="model", rewardBaseModel="model")
    started = time.monotonic()
    code = execute(stage_request("prepare", 0, parameters), root)
    if code:
        raise SystemExit(f"prepare ended with {code}")
    seconds = time.monotonic() - started
    return {"seconds": seconds, "MiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def main() -> int:
    """Prints the line of JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 50_000, 100_000])
    parser.add_argument("--measure", nargs=2, metavar=("ROOT", "FILE"))
    asked = parser.parse_args()
    if asked.measure:
        print(json.dumps(measure(Path(asked.measure[0]), asked.measure[1])))
        return 0
    figures = {}
    with tempfile.TemporaryDirectory(prefix="medgr2-bench-") as folder:
        root = Path(folder)
        draw(root / "pictures")
        model(root / "model")
        for rows in asked.rows:
            write(root / f"{rows}.json", rows)
            command = [sys.executable, "-m", "bench.ingest", "--measure", str(root), f"{rows}.json"]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            found = json.loads(done.stdout.splitlines()[-1])
            figures[f"{rows} rows"] = {
                "rows/s": round(rows / found["seconds"]),
                "seconds": round(found["seconds"], 1),
                "peak MiB": round(found["MiB"]),
            }
            print(f"{rows} rows: {figures[f'{rows} rows']}", file=sys.stderr, flush=True)
    print(json.dumps({"name": "ingest", "figures": figures, "n": len(asked.rows), "cores": os.cpu_count()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
