"""Metadata and dependencies: their only home. Exact versions that were tested stand in constraints.txt."""

from setuptools import find_packages, setup

TESTS = ["matplotlib>=3.8", "pytest>=8", "pytest-timeout", "triton>=3.6"]
EVAL = ["accelerate>=1.15", "lm-eval>=0.4.13,<0.5"]
FAST_DATA = ["gigatoken>=0.10", "orjson>=3.10"]  # used where installed: gigatoken is young, SentencePiece decides

setup(
    name="tinyllama_mcore",
    version="0.1.0",
    description="Pretrain TinyLlama-1.1B with Megatron-core layers, DeepSpeed sharding and Hugging Face export",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["tinyllama_mcore", "tinyllama_mcore.*"]),
    package_data={"tinyllama_mcore.reporting": ["template/*"]},  # the page of tools/report.py
    install_requires=[
        "torch>=2.11",
        "deepspeed>=0.19.8",
        "megatron-core>=0.16.1",
        "numpy>=2.0",
        "protobuf>=4",
        "psutil>=5.9",
        "pyarrow>=15",
        "safetensors>=0.5",
        "sentencepiece>=0.2",
        "setuptools",  # DeepSpeed's launcher and torch's extension builder import it
        "tensorboard>=2.15",
        "tokenizers>=0.21",
        "tqdm>=4.66",
        "transformers>=5.0",
        "zstandard>=0.22",
    ],
    extras_require={
        "gpu": ["flash-attn>=2.6"],
        "hopper": ["quack-kernels[cu13]>=0.6.5,<0.7"],  # SwiGLU within the products around it, in bf16
        "wandb": ["wandb>=0.31"],
        "eval": EVAL,
        "data": FAST_DATA,
        "dev": [*EVAL, *FAST_DATA, *TESTS, "codespell", "mypy", "ruff"],
    },
)
