"""Megatron's pipeline schedules driving one model: the only room that knows them.

`run` is one signature for training and evaluation, and, once there are several pipeline chunks, for 1F1B and
interleaved schedules too: `get_forward_backward_func` picks the schedule.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from megatron.core.pipeline_parallel import get_forward_backward_func, schedules

from tinyllama_mcore.data.loader import TokenBatch
from tinyllama_mcore.model.gpt import TinyLlama, positions
from tinyllama_mcore.parallel.mesh import Mesh

Forward = Callable[..., torch.Tensor]
"""Called like GPTModel.forward: the model itself, or a library's wrapper around it."""


class _Chunk:
    """What a schedule asks of a model, without the attributes of a library's wrapper.

    Passing a DeepSpeed engine itself would make Megatron read DeepSpeed's `engine.config` for its own.
    """

    def __init__(self, model: TinyLlama) -> None:
        self.config = model.config
        self.model_type = model.model_type
        self.set_input_tensor = model.set_input_tensor


def _mean_loss(loss: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss of each token [b, s] -> (mean to go backward from, copy to report).

    The copy matters: Megatron divides the first by the number of micro-batches in place.
    """
    mean = loss.mean()
    return mean, mean.detach().clone()


def run(
    model: TinyLlama, forward: Forward, batches: Sequence[TokenBatch], mesh: Mesh, *, forward_only: bool
) -> torch.Tensor:
    """Every micro-batch forward, and backward unless `forward_only`; returns the global batch's mean loss, a scalar.

    Gradients are left in the parameters (or wherever `forward`'s library puts them), averaged over micro-batches.
    """
    _install_cpu_stand_in()

    def forward_step(data: Any, _: _Chunk) -> tuple[torch.Tensor, Callable]:  # noqa: ANN401  Megatron's own iterator
        batch: TokenBatch = next(data)
        tokens, labels = batch.tokens.to(mesh.device), batch.labels.to(mesh.device)
        return forward(tokens, positions(tokens), None, labels=labels), _mean_loss

    losses = get_forward_backward_func()(
        forward_step_func=forward_step,
        data_iterator=iter(batches),
        model=_Chunk(model),
        num_microbatches=len(batches),
        seq_length=batches[0].tokens.shape[1],
        micro_batch_size=batches[0].tokens.shape[0],
        forward_only=forward_only,
    )
    mean = torch.stack(losses).mean()
    torch.distributed.all_reduce(mean, group=mesh.data.group)
    return mean / mesh.data.size


class _TorchOnCpu:
    """torch, but `zeros` ignores a hard-coded device="cuda"."""

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401  a module's attribute can be anything
        return getattr(torch, name)

    @staticmethod
    def zeros(*size: Any, device: str = "cpu", **kwargs: Any) -> torch.Tensor:  # noqa: ANN401  torch's own signature
        return torch.zeros(*size, device="cpu", **kwargs)


def _install_cpu_stand_in() -> None:
    """All three schedules make `total_num_tokens` on "cuda" (schedules.py, megatron-core 0.16.1 and 0.19.2)."""
    if not torch.cuda.is_available():
        schedules.torch = _TorchOnCpu()
