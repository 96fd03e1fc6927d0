# The operator: no torch, no GPU. From the repository's root:
#   docker build -f images/operator.Dockerfile -t ghcr.io/medgr2/medgr2-operator:0.1.0 .
ARG BASE=docker.io/library/python:3.11-slim-bookworm

# The environment is made in a stage of its own: what installs it is not in the image that runs.
FROM ${BASE} AS build
ENV UV_LINK_MODE=copy UV_PYTHON_DOWNLOADS=never PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
RUN python3 -m venv /opt/build && /opt/build/bin/pip install --no-cache-dir --quiet uv
ENV VIRTUAL_ENV=/opt/medgr2
WORKDIR /src
# Dependencies first: they change seldom, our code often.
COPY pyproject.toml constraints.txt ./
RUN python3 -m venv --without-pip /opt/medgr2 \
 && /opt/build/bin/uv pip install --no-cache --quiet --compile-bytecode \
      --requirements pyproject.toml --extra operator --constraint constraints.txt
COPY README.md LICENSE ./
COPY crds crds
COPY operator operator
COPY jobs jobs
RUN /opt/build/bin/uv pip install --no-cache --quiet --compile-bytecode --no-deps .

FROM ${BASE}
COPY --from=build /opt/medgr2 /opt/medgr2
# USER: kopf asks for the user's name, and a number that is not in /etc/passwd has none
ENV PATH=/opt/medgr2/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 USER=medgr2
USER 65532:65532
ENTRYPOINT ["python", "-m", "medgr2_operator.runtime.main"]
