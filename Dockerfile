# A machine with NVIDIA GPUs, as docs/howto/install.md installs it: the versions that were measured on H100s.
#
#     docker build --tag tinyllama .
#     docker run --rm --gpus all --ipc host --volume $PWD/runs:/work tinyllama \
#         torchrun --nproc_per_node 8 -m tinyllama_mcore pretrain --deepspeed_config zero1

# with CUDA's toolkit, as on the machines that were measured
ARG BASE=nvidia/cuda:13.0.2-devel-ubuntu24.04
FROM ${BASE}

# Triton compiles its launchers with a C compiler and Python's headers
RUN apt-get update \
    && apt-get install --yes --no-install-recommends build-essential python3.12 python3.12-dev python3.12-venv \
    && rm -rf /var/lib/apt/lists/*
RUN python3.12 -m venv /opt/tinyllama
ENV PATH=/opt/tinyllama/bin:$PATH DS_BUILD_OPS=0 PIP_NO_CACHE_DIR=1

ARG TORCH=2.11.0
RUN pip install setuptools wheel torch==${TORCH}
ARG DEEPSPEED=0.19.8 MEGATRON=0.19.2
RUN pip install --no-build-isolation deepspeed==${DEEPSPEED} megatron-core==${MEGATRON}

COPY setup.py pyproject.toml README.md LICENSE /source/
COPY tinyllama_mcore /source/tinyllama_mcore
ARG EXTRAS=hopper,data,wandb
RUN pip install --no-build-isolation "/source[${EXTRAS}]"

WORKDIR /work
CMD ["python", "-m", "tinyllama_mcore"]
