"""Packages of other people: what each is here for, what pip calls it, and what is said where it is not installed.

setup.py has the versions. Neighbours: `cli.exit_code` says it of any import that fails, `require` before any work.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec

from tinyllama_mcore.config.errors import ConfigError

ALL = "docs/howto/install.md says how to install all that is needed"


@dataclass(frozen=True, kw_only=True)
class Package:
    """A package that something here imports."""

    module: str
    """Its top-level name in an import."""
    install: str
    """What pip has to install, with what goes with it."""
    needed_by: str
    extra: str | None = None
    """The extra of setup.py that brings it; None: everyone has it, or no extra does."""
    is_required: bool = False
    """Whether an installation without it is broken."""

    @property
    def name(self) -> str:
        """As pip calls it."""
        return self.install.split()[0]


def _required(module: str, install: str, needed_by: str) -> Package:
    return Package(module=module, install=install, needed_by=needed_by, is_required=True)


PACKAGES = (
    _required("torch", "torch", "everything that computes"),
    _required("deepspeed", "deepspeed", "training with ZeRO"),
    _required("megatron", "megatron-core", "the model's layers"),
    _required("numpy", "numpy", "everything that reads tokens"),
    _required("google", "protobuf", "reading a SentencePiece model"),
    _required("psutil", "psutil", "watching a job's processes"),
    _required("pyarrow", "pyarrow", "reading .parquet and .arrow files"),
    _required("safetensors", "safetensors", "reading and writing weights"),
    _required("sentencepiece", "sentencepiece", "every tokenizer.model"),
    _required("tensorboard", "tensorboard", "--tensorboard-dir or the tensorboard block of a DeepSpeed JSON"),
    _required("tokenizers", "tokenizers", "every tokenizer.json"),
    _required("tqdm", "tqdm", "a bar of progress"),
    _required("transformers", "transformers", "Hugging Face export, import and byte-level tokenizers"),
    _required("zstandard", "zstandard", "reading .zst files"),
    Package(module="accelerate", install="accelerate", needed_by="evaluation", extra="eval"),
    Package(module="adlfs", install="adlfs", needed_by="--input by a URL az:// or abfs://"),
    Package(module="aiohttp", install="aiohttp", needed_by="--input by a URL http:// or https://", extra="remote"),
    Package(module="flash_attn", install="flash-attn", needed_by="--attention-backend flash", extra="gpu"),
    Package(module="fsspec", install="fsspec aiohttp", needed_by="--input by a URL", extra="remote"),
    Package(module="gcsfs", install="gcsfs", needed_by="--input by a URL gs://"),
    Package(module="gigatoken", install="gigatoken", needed_by="a row of the benchmark of data", extra="data"),
    Package(module="huggingface_hub", install="huggingface_hub", needed_by="--input by a URL hf://"),
    Package(module="liger_kernel", install="liger-kernel", needed_by="a peer of the benchmark"),
    Package(module="litgpt", install="litgpt", needed_by="a peer of the benchmark"),
    Package(module="lm_eval", install="lm-eval accelerate", needed_by="evaluation", extra="eval"),
    Package(module="matplotlib", install="matplotlib", needed_by="a picture", extra="dev"),
    Package(module="orjson", install="orjson", needed_by="faster preprocessing", extra="data"),
    Package(module="quack", install="quack-kernels", needed_by="SwiGLU within products", extra="hopper"),
    Package(module="s3fs", install="s3fs", needed_by="--input by a URL s3://", extra="s3"),
    Package(module="torchao", install="torchao", needed_by="a peer of the benchmark"),
    Package(module="triton", install="triton", needed_by="our kernels"),
    Package(module="wandb", install="wandb", needed_by="the wandb block of a DeepSpeed JSON", extra="wandb"),
)


def is_installed(module: str) -> bool:
    """Whether it can be imported; a mere directory of its name, as wandb makes, does not count."""
    found = find_spec(module)
    return found is not None and (found.origin is not None or module in ("google", "megatron"))  # those are namespaces


def require(module: str) -> None:
    """Before work that would end with an import. ConfigError where the package is not installed."""
    if not is_installed(module):
        raise ConfigError(missing(module))


def missing(module: str) -> str:
    """That a package is not installed, for which Python, what needs it, and what installs it."""
    row = _row(module)
    what = f"{row.name} is not installed for {sys.executable}, and {row.needed_by} needs it: pip install {row.install}"
    if row.is_required:
        return f"{what}; {ALL}"
    return f"{what}, or install with the extra {row.extra}" if row.extra else what


def explained(error: ModuleNotFoundError) -> str | None:
    """What to say of an import that failed. None where the module is our own: that is no package's fault."""
    name = error.name or str(error)
    top = name.split(".")[0]
    if top == __name__.split(".")[0]:
        return None
    if name != top and is_installed(top):
        return (
            f"{name} is not in the {top} that is installed for {sys.executable}{_version(top)}: its version does not "
            "fit; setup.py has the oldest that do, constraints.txt those that were tested together"
        )
    if any(row.module == top for row in PACKAGES):
        return missing(top)
    return f"{top} is not installed for {sys.executable}, and another package needs it: pip install {top}; {ALL}"


def _row(module: str) -> Package:
    return next(row for row in PACKAGES if row.module == module)


def _version(module: str) -> str:
    row = next((row for row in PACKAGES if row.module == module), None)
    try:
        return f", version {metadata.version(row.name if row else module)}"
    except metadata.PackageNotFoundError:
        return ""
