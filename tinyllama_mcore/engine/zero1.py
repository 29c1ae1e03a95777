"""ZeRO-1 in bf16 as GPUs run it: DeepSpeed's BF16_Optimizer without what makes a GPU wait, and a graph where one fits.

Its buffers and its sharding are DeepSpeed's, to which fused layers add in the matrix product itself
(`deepspeed_engine._share_gradients`). Four things are ours:

- A micro-batch's passes are replayed as a CUDA graph (`cuda_graph`), where nothing in them needs NCCL.
- Norm, clipping and what to do with a bad update are decided on the GPU. DeepSpeed asks for the norm of each parameter,
  waits for the answer three times an update, and multiplies and clears the whole buffer once more than needed. Here the
  host waits for loss and norm alone, and prepares the next iteration while this one's update is made.
- Gradients are reduce-scattered, each rank to the part that it updates. DeepSpeed all-reduces all of them, through a
  copy, and with one rank it multiplies by one.
- Master weights are halves (`kernels.halves`): the bf16 weights and 2 bytes beside them, not 4. AdamW, clipping and the
  new bf16 weights are one kernel. DeepSpeed's fp32 partition has memory only while state is read or written.

Seen in DeepSpeed 0.19.8. Without a GPU the step is DeepSpeed's own; tests/distributed/test_curves.py has both curves.
Neighbour: `deepspeed_engine` is what this is made of.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import deepspeed
import torch
from deepspeed.runtime.bf16_optimizer import BF16_Optimizer

from tinyllama_mcore.config import engines
from tinyllama_mcore.config.schema import RunConfig
from tinyllama_mcore.engine import schedule
from tinyllama_mcore.engine.cuda_graph import MicroBatchGraph
from tinyllama_mcore.engine.deepspeed_engine import DeepSpeedEngine
from tinyllama_mcore.engine.protocol import StepResult, step_result
from tinyllama_mcore.engine.zero_state import Stage12State
from tinyllama_mcore.kernels import halves
from tinyllama_mcore.model.gpt import ModelChunks
from tinyllama_mcore.model.products import kernels_on
from tinyllama_mcore.parallel.exchange import exchanges
from tinyllama_mcore.parallel.mesh import Mesh
from tinyllama_mcore.parallel.own_time import OwnTime
from tinyllama_mcore.sampling.loader import TokenBatch


def fits(run: RunConfig, mesh: Mesh) -> bool:
    """Whether this is the engine of a run."""
    return _on_gpus(mesh) and engines.has_own_step(run)


def _on_gpus(mesh: Mesh) -> bool:
    return mesh.device.type == "cuda"


class Zero1Engine(DeepSpeedEngine):
    """DeepSpeed's ZeRO-1 with a step of our own."""

    _step_on_gpu: DeviceStep

    def __init__(self, run: RunConfig, mesh: Mesh, model: ModelChunks) -> None:
        """See `DeepSpeedEngine`."""
        super().__init__(run, mesh, model)
        self._engine.enable_backward_allreduce = False  # the step reduces
        self._graph: MicroBatchGraph | None = None
        calls_nccl = mesh.tensor.size > 1 and not exchanges(run, mesh.device)
        if engines.replays_a_graph(run) and not calls_nccl:
            self._graph = MicroBatchGraph(model)
        self._ran_once = False
        if self._group_norms is not None:
            self._step_on_gpu.before_update = self._group_norms.add

    def _take_over(self, optimizer: Any) -> Zero1State:  # noqa: ANN401
        """`optimizer` takes our step from here on; called while DeepSpeedEngine is made."""
        self._step_on_gpu = DeviceStep.adopt(optimizer, self._adam, self._mesh)
        return Zero1State(self._model, self._adam, self._step_on_gpu)

    def _passes(self, batches: Sequence[TokenBatch]) -> torch.Tensor:
        """By a graph; in the first iteration, and where none fits, by the schedule."""
        self._step_on_gpu.let_masters_go()
        if self._graph is not None and self._ran_once:
            return schedule.global_mean(self._graph.run(batches), self._mesh)
        self._ran_once = True
        return super()._passes(batches)

    def _update(self, loss: torch.Tensor, largest_loss: float) -> StepResult:
        """Returns when loss and norm are known, while the GPU may still be at it."""
        self._tell_of_gradients()
        self._step_on_gpu.expect(loss, largest_loss)
        self._engine.step()
        self._keep_in_float8()
        return step_result(*self._step_on_gpu.reading.wait(), largest_loss)

    def _taken_scale(self, result: StepResult) -> float:
        """See `ShardingEngine._taken_scale`: the step takes sums over the shard axis, not clipped yet."""
        return 1 / self._mesh.shard.size

    def describe(self) -> str:
        """See `ShardingEngine.describe`."""
        passes = "passes are a CUDA graph" if self._graph is not None else "schedule calls the module"
        return f"DeepSpeed {deepspeed.__version__} ZeRO-1 (DeviceStep), {passes}, AdamW and clipping in one kernel"

    def watch(self, own_time: OwnTime) -> None:
        """See `ShardingEngine.watch`. A graph is one piece, in which nobody waits: it is measured as a whole."""
        if self._graph is not None:
            self._graph.passing = own_time.passing
        else:
            super().watch(own_time)


class Reading:
    """Two numbers on their way to the host, which waits for them and not for what the GPU was given to do since."""

    def __init__(self, loss: torch.Tensor, norm: torch.Tensor) -> None:
        """Two scalars on the GPU."""
        self._numbers = torch.stack([loss.float(), norm]).to("cpu", non_blocking=True)  # to pinned memory
        self._there = torch.get_device_module(norm.device).Event()
        self._there.record()

    def wait(self) -> tuple[float, float]:
        """Loss and norm, once they are there."""
        self._there.synchronize()
        loss, norm = self._numbers.tolist()
        return loss, norm


class DeviceStep(BF16_Optimizer):
    """A BF16_Optimizer whose step does not wait for the GPU. `adopt` makes one of what DeepSpeed built."""

    _mesh: Mesh
    _adam: torch.optim.AdamW
    _counted: list[torch.Tensor]
    """What this rank counts of the gradient's norm: of its own part, each element of the model once."""
    _rests: list[torch.Tensor]
    """Of each group's partition, what the bf16 weights leave out of the master weights: int16."""
    _loss: torch.Tensor
    _accepted: torch.Tensor
    """Of the step to come: its loss, and whether weights may change with it."""

    reading: Reading
    """Loss and gradient norm of the last step."""
    before_update: Callable[[], None] | None = None
    """Called where the gradients of the shard axis are summed up, and not yet clipped."""

    @classmethod
    def adopt(cls, optimizer: Any, adam: torch.optim.AdamW, mesh: Mesh) -> DeviceStep:  # noqa: ANN401
        """`optimizer`, a BF16_Optimizer over fp32 gradients, as one.

        It averages the gradients over the shard axis: DeepSpeed's engine must not.
        """
        optimizer.__class__ = cls
        optimizer._mesh, optimizer._adam = mesh, adam
        optimizer._counted = list(optimizer._own_gradients())
        optimizer._rests = [
            torch.zeros_like(master, dtype=torch.int16) for master in optimizer.fp32_groups_flat_partition
        ]
        optimizer._split()
        return optimizer

    def _own_gradients(self) -> Iterator[torch.Tensor]:
        """The part of each gradient in this rank's part of the buffer, if this tensor-parallel rank counts it."""
        for parameters, part in zip(self.bf16_groups, self.fp32_groups_gradient_flat_partition, strict=True):
            first, begin = self._mesh.shard.rank * part.numel(), 0
            for parameter in parameters:
                low, high = max(begin - first, 0), min(begin + parameter.numel() - first, part.numel())
                if low < high and (parameter.tensor_model_parallel or self._mesh.tensor.rank == 0):
                    yield part[low:high]
                begin += parameter.numel()

    def _halves(self) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        """Of each group: its master weights, which may have no memory, and their halves."""
        weights = (partitions[self._mesh.shard.rank] for partitions in self.bf16_partitioned_groups)
        return zip(self.fp32_groups_flat_partition, weights, self._rests, strict=True)

    @torch.no_grad()
    def join_masters(self) -> None:
        """Give the master weights memory, until `let_masters_go`, and put them together from their halves."""
        for master, weight, rest in self._halves():
            master.untyped_storage().resize_(master.numel() * master.element_size())
            halves.join(master.data, weight, rest)

    def let_masters_go(self) -> None:
        """Take the memory of the master weights back: an update needs only their halves."""
        for master in self.fp32_groups_flat_partition:
            master.untyped_storage().resize_(0)

    @torch.no_grad()
    def _split(self) -> None:
        for master, weight, rest in self._halves():
            halves.split(master.data, weight, rest)

    def update_lp_params(self) -> None:
        """After master weights were written: what the forward pass uses is made of them, on every rank."""
        self._split()
        for sent in self._gather():
            sent.wait()

    def _gather(self) -> list[torch.distributed.Work]:
        """Every rank's part of the bf16 weights, to every rank, by NCCL beside what the GPU does meanwhile."""
        shard = self._mesh.shard
        if shard.size == 1:
            return []
        return [
            torch.distributed.all_gather_into_tensor(whole, parts[shard.rank], group=shard.group, async_op=True)
            for whole, parts in zip(self.bf16_groups_flat, self.bf16_partitioned_groups, strict=True)
        ]

    def expect(self, loss: torch.Tensor, largest_loss: float) -> None:
        """Before a step: its mean loss, a scalar on the GPU, and the largest one with which weights may change."""
        self._loss, self._accepted = loss, torch.isfinite(loss) & (loss <= largest_loss)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Clip, update, refresh the bf16 weights, clear. `_global_grad_norm` is then a scalar on the GPU.

        An update whose norm is not finite, or whose loss is not accepted, changes nothing and counts as none.
        """
        ranks = self._mesh.shard.size
        if ranks > 1:
            for whole, part in zip(
                self.fp32_groups_gradients_flat, self.fp32_groups_gradient_flat_partition, strict=True
            ):  # in place: a rank's part lies where NCCL wants it
                torch.distributed.reduce_scatter_tensor(part, whole, group=self._mesh.shard.group)
        self._global_grad_norm = norm = self._norm() / ranks
        self.reading = Reading(self._loss, norm)
        if self.before_update is not None:
            self.before_update()
        made = torch.isfinite(norm) & self._accepted
        divisor = torch.clamp((norm + 1e-6) / self.clip_grad, min=1.0) if self.clip_grad > 0 else torch.ones_like(norm)
        groups = zip(self._adam.param_groups, self._halves(), self.fp32_groups_gradient_flat_partition, strict=True)
        for group, (master, weight, rest), gradient in groups:
            self._update(group, self._adam.state[master], weight, rest, gradient, ranks * divisor, made)
        gathered = self._gather()
        self.clear_hp_grads()
        for sent in gathered:
            sent.wait()

    def _norm(self) -> torch.Tensor:
        """The global norm of the gradient: of every rank's part."""
        square = torch.zeros((), device=self._mesh.device)
        if self._counted:
            square += torch.stack(torch._foreach_norm(self._counted)).square().sum()
        for axis in (self._mesh.shard, self._mesh.model):
            if axis.size > 1:
                torch.distributed.all_reduce(square, group=axis.group)
        return square.sqrt()

    def _update(
        self,
        group: dict[str, Any],
        state: dict[str, torch.Tensor],
        weight: torch.Tensor,
        rest: torch.Tensor,
        gradient: torch.Tensor,
        divisor: torch.Tensor,
        made: torch.Tensor,
    ) -> None:
        """AdamW over one group's partition; what depends on the number of updates is computed on the GPU, in fp64."""
        state["step"] += made
        step, (beta1, beta2) = state["step"].double(), group["betas"]
        scalars = torch.stack(
            [
                divisor.double(),
                torch.full_like(step, 1 - group["lr"] * group["weight_decay"]),
                group["lr"] / (1 - beta1**step),
                (1 - beta2**step).sqrt(),
                made.double(),
            ]
        ).float()
        moments = (state["exp_avg"], state["exp_avg_sq"])
        kernels_on(gradient.device).adamw(weight, rest, moments, gradient, scalars, group["betas"], group["eps"])

    def zero_grad(self, set_to_none: bool = True) -> None:
        """`step` cleared the fp32 buffer; DeepSpeed's engine calls this after it."""
        self.clear_lp_grads(set_to_none=True)


class Zero1State(Stage12State):
    """Masters that are put together from their halves where state is read or written."""

    _optimizer: DeviceStep

    def begin(self) -> None:
        """Masters have memory from here on."""
        self._optimizer.join_masters()
        super().begin()

    def rounded(self, weight: torch.Tensor) -> torch.Tensor:
        """The upper one of a weight's halves."""
        return halves.rounded(weight)

    def _gradient_of(self, group: int) -> torch.Tensor:
        """The part of the flat buffer that this rank updates."""
        return self._optimizer.fp32_groups_gradient_flat_partition[group]
