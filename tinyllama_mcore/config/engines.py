"""How the engine runs what a JSON asks for: the stage it takes, where gradients add up, what is replayed as a graph.

Engines, rules and the planner all ask these functions.
"""

from __future__ import annotations

from tinyllama_mcore.config import exchange
from tinyllama_mcore.config.schema import RunConfig


def stage(run: RunConfig) -> int:
    """The ZeRO stage that runs: 1 in place of 2 and 3 where one rank has nothing to shard (bf16, no offload).

    Stages 2 and 3 pay for what they shard with copies and Python in every micro-batch (DeepSpeed 0.19.8).
    """
    sharding = run.sharding
    if run.layout.shard_size > 1 or sharding.offload_optimizer or sharding.offload_param or not _adds_in_fp32(run):
        return sharding.zero_stage
    return min(sharding.zero_stage, 1)


def name(run: RunConfig) -> str:
    """`fsdp`, or `zero` and the stage that runs."""
    return "fsdp" if run.sharding.fsdp is not None else f"zero{stage(run)}"


def has_flat_gradients(run: RunConfig) -> bool:
    """Whether DeepSpeed keeps every gradient whole in one fp32 buffer: its BF16_Optimizer."""
    return name(run) == "zero1" and _adds_in_fp32(run) and not run.sharding.offload_optimizer


def has_own_step(run: RunConfig) -> bool:
    """Whether a GPU takes a step of our own for ZeRO-1 (`engine.zero1`): the JSON wants gradients' mean, in fp32."""
    given = run.sharding.deepspeed
    plain = not given.get("prescale_gradients") and given.get("gradient_predivide_factor", 1.0) == 1.0
    in_fp32 = given.get("communication_data_type", "fp32") in (None, "fp32")
    return has_flat_gradients(run) and plain and in_fp32


def fsdp_group(run: RunConfig) -> int:
    """Ranks that FSDP shards over: all of the shard axis, or a group of a hybrid shard. 1 or more."""
    fsdp = run.sharding.fsdp
    return (fsdp.hybrid_shard_size if fsdp is not None else None) or run.layout.shard_size


def fsdp_keeps_weights(run: RunConfig) -> bool:
    """Whether FSDP's weights stay gathered through an iteration: as asked, with one rank, and under a pipeline.

    A pipeline comes back to a layer for each micro-batch before the last one has left: gathering it again is waste.
    """
    fsdp = run.sharding.fsdp
    if fsdp is None:
        return False
    alone = fsdp_group(run) == 1 and not fsdp.cpu_offload
    return alone or fsdp.sharding_strategy == "shard_grad_op" or run.layout.pipeline_model_parallel_size > 1


def fsdp_keeps_gradients(run: RunConfig) -> bool:
    """Whether FSDP adds gradients up whole, in fp32, and reduces them once an iteration.

    Under a pipeline each micro-batch is reduced as it comes; and, unless the weights are there for the whole iteration
    anyway, a single one, and each where gradients live in host memory.
    """
    fsdp = run.sharding.fsdp
    if fsdp is None or fsdp.sync_each_batch or run.layout.pipeline_model_parallel_size > 1:
        return False
    return fsdp_keeps_weights(run) or (run.num_micro_batches > 1 and not fsdp.cpu_offload)


def adds_in_the_product(run: RunConfig) -> bool:
    """Whether layers add weight gradients to an fp32 buffer themselves (`main_grad`), and make none in bf16."""
    return run.transformer_impl == "fused" and (has_flat_gradients(run) or fsdp_keeps_gradients(run))


def can_be_recorded(run: RunConfig) -> bool:
    """Whether a micro-batch's passes can be a CUDA graph: one shape, no NCCL, gradients that stay in their place."""
    alone = run.layout.ranks_per_sample == 1 or exchange.fits(run)
    return alone and not run.data.inter_document_masking and run.transformer_impl == "fused" and has_own_step(run)


def replays_a_graph(run: RunConfig) -> bool:
    """Whether a GPU does replay them, so that the host has next to nothing to do."""
    return run.cuda_graph is not False and can_be_recorded(run)


def wants_one_queue(run: RunConfig) -> bool:
    """Whether a GPU should take its kernels from one hardware queue (`CUDA_DEVICE_MAX_CONNECTIONS=1`).

    Megatron's own layers start an all-reduce before the product that it runs beside, and only one queue keeps that
    order (before Blackwell; megatron-core, tensor_parallel/layers.py). It delays what is sent on streams beside them:
    ZeRO-2 and 3, and FSDP, with which Megatron-LM refuses it (arguments.py). Fused layers were as fast without it
    (docs/evidence/performance.md, by layout).
    """
    overlaps = run.transformer_impl == "local" and run.layout.tensor_model_parallel_size > 1
    return overlaps and name(run) in ("zero0", "zero1")


def _adds_in_fp32(run: RunConfig) -> bool:
    return run.sharding.precision == "bf16" and run.sharding.grad_accum_dtype == "fp32"
