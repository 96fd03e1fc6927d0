"""Run by the Python of the jobs' image: what CUDA needs of it at run time, as far as that shows without a GPU.

What only the image has is imported by its name: it is no dependency of the tests.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import tempfile
from pathlib import Path

#: What a cycle may ask for; torchvision and bitsandbytes load libraries of their own.
PACKAGES = ("trl", "torchvision", "bitsandbytes", "tensorboard", "mlflow", "wandb", "num2words")
#: As Triton's drivers do: an extension that is compiled at the first kernel, and imported.
STUB = """
#include <Python.h>
static PyObject *answer(PyObject *self, PyObject *none) { return PyLong_FromLong(42); }
static PyMethodDef methods[] = {{"answer", answer, METH_NOARGS, 0}, {0}};
static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "stub", 0, -1, methods};
PyMODINIT_FUNC PyInit_stub(void) { return PyModule_Create(&module); }
"""


def triton_s_compiler() -> None:
    """Triton's own way to a compiler, with its flags."""
    build = importlib.import_module("triton.runtime.build")._build
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "stub.c")
        source.write_text(STUB)
        library = build("stub", str(source), folder, [], [], [], [])
        spec = importlib.util.spec_from_file_location("stub", library)
        assert spec is not None
        assert spec.loader is not None
        stub = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(stub)
        assert stub.answer() == 42


def torch_compile() -> None:
    """Generated C++, compiled and run."""
    import torch

    compiled = torch.compile(lambda x: torch.nn.functional.gelu(x) * 2 + 1, fullgraph=True)
    x = torch.linspace(-1, 1, 64)
    torch.testing.assert_close(compiled(x), torch.nn.functional.gelu(x) * 2 + 1)


def zero() -> None:
    """DeepSpeed takes the configuration of a stage, and makes a step; one process on the CPU."""
    import torch

    os.environ |= {
        "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29517",
        "MEDGR2_DEEPSPEED": "Zero2",
    }  # fmt: skip
    torch.distributed.init_process_group("gloo")
    from medgr2_jobs.runner.distributed import deepspeed as ours

    settings = ours.config()
    assert settings is not None
    deepspeed = importlib.import_module("deepspeed")
    counts = {"train_batch_size": 1, "train_micro_batch_size_per_gpu": 1, "gradient_accumulation_steps": 1}
    settings |= {**counts, "gradient_clipping": 1.0, "bf16": {"enabled": True}}
    model = torch.nn.Linear(8, 8)
    engine, *_ = deepspeed.initialize(
        model=model, optimizer=torch.optim.AdamW(model.parameters(), lr=0.1), config=settings
    )
    before = [parameter.detach().clone() for parameter in engine.module.parameters()]
    engine.backward(engine(torch.ones(1, 8, dtype=torch.bfloat16)).float().square().sum())
    engine.step()
    assert any(not torch.equal(a, b) for a, b in zip(before, engine.module.parameters(), strict=True))


def main() -> None:
    assert os.getuid() == 65532, "the image's own user"
    assert Path(sys.executable).parent == Path("/opt/medgr2/bin")
    for name in PACKAGES:
        importlib.import_module(name)
    print(f"imports: {', '.join(PACKAGES)}")
    for step in (triton_s_compiler, torch_compile, zero):
        step()
        print(f"{step.__name__}: ok", flush=True)


if __name__ == "__main__":
    main()
