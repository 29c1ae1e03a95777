"""A head that multiplies by the embedding (Press and Wolf 2017, arXiv 1608.05859), on one pipeline rank and on two.

One rank has both: they are one parameter. Two: the first pipeline rank owns the matrix and the last one borrows it.
Each iteration the first sends it once, and gets back once what the last added up of its gradient, in time for its own
last backward pass. Engines, checkpoints and the norm of the gradient know one parameter on one rank. Megatron keeps two
copies with two optimizer states and all-reduces their gradients between the passes and the update, where ZeRO has
reduced or cut them already (`_allreduce_word_embedding_grads`, megatron-core 0.16.1).
Neighbours: `gpt` ties, `engine.schedule` says when an iteration begins and ends.
Shapes: s sequence, b micro-batch, h hidden, v padded vocabulary; a rank holds v/tp rows.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from megatron.core.tensor_parallel import ColumnParallelLinear, VocabParallelEmbedding
from torch.distributed import ProcessGroup

from tinyllama_mcore.model.weight_gradients import Gradients, WeightFunction, added_gradient

OWNER, BORROWER = 0, 1
"""Places in Megatron's embedding group: the first pipeline rank and the last."""


class Tie(Protocol):
    """One end of a tie between two pipeline ranks."""

    def begin(self, passes: int) -> None:
        """Before the micro-batches of an iteration, or of an evaluation: so many forward passes, and backward ones."""

    def finish(self) -> None:
        """After them: what was sent may be overwritten."""


class Lender:
    """The first pipeline rank's end: sends the embedding, and takes the head's gradient of it."""

    def __init__(self, embedding: VocabParallelEmbedding, group: ProcessGroup) -> None:
        """`embedding` has the parameter, `weight` [v/tp, h]."""
        self._group = group
        self._left = 0
        self._sending: tuple[Any, torch.Tensor] | None = None
        embedding.register_forward_hook(self._lend)
        torch.distributed.send(_greeting(embedding.weight.device), group=group, group_dst=BORROWER)

    def begin(self, passes: int) -> None:
        """See `Tie`."""
        self._left, self._sending = passes, None

    def finish(self) -> None:
        """See `Tie`."""
        if self._sending is not None:
            self._sending[0].wait()

    def _lend(self, embedding: VocabParallelEmbedding, _: Any, rows: torch.Tensor) -> torch.Tensor:  # noqa: ANN401  torch's own
        """After each of its forward passes, where the weight is whole whatever shards it."""
        weight = embedding.weight
        if self._sending is None:
            whole = weight.detach().contiguous()
            self._sending = torch.distributed.isend(whole, group=self._group, group_dst=BORROWER), whole
        return _Lent.of(self, (weight,), rows)

    def gradient(self, weight: torch.Tensor) -> torch.Tensor | None:
        """In each of its backward passes: what the head adds to the gradient of `weight`, with the last one."""
        self._left -= 1
        if self._left:
            return None
        grad_weight = torch.empty(weight.shape, dtype=torch.float32, device=weight.device)
        torch.distributed.recv(grad_weight, group=self._group, group_src=BORROWER)
        return added_gradient(weight, grad_weight)


def _greeting(device: torch.device) -> torch.Tensor:
    """What the two ranks send first, while neither waits for anything else.

    NCCL makes the communicator of a pair at its first message, and the sender waits for the receiver there: in the
    middle of a pipeline that waits for ever (torch 2.13, ProcessGroupNCCL).
    """
    return torch.zeros(1, device=device)


class _Lent(WeightFunction):
    """Rows of the embedding as they are; backward, the head's gradient of it too."""

    @staticmethod
    def compute(ctx: Any, rows: torch.Tensor) -> torch.Tensor:  # noqa: ANN401
        return rows.view_as(rows)

    @staticmethod
    def gradients(ctx: Any, grad_rows: torch.Tensor) -> Gradients:  # noqa: ANN401
        (weight,), lender = ctx.weights, ctx.setup
        return (grad_rows,), (lender.gradient(weight),)


class Borrower:
    """The last pipeline rank's end: the head's matrix is no parameter here, but what the first rank sent last."""

    def __init__(
        self, head: ColumnParallelLinear, group: ProcessGroup, dtype: torch.dtype, device: torch.device
    ) -> None:
        """The place of `head.weight` [v/tp, h] is taken by a tensor in `dtype`, the precision of the passes."""
        self._group = group
        self._left = 0
        self._is_here = False
        self._sending: Any = None
        shape = head.weight.shape
        self._weight = torch.empty(shape, dtype=dtype, device=device, requires_grad=True)
        self._sum = torch.zeros(shape, dtype=torch.float32, device=device)
        del head.weight
        head.weight = self._weight
        head.register_forward_pre_hook(self._borrow)
        self._weight.register_post_accumulate_grad_hook(self._add)
        torch.distributed.recv(_greeting(device), group=group, group_src=OWNER)

    def begin(self, passes: int) -> None:
        """See `Tie`."""
        self._left, self._is_here, self._sending = passes, False, None

    def finish(self) -> None:
        """See `Tie`."""
        if self._sending is not None:
            self._sending.wait()
            self._sum.zero_()

    def _borrow(self, *_: object) -> None:
        """Before each forward pass of the head."""
        if not self._is_here:
            torch.distributed.recv(self._weight.detach(), group=self._group, group_src=OWNER)
            self._is_here = True

    def _add(self, weight: torch.Tensor) -> None:
        """After each of its backward passes: gradients, in the precision of the passes, add up in fp32.

        Where one rank has both ends and layers add to `main_grad`, no micro-batch's gradient is rounded.
        """
        assert weight.grad is not None
        self._sum += weight.grad
        weight.grad = None
        self._left -= 1
        if not self._left:
            self._sending = torch.distributed.isend(self._sum, group=self._group, group_dst=OWNER)
