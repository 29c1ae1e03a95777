"""Metadata and dependencies: their only home. Exact versions that were tested stand in constraints.txt."""

import runpy
from pathlib import Path

from setuptools import find_packages, setup

PACKAGE = Path(__file__).parent / "tinyllama_mcore"
VERSION = runpy.run_path(str(PACKAGE / "__init__.py"))["__version__"]
COMMANDS = runpy.run_path(str(PACKAGE / "commands" / "table.py"))["COMMANDS"]

PICTURES = ["matplotlib>=3.8"]  # --png of the report, the benchmark's figure
TRITON = "triton>=3.6"  # torch brings it, but not on a CPU
TESTS = [*PICTURES, "pytest>=8", "pytest-timeout", "pytest-xdist", "pyyaml>=6", TRITON]
EVAL = ["accelerate>=1.15", "lm-eval>=0.4.13,<0.5"]
FAST_DATA = ["gigatoken>=0.10", "orjson>=3.10"]  # used where installed: gigatoken is young, SentencePiece decides
REMOTE = ["aiohttp>=3.9", "fsspec>=2024.6"]  # --input of preprocessing as a URL

setup(
    name="tinyllama_mcore",
    version=VERSION,
    description="Pretrain TinyLlama-1.1B with Megatron-core, DeepSpeed and Hugging Face export",
    long_description=(PACKAGE.parent / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=find_packages(include=["tinyllama_mcore", "tinyllama_mcore.*"]),
    package_data={
        "tinyllama_mcore": ["py.typed", "ds_configs/*.json"],  # ds_configs/ at the root is a link to the latter
        "tinyllama_mcore.reporting": ["template/*"],  # the page of tinyllama-report
    },
    entry_points={"console_scripts": [f"{command.program} = {command.entry}" for command in COMMANDS]},
    install_requires=[
        # below the next minor version after those that were run: private names of each are used
        "torch>=2.11,<2.14",
        "deepspeed>=0.19.8,<0.20",
        "megatron-core>=0.16.1,<0.20",
        "numpy>=2.0",
        "protobuf>=4",  # sentencepiece's own description of its models needs it, and does not say so
        "psutil>=5.9",
        "pyarrow>=15",
        "safetensors>=0.5",
        "sentencepiece>=0.2",
        "setuptools",  # DeepSpeed's launcher and torch's extension builder import it
        "tensorboard>=2.15",  # --tensorboard-dir
        "tokenizers>=0.21",
        "tqdm>=4.66",
        "transformers>=5.0",
        "zstandard>=0.22",
    ],
    extras_require={
        "gpu": ["flash-attn>=2.6"],  # --attention-backend flash by the package; torch has a flash kernel of its own
        "hopper": ["quack-kernels[cu13]>=0.6.5,<0.7"],  # SwiGLU within the products around it, in bf16
        "wandb": ["wandb>=0.31"],
        "eval": EVAL,
        "data": FAST_DATA,
        "remote": REMOTE,
        "s3": [*REMOTE, "s3fs>=2024.6"],  # botocore wants python-dateutil below 3: not together with constraints.txt
        "dev": [*EVAL, *FAST_DATA, *REMOTE, *TESTS, "codespell", "mypy", "ruff"],
    },
)
