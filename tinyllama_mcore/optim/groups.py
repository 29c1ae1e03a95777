"""Which parameters are decayed: AdamW's groups, and the optimizer itself.

The original decays every parameter, norms and embeddings too; Megatron's habit is matrices only. A recipe says which.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch

from tinyllama_mcore.config.schema import OptimizerConfig


def adamw(
    parameters: Iterable[tuple[str, torch.nn.Parameter]], config: OptimizerConfig, *, on_gpu: bool
) -> torch.optim.AdamW:
    """AdamW over the named parameters; `on_gpu` takes torch's fused kernel. The learning rate is set at each step."""
    decayed: list[torch.nn.Parameter] = []
    spared: list[torch.nn.Parameter] = []
    for _, parameter in parameters:
        (decayed if config.weight_decay_on == "all" or parameter.dim() > 1 else spared).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": spared, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=config.lr,
        betas=(config.adam_beta1, config.adam_beta2),
        eps=config.adam_eps,
        fused=on_gpu,
    )
