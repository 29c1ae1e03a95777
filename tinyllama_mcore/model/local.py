"""Megatron's decoder layer with our activation: the `local` layers, and what fused ones are called through.

Its attention and norms are put in by `gpt.layer_spec`. Neighbour: `fused_model` has the fused layer, over the same
parameters.
"""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer.transformer_layer import TransformerLayer

from tinyllama_mcore.model.swiglu import SwiGLU


class RowLinear(RowParallelLinear):
    """Megatron's, with its group named: else the first rank warns of its absence at every call, and it alone.

    torch.compile then cuts that rank's graphs at each warning, and its gradients come in another order than the others'
    (megatron-core 0.16.1 to 0.19.2).
    """

    def _forward_impl(self, *args: Any, tp_group: object, **kwargs: Any) -> torch.Tensor:  # noqa: ANN401  Megatron's own
        return super()._forward_impl(*args, tp_group=self.tp_group, **kwargs)


class DecoderLayer(TransformerLayer):
    """Megatron's layer with our activation, called with its hidden states by position, where DeepSpeed's hooks look.

    Megatron calls it only with keywords, and DeepSpeed would never learn that its backward pass is over (0.19.8).
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401  Megatron's own
        """As Megatron builds it."""
        super().__init__(*args, **kwargs)
        self.mlp.activation_func = SwiGLU()
        for linear in (self.self_attention.linear_proj, self.mlp.linear_fc2):
            linear.__class__ = RowLinear  # specs of megatron-core 0.16 and 0.19 hold the second in different places

    def __call__(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401  Megatron's own
        """Hidden states [s, b, h] to the same shape, and Megatron's second output, the context."""
        return super().__call__(hidden_states, *args, **kwargs)


def compile_forward(layer: torch.nn.Module) -> None:
    """Compile only the forward pass of a decoder layer: engines hang their hooks around it.

    Megatron's column-parallel linear layers start an all-reduce in their backward pass and wait for it later, which no
    graph holds; without it they call one that ends before it returns (tensor_parallel/layers.py, 0.16.1 to 0.19.2).
    """
    for linear in layer.modules():
        if isinstance(linear, ColumnParallelLinear):
            linear.allreduce_dgrad = False
    layer.forward = torch.compile(layer.forward)
