"""FLOPs, parameter counts and peaks against published figures."""

from __future__ import annotations

import dataclasses

import pytest

from tests.distributed.variants import VARIANTS, shape_of
from tinyllama_mcore.config.parameters import count_matmul_parameters, count_parameters
from tinyllama_mcore.config.recipes import RECIPES
from tinyllama_mcore.model.flops import dense_bf16_peak, flops_per_token

PAPER = RECIPES["tinyllama-1.1b"].model


def test_parameters_of_the_paper() -> None:
    """The released weights hold 1,100,048,384 elements."""
    assert count_parameters(PAPER) == 1_100_048_384
    assert count_matmul_parameters(PAPER) == 1_034_420_224


def test_both_conventions_at_2048() -> None:
    """7.314 G counting full attention, 6.760 G counting causal attention."""
    cost = flops_per_token(PAPER, 2048)
    assert cost.full_attention == pytest.approx(7.314e9, abs=0.5e6)
    assert cost.causal_attention == pytest.approx(6.760e9, abs=0.5e6)


@pytest.mark.parametrize("variant", ["", *VARIANTS])
def test_full_attention_counts_what_torch_counts(variant: str) -> None:
    """FlopCounterMode of torch over a HF model of the same shape agrees: 2 operations a multiply-add, times 3.

    A tied head multiplies; biases and norms are not counted, and torch does not count them either.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from tests.distributed.reference import reference_model

    plain = dataclasses.replace(RECIPES["tinyllama-debug"].model, vocab_size=512)
    model = shape_of(variant) if variant else plain
    reference = reference_model(model)
    tokens = torch.zeros(2, 64, dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        reference(tokens)
    ours = flops_per_token(model, 64).full_attention * tokens.numel()
    assert ours == pytest.approx(3 * counter.get_total_flops(), rel=1e-3)


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA A100-SXM4-40GB", 312e12),
        ("NVIDIA A100 80GB PCIe", 312e12),
        ("NVIDIA H100 80GB HBM3", 989.4e12),
        ("NVIDIA H100 PCIe", 756.4e12),
        ("NVIDIA H200", 989.4e12),
        ("NVIDIA GH200 480GB", 989.4e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", None),
        ("Tesla P100-PCIE-16GB", None),
        ("AMD EPYC", None),
        (None, None),
    ],
)
def test_peak_by_device_name(name: str | None, peak: float | None) -> None:
    """The names are what the driver prints; an unknown one gets no figure rather than a wrong one."""
    assert dense_bf16_peak(name) == peak
