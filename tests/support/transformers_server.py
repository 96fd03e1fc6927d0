"""A real OpenAI-compatible server: `transformers serve` with a tiny random model, on loopback."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.ports import free_port

#: Makes a tiny random model in the folder that is its argument.
BUILD = """
import sys
from medgr2_jobs.models.tiny import model, tokenizer
processor = tokenizer.processor()
made = model.build(processor.tokenizer, 0)
made.generation_config.eos_token_id = list(range(0, len(processor.tokenizer), 6))  # or it would talk to the limit
made.save_pretrained(sys.argv[1])
processor.save_pretrained(sys.argv[1])
"""


@contextmanager
def transformers_serve(scratch: Path) -> Iterator[tuple[str, str]]:
    """Builds the model and starts the server; address, and the model's name (to this server: its folder)."""
    folder = scratch / "tiny"
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", BUILD, str(folder)], env=environment, check=True, timeout=300)
    port = free_port()
    log = (scratch / "serve.log").open("w+")
    command = ["serve", str(folder), "--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    process = subprocess.Popen(
        [sys.executable, "-m", "transformers.cli.transformers", *command],
        env=environment,
        stdout=log,
        stderr=subprocess.STDOUT,
    )
    try:
        deadline = time.monotonic() + 300
        while True:
            assert process.poll() is None, Path(log.name).read_text()
            assert time.monotonic() < deadline, Path(log.name).read_text()
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1).read()
                break
            except OSError:
                time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/v1", str(folder)
    finally:
        process.kill()
        process.wait()
        log.close()
