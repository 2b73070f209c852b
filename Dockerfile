# posttrain in a container, on CPUs or on NVIDIA cards:
#
#     docker build -t posttrain .
#     docker build -t posttrain:cuda --build-arg BASE=cuda --build-arg TORCH_INDEX=https://pypi.org/simple .
#     docker run --rm -v "$PWD:/workspace" posttrain quickstart
#     docker run --rm --gpus all -v "$PWD:/workspace" posttrain:cuda run mine.yaml --processes 8
#
# torch's wheels bring CUDA's libraries along; the CUDA base gives the driver's hooks, and a compiler for the kernels that
# torch writes at run time.
ARG BASE=cpu

FROM python:3.12-slim-bookworm AS cpu

FROM nvidia/cuda:12.8.1-base-ubuntu24.04 AS cuda
# The distribution's own security updates are wanted, so nothing is pinned beyond its release.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3 python3-dev python3-venv gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*

# hadolint ignore=DL3006
FROM ${BASE}
# The wheels without CUDA are a tenth of the size.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ARG EXTRAS=audit,rl,serve
RUN python3 -m venv /opt/posttrain
ENV PATH=/opt/posttrain/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
WORKDIR /src
# torch and the other packages come before the sources: a change of the sources installs none of them again.
COPY constraints.txt ./
RUN pip install --no-cache-dir --index-url "$TORCH_INDEX" --constraint constraints.txt torch==2.13.0
COPY pyproject.toml README.md LICENSE ./
COPY posttrain ./posttrain
RUN pip install --no-cache-dir --constraint constraints.txt ".[$EXTRAS]" \
    && useradd --create-home --uid 1000 posttrain \
    && mkdir /workspace \
    && chown posttrain /workspace
# Runs, caches and what the user mounts; nothing of it needs root.
USER 1000
WORKDIR /workspace
ENTRYPOINT ["posttrain"]
CMD ["--help"]
