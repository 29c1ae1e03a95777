"""How much arithmetic one token costs, and how much a device can do: the two halves of TFLOP/s and MFU.

Published figures differ by the convention they count attention with, so both are computed and both carry their name.
Neighbours: `config.parameters` counts the matrices, `training.metrics` divides by the time of a step.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from tinyllama_mcore.config.parameters import count_matmul_parameters
from tinyllama_mcore.config.schema import ModelConfig

A100, H100_SXM = 312e12, 989.4e12
"""Dense bf16 FLOP/s. The second is that of every full GH100 chip: H100 and H200 as SXM modules, GH200, H800."""

DENSE_BF16_PEAKS: tuple[tuple[str, float], ...] = (
    (r"\bGH200\b", H100_SXM),
    (r"\bB200\b", 2250e12),
    (r"\bH200 NVL\b", 835.5e12),
    (r"\bH200\b", H100_SXM),
    (r"\bH100 NVL\b", 835.5e12),
    (r"\bH100 (PCIe|80GB HBM2e)", 756.4e12),
    (r"\bH100\b", H100_SXM),  # SXM calls itself "NVIDIA H100 80GB HBM3"
    (r"\bH800 PCIe\b", 756.4e12),
    (r"\bH800\b", H100_SXM),
    (r"\bH20\b", 148e12),
    (r"\bA[18]00\b", A100),  # SXM and PCIe alike; A800 differs only in its links
    (r"\bL40S\b", 362e12),
    (r"\bL4\b", 121e12),
    (r"\bA10\b", 125e12),
)
"""(pattern for the name the driver gives, FLOP/s): NVIDIA's data sheets without sparsity. The first match holds."""


@dataclass(frozen=True, kw_only=True)
class FlopsPerToken:
    """Floating-point operations of one token, forward and backward, by convention. A multiply-add counts as two."""

    full_attention: float
    """6 N + 12 L H Q T: every query meets every key (PaLM, appendix B, without the embedding look-up)."""
    causal_attention: float
    """6 N + 6 L H Q T: the half of the attention matrix above the diagonal is not counted."""


def flops_per_token(model: ModelConfig, seq_length: int) -> FlopsPerToken:
    """Cost of one token in a sequence of `seq_length` tokens; recomputed activations are not counted (PaLM's rule).

    Args:
        model: the architecture, with its vocabulary size known.
        seq_length: tokens in one sample, T.
    """
    weights = 6 * count_matmul_parameters(model)
    attention = 12 * model.num_layers * model.num_attention_heads * model.head_dim * seq_length
    return FlopsPerToken(full_attention=weights + attention, causal_attention=weights + attention / 2)


def dense_bf16_peak(device_name: str | None) -> float | None:
    """FLOP/s that the device's data sheet promises for dense bf16 products, or None where no figure is known.

    None is for a CPU, a device that the table lacks, and a MIG slice, whose share of the peak its name does not tell.
    """
    if device_name is None or " MIG " in f"{device_name} ":
        return None
    return next((peak for pattern, peak in DENSE_BF16_PEAKS if re.search(pattern, device_name)), None)
