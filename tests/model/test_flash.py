"""`--attention-backend flash`: by the package where it can be imported, by torch where not, and the start says which.

The package needs a GPU to be built for, so one of its name and signature is planted.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tinyllama_mcore.config import cli
from tinyllama_mcore.config.schema import RunConfig
from tinyllama_mcore.model import attention, documents, flash
from tinyllama_mcore.parallel.deterministic import deterministic

PLANTED = """
import torch
__version__ = "2.8.3"
calls = []

def flash_attn_func(q, k, v, causal, deterministic):
    calls.append("in one order" if deterministic else "whole")
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=True).transpose(1, 2)

def flash_attn_varlen_func(q, k, v, starts_q, starts_k, most_q, most_k, causal, deterministic):
    calls.append("documents")
    ends = list(zip(starts_q.tolist(), starts_q.tolist()[1:]))
    pieces = [[x[a:b].unsqueeze(0) for x in (q, k, v)] for a, b in ends]
    return torch.cat([flash_attn_func(*piece, causal, deterministic).squeeze(0) for piece in pieces])
"""
CONTEXT = ("--context-parallel-size", "2")
BROKEN = 'raise ImportError("undefined symbol: _ZN3c104cuda9SetDeviceEa")'


@pytest.fixture
def plant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str | None], None]]:
    """Put a package flash_attn on the path, or take the one that is there away."""

    def planted(source: str | None) -> None:
        if source is None:
            monkeypatch.setitem(sys.modules, "flash_attn", None)
        else:
            (tmp_path / "flash_attn.py").write_text(source)
            monkeypatch.syspath_prepend(tmp_path)
            monkeypatch.delitem(sys.modules, "flash_attn", raising=False)

    flash.package.cache_clear()
    yield planted
    flash.package.cache_clear()
    sys.modules.pop("flash_attn", None)


def run(*flags: str) -> RunConfig:
    """A run in bf16."""
    return cli.parse(["--deepspeed_config", "zero1", "--recipe", "tinyllama-1.1b", *flags], world_size=2, has_gpu=bool)


@pytest.mark.parametrize("source", [None, PLANTED, BROKEN], ids=["absent", "installed", "broken"])
def test_all_ways_give_what_the_math_kernel_gives(source: str | None, plant: Callable[[str | None], None]) -> None:
    """Query groups, and each token sees those before it; documents apart are whole sequences of their own."""
    plant(source)
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(24, 2, heads, 16, generator=generator) for heads in (8, 2, 2))
    right = attention.kernel("unfused")(query, key, value)
    torch.testing.assert_close(attention.kernel("flash")(query, key, value), right)
    calls = [] if source is not PLANTED else sys.modules["flash_attn"].calls
    assert calls == (["whole"] if source is PLANTED else [])
    with deterministic(True):
        torch.testing.assert_close(attention.kernel("flash")(query, key, value), right)
    assert calls == (["whole", "in one order"] if source is PLANTED else [])
    if source is PLANTED:
        starts = torch.tensor([0, 10, 24], dtype=torch.int32)
        found = documents._variable_length(query[:, 0], key[:, 0], value[:, 0], documents.packed(starts))
        torch.testing.assert_close(found[:10], right[:10, 0])
        alone = attention.kernel("unfused")(query[10:, :1], key[10:, :1], value[10:, :1])
        torch.testing.assert_close(found[10:], alone[:, 0])
        assert "documents" in calls


@pytest.mark.parametrize(
    ("source", "flags", "says"),
    [
        (PLANTED, ("--attention-backend", "flash"), "attention by flash-attn 2.8.3"),
        (
            None,
            ("--attention-backend", "flash"),
            "attention by torch's own flash kernel: the package flash-attn is not installed: pip install "
            "--no-build-isolation 'tinyllama_mcore[gpu]'",
        ),
        (
            BROKEN,
            ("--attention-backend", "flash"),
            "attention by torch's own flash kernel: the package flash-attn cannot be imported: undefined symbol: "
            "_ZN3c104cuda9SetDeviceEa",
        ),
        (PLANTED, (), "attention by torch's kernels, --attention-backend auto"),
        (PLANTED, CONTEXT, "attention by torch's flash kernel, and its cuDNN kernel for the first part of a sequence"),
        (PLANTED, (*CONTEXT, "--attention-backend", "sdpa"), "attention by torch's flash kernel, --attention-backend"),
        (PLANTED, ("--inter-document-masking",), "attention by flash-attn 2.8.3"),
        (BROKEN, ("--inter-document-masking",), "attention by torch's own variable-length flash kernel: the package"),
    ],
)
def test_the_start_says_which(
    source: str | None, flags: tuple[str, ...], says: str, plant: Callable[[str | None], None]
) -> None:
    """In bf16 on a GPU; a package that is there and does not load is told with its reason."""
    plant(source)
    assert flash.told(run(*flags)).startswith(says)


def test_documents_in_fp32_are_not_flash(plant: Callable[[str | None], None]) -> None:
    """They go through the kernel of whole sequences, one after the other."""
    plant(PLANTED)
    masked = run("--inter-document-masking")
    masked = replace(masked, sharding=replace(masked.sharding, precision="fp32"))
    assert flash.told(masked) == "attention by torch's kernels, --attention-backend auto"
