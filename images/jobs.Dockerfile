# The stages: torch, transformers, TRL. From the repository's root:
#   docker build -f images/jobs.Dockerfile -t ghcr.io/medgr2/jobs:0.1.0 .
# BASE: any image of Debian's kind with Python 3.11 or newer and its venv module; torch's wheels bring CUDA along.
# EXTRAS: all that a cycle may ask for, or fewer: `distributed` is DeepSpeed (deepspeed: Zero2, Zero3), of whose kernels,
# which it would build with a CUDA toolkit, the stages use none; `quantization` is bitsandbytes (QLoRA); `mlflow` and
# `wandb` follow trainings.
ARG BASE=docker.io/library/python:3.11-slim-bookworm

# Our code is installed in a stage of its own: what installs it is not in the image that runs.
FROM ${BASE} AS code
ENV UV_LINK_MODE=copy UV_PYTHON_DOWNLOADS=never PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
RUN python3 -m venv /opt/build && /opt/build/bin/pip install --no-cache-dir --quiet uv \
 && python3 -m venv --without-pip /opt/medgr2
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY crds crds
COPY operator operator
COPY jobs jobs
RUN VIRTUAL_ENV=/opt/medgr2 /opt/build/bin/uv pip install --no-cache --quiet --compile-bytecode --no-deps .

# Of pyproject.toml only the names of the dependencies matter to the heavy layer.
FROM ${BASE} AS requirements
ARG EXTRAS="jobs distributed quantization mlflow wandb"
COPY pyproject.toml /
RUN python3 -c 'import sys, tomllib; p = tomllib.load(open("/pyproject.toml", "rb"))["project"]; \
      print(*p["dependencies"], *(r for e in sys.argv[1:] for r in p["optional-dependencies"][e]), sep="\n")' \
      $EXTRAS > /requirements.txt && touch -d @0 /requirements.txt

FROM ${BASE}
ENV UV_LINK_MODE=copy UV_PYTHON_DOWNLOADS=never PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /src
# The heavy layer: dependencies, which change seldom. Bytecode is compiled now, for the root file system is read-only
# later, and importing torch without it takes more than twice as long.
COPY --from=requirements /requirements.txt ./
COPY constraints.txt ./
RUN python3 -m venv /opt/build && /opt/build/bin/pip install --no-cache-dir --quiet uv \
 && python3 -m venv --without-pip /opt/medgr2 \
 && VIRTUAL_ENV=/opt/medgr2 /opt/build/bin/uv pip install --no-cache --quiet --compile-bytecode \
      --requirements requirements.txt --constraint constraints.txt \
 && rm -r /opt/build
# On a GPU, Triton compiles a stub with C and Python's headers at the first kernel (so do torch.compile and TRL's loss),
# long after the first GPU-hours were paid for.
RUN python3 -c 'import os, sys, sysconfig; sys.exit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))' \
      || headers=python3-dev; \
    apt-get update -qq && apt-get install -y -qq --no-install-recommends g++ $headers && rm -rf /var/lib/apt/lists/* \
 && printf '#include <Python.h>\nint main(void) { return 0; }\n' > /tmp/stub.c \
 && cc -fsyntax-only -I"$(python3 -c 'import sysconfig; print(sysconfig.get_path("include"))')" /tmp/stub.c \
 && rm /tmp/stub.c
# The light layer: our code.
COPY --from=code /opt/medgr2 /opt/medgr2
WORKDIR /workspace
ENV PATH=/opt/medgr2/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
USER 65532:65532
# pid 1: it passes SIGTERM on, and its exit code is the contract's
ENTRYPOINT ["python", "-m", "medgr2_jobs.runner.main"]
