"""Runs Megatron's pipeline schedules over this rank's model chunks. Nothing else imports them.

`train` and `sequence_losses` are the same without a pipeline, with 1F1B and with the interleaved schedule:
`get_forward_backward_func` picks. Shapes: s sequence, b micro-batch, v vocabulary; a rank holds v/tp and s/cp.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import megatron.core
import torch
from megatron.core.pipeline_parallel import get_forward_backward_func, schedules

from tinyllama_mcore.model import context, documents
from tinyllama_mcore.model.gpt import ModelChunks, TinyLlama
from tinyllama_mcore.parallel.mesh import Mesh
from tinyllama_mcore.sampling.loader import TokenBatch

Forward = Callable[..., torch.Tensor]
"""Called like ModelChunks.forward: the model itself, or a library's wrapper around it."""


class _Chunk(torch.nn.Module):
    """What a schedule asks of a model, without the attributes of a library's wrapper.

    Passing a DeepSpeed engine itself would make Megatron read DeepSpeed's `engine.config` for its own.
    """

    def __init__(self, number: int, model: TinyLlama) -> None:
        super().__init__()
        self.number = number
        self.config = model.config
        self.model_type = model.model_type
        self.set_input_tensor = model.set_input_tensor


def train(
    model: ModelChunks,
    forward: Forward,
    batches: Sequence[TokenBatch],
    mesh: Mesh,
    *,
    before_backward: Callable[[], None] | None = None,
) -> torch.Tensor:
    """Every micro-batch forward and backward; returns the global batch's mean loss, a scalar.

    Gradients are left in the parameters (or wherever `forward`'s library puts them), averaged over micro-batches.
    `before_backward` is called before each chunk's backward pass of each micro-batch.
    """

    def loss_of(loss: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Loss of each token [b, s/cp] -> (mean to go backward from, what to divide it by, copy to report).

        The copy matters: Megatron divides the first by the number of micro-batches in place.
        """
        mean = loss.mean()
        return mean, torch.ones((), dtype=torch.int, device=mean.device), mean.detach().clone()

    with _called_before_backward(before_backward, times=len(batches) * len(model.chunks)):
        losses = _drive(model, forward, batches, mesh, loss_of, with_labels=True, forward_only=False)
    return global_mean(torch.stack(losses).mean() if losses else torch.zeros((), device=mesh.device), mesh)


def sequence_losses(model: ModelChunks, forward: Forward, batches: Sequence[TokenBatch], mesh: Mesh) -> torch.Tensor:
    """Every micro-batch forward; returns the mean loss of each sequence of the global batch [batch], on every rank.

    Sequences stand in the order of the run's samples: of a micro-batch, data rank after data rank.
    """
    rows = batches[0].tokens.shape[0]

    def of_rows(loss: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Loss of each token [b, s/cp], or packed [1, b s] -> as in `train`, reporting the mean of each row [b]."""
        means = loss.float().view(rows, -1).mean(dim=1)
        return means.sum(), torch.ones((), dtype=torch.int, device=means.device), means

    found = _drive(model, forward, batches, mesh, of_rows, with_labels=True, forward_only=True)
    whole = torch.zeros(len(batches), mesh.data.size, rows, device=mesh.device)
    if found:
        whole[:, mesh.data.rank] = torch.stack(found) / mesh.context.size  # each context rank has a part of a row
    torch.distributed.all_reduce(whole, group=mesh.shard.group)
    return _from_last_pipeline_rank(whole.flatten(), mesh)


def global_mean(mean: torch.Tensor, mesh: Mesh) -> torch.Tensor:
    """The mean over the shard axis of what its ranks have, a scalar each: the same bits on every rank of the job.

    Whether an update is made depends on it. Tensor-parallel ranks reduce in groups of their own, and NCCL gives equal
    bits within one group only: so one rank of each copy of the model has the word.
    """
    torch.distributed.all_reduce(mean, group=mesh.shard.group)
    return _from_last_pipeline_rank(mean / mesh.shard.size, mesh)


def logits(model: ModelChunks, forward: Forward, tokens: torch.Tensor, mesh: Mesh) -> torch.Tensor:
    """Tokens [b, s], the same on every rank -> logits [b, s, vocab_size], whole on every rank."""

    def whole(local: torch.Tensor, non_loss_data: bool = True) -> torch.Tensor:
        return model.chunks[-1].whole_logits(local)  # [b, s/cp, vocab_size]

    # an interleaved schedule takes a multiple of its ranks: the same batch again, whose logits are left
    batches = [TokenBatch(tokens=tokens, labels=tokens)] * (mesh.pipeline.size if len(model.chunks) > 1 else 1)
    found = _drive(model, forward, batches, mesh, whole, with_labels=False, forward_only=True)
    shape = (tokens.shape[0], tokens.shape[1] // mesh.context.size, model.chunks[-1].true_vocab_size)
    own = found[0].float() if found else torch.zeros(shape, device=mesh.device)
    own = _from_last_pipeline_rank(own.contiguous(), mesh)
    parts = [torch.empty_like(own) for _ in range(mesh.context.size)]
    torch.distributed.all_gather(parts, own, group=mesh.context.group)
    return context.in_order(torch.cat(parts, dim=1), mesh.context.size, dim=1)


def _drive(
    model: ModelChunks,
    forward: Forward,
    batches: Sequence[TokenBatch],
    mesh: Mesh,
    at_the_end: Callable[..., Any],
    *,
    with_labels: bool,
    forward_only: bool,
) -> list[torch.Tensor]:
    """Megatron's schedule over `batches`; what `at_the_end` made of each last chunk's output, [] on other ranks."""
    _install_cpu_stand_in()

    def forward_step(data: Iterator[TokenBatch], chunk: _Chunk) -> tuple[torch.Tensor, Callable]:
        inputs = _inputs(next(data), mesh, with_labels=with_labels)
        return forward(chunk.number, **inputs), at_the_end

    chunks = [_Chunk(number, chunk) for number, chunk in enumerate(model.chunks)]
    rows, length = batches[0].tokens.shape
    packed = batches[0].document_starts is not None
    with model.iteration(len(batches)):
        return get_forward_backward_func()(
            forward_step_func=forward_step,
            data_iterator=[iter(batches) for _ in chunks],
            model=chunks,
            num_microbatches=len(batches),
            seq_length=rows * length if packed else length,
            micro_batch_size=1 if packed else rows,
            forward_only=forward_only,
            collect_non_loss_data=not with_labels,
        )


def _inputs(batch: TokenBatch, mesh: Mesh, *, with_labels: bool) -> dict[str, Any]:
    """A micro-batch as ModelChunks.forward takes it: on the device, this rank's part of each sequence."""

    def own(whole: torch.Tensor) -> torch.Tensor:
        part = context.own_chunks(whole, mesh.context.rank, mesh.context.size, dim=1)
        if mesh.device.type == "cuda":  # a copy from pageable memory would wait for all that the GPU has to do before
            part = part.pin_memory()
        return part.to(mesh.device, non_blocking=True)

    inputs: dict[str, Any] = {"tokens": own(batch.tokens)}  # [b, s/cp]
    if with_labels:
        inputs["labels"] = own(batch.labels)
    if batch.document_starts is not None:
        inputs = {name: tensor.view(1, -1) for name, tensor in inputs.items()}  # [1, b s]
        inputs["packed_seq_params"] = documents.packed(batch.document_starts, mesh.device)
    return inputs


def _from_last_pipeline_rank(value: torch.Tensor, mesh: Mesh) -> torch.Tensor:
    """What the last pipeline rank has, the first of its tensor-parallel ranks, on every rank of the model."""
    if mesh.model.size > 1:
        source = mesh.tensor.size * (mesh.pipeline.size - 1)  # the tensor axis varies fastest
        torch.distributed.broadcast(value, group=mesh.model.group, group_src=source)
    return value


@contextmanager
def _called_before_backward(callback: Callable[[], None] | None, *, times: int) -> Iterator[None]:
    """Megatron's `backward_step` with `callback` before it, for the length of the block.

    Raises:
        RuntimeError: it was called another number of times; gradients are then not reduced, or not whole.
    """
    if callback is None:
        yield
        return
    original, seen = schedules.backward_step, 0

    def backward_step(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401  its arguments differ between 0.16.1 and 0.19.2
        nonlocal seen
        seen += 1
        callback()
        return original(*args, **kwargs)

    schedules.backward_step = backward_step
    try:
        yield
    finally:
        schedules.backward_step = original
    if seen != times:
        raise RuntimeError(
            f"internal error: {seen} of {times} backward passes were seen: megatron-core {megatron.core.__version__} "
            "does not call schedules.backward_step for each micro-batch of each chunk, as 0.16.1 and 0.19.2 do"
        )


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
