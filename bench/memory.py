"""What keeping freed memory is worth in a training step on a CPU (`medgr2_jobs.runner.process_tuning`).

    make bench NAME=memory        # about four minutes on two cores

Each measurement is a process of its own: 40 training steps of the quickstart's policy, 32 rows with a picture each and
of another length each time, one thread, after 20 to warm up. Both ways alternate; the ratio is the pairs' median.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

PAIRS = 10
_WARM_UP, _STEPS = 20, 40
_LENGTHS = 20  # of batches: every step takes other sizes


def measure(keep: bool) -> dict[str, float]:
    """Milliseconds of processor time, those in the kernel, and page faults of a step, in this process."""
    import torch

    from bench.training import pictures, step
    from medgr2_jobs.models.vlm import PromptResponse
    from medgr2_jobs.runner import process_tuning

    torch.set_num_threads(1)
    if keep:
        process_tuning.keep_freed_memory()
    with tempfile.TemporaryDirectory() as root:
        model, encoder, names = pictures(Path(root), "tiny", 32)
        batches = [
            encoder.batch([PromptResponse(name, "What does the image show?", "a cyst " * words) for name in names])
            for words in range(1, 1 + _LENGTHS)
        ]
        optimizer = torch.optim.AdamW(model.parameters())
        for index in range(_WARM_UP + _STEPS):
            if index == _WARM_UP:
                before = resource.getrusage(resource.RUSAGE_SELF)
            step(model, batches[7 * index % _LENGTHS])
            optimizer.step()
    used = resource.getrusage(resource.RUSAGE_SELF)
    kernel, program = used.ru_stime - before.ru_stime, used.ru_utime - before.ru_utime
    return {
        "milliseconds": (kernel + program) / _STEPS * 1e3,
        "kernel_milliseconds": kernel / _STEPS * 1e3,
        "faults": (used.ru_minflt - before.ru_minflt) / _STEPS,
        "peak_rss_mib": used.ru_maxrss / 1024,
    }


def main() -> None:
    if len(sys.argv) > 1:
        print(json.dumps(measure(sys.argv[1] == "keep")))
        return
    pairs = []
    for index in range(PAIRS):
        found = {}
        for way in ("keep", "give back") if index % 2 else ("give back", "keep"):
            command = [sys.executable, "-m", "bench.memory", way]
            found[way] = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        pairs.append(found)
    ratios = sorted(pair["give back"]["milliseconds"] / pair["keep"]["milliseconds"] for pair in pairs)
    figures = {
        "CPU time of a step, given back / kept": round((ratios[PAIRS // 2] + ratios[(PAIRS - 1) // 2]) / 2, 3),
        "least": round(ratios[0], 3),
        "most": round(ratios[-1], 3),
    }
    for way in ("give back", "keep"):
        for name in ("milliseconds", "kernel_milliseconds", "faults", "peak_rss_mib"):
            values = sorted(pair[way][name] for pair in pairs)
            figures[f"{name}, {way}"] = round(values[PAIRS // 2], 1)
    print(json.dumps({"name": "memory", "figures": figures, "n": PAIRS, "cores": os.cpu_count()}))


if __name__ == "__main__":
    main()
