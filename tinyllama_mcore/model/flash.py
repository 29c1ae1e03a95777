"""The package flash-attn, which nothing needs: whether it can be used here, and what is used in its place.

Neighbours: `attention` takes it for `--attention-backend flash`, `documents` for documents kept apart on a GPU.
"""

from __future__ import annotations

import functools
from types import ModuleType

from tinyllama_mcore.config.schema import RunConfig


@functools.cache
def package() -> ModuleType | str:
    """The package, or why it is not used, in words that follow its name."""
    try:
        import flash_attn
    except ImportError as error:
        if isinstance(error, ModuleNotFoundError) and error.name == "flash_attn":
            return "is not installed: pip install --no-build-isolation 'tinyllama_mcore[gpu]'"
        return f"cannot be imported: {error}"  # built for another torch, most often
    return flash_attn


def told(run: RunConfig) -> str:
    """Which kernel computes the attention of a run on a GPU, for the start-up print."""
    masked = run.data.inter_document_masking and run.sharding.precision == "bf16"  # model/documents.py
    if run.attention_backend != "flash" and not masked:
        return f"attention by torch's {_of_torch(run)}, --attention-backend {run.attention_backend}"
    of_torch = "variable-length flash kernel" if masked else "flash kernel"
    found = package()
    if isinstance(found, str):
        return f"attention by torch's own {of_torch}: the package flash-attn {found}"
    return f"attention by flash-attn {found.__version__}"


def _of_torch(run: RunConfig) -> str:
    """Which of torch's kernels a GPU takes.

    Context ranks have fewer queries than keys, all but the first part of a sequence: a mask that only the flash kernel
    needs no matrix for (torch/nn/attention/bias.py, `CausalBias._dispatch`, torch 2.11 and 2.13).
    """
    if run.layout.context_parallel_size == 1 or run.sharding.precision != "bf16":
        return "kernels"
    named = {"auto": "flash kernel, and its cuDNN kernel for the first part of a sequence", "sdpa": "flash kernel"}
    return named.get(run.attention_backend, "kernels")
