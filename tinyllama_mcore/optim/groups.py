"""AdamW: which parameters it decays, and the state it keeps.

The original decays every parameter, norms and embeddings too; Megatron's habit is matrices only. A recipe says which.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch

from tinyllama_mcore.config.schema import OptimizerConfig

MOMENTS = ("exp_avg", "exp_avg_sq")
"""Adam's two moments, by the names that torch and DeepSpeed give them."""


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


def create_moments(adam: torch.optim.AdamW, tensors: Iterable[torch.Tensor]) -> None:
    """Give each tensor the state that torch's AdamW would make at its first step, where it has none yet."""
    for tensor in tensors:
        if not adam.state[tensor]:
            device = tensor.device if adam.defaults["fused"] else "cpu"
            adam.state[tensor].update(
                step=torch.zeros((), dtype=torch.float32, device=device),
                **{name: torch.zeros_like(tensor, memory_format=torch.preserve_format) for name in MOMENTS},
            )


def set_updates(adam: torch.optim.AdamW, updates: int) -> None:
    """Say how many updates the moments have behind them."""
    for state in adam.state.values():
        state["step"].fill_(float(updates))
