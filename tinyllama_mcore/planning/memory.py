"""Peak bytes of each pipeline rank by part, as `torch.cuda.max_memory_allocated` would report them.

What NCCL and the CUDA context take is not in it (`gpus.RESERVE_BYTES` is for them). Read in DeepSpeed 0.19.8
(bf16_optimizer.py, zero/stage_1_and_2.py, zero/stage3.py, zero/partitioned_param_coordinator.py) and in torch's
fully_shard. Neighbours: `rank` counts elements, `activations` what a forward pass keeps.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from tinyllama_mcore.config import engines
from tinyllama_mcore.config.schema import FsdpConfig, RunConfig
from tinyllama_mcore.planning import activations, rank
from tinyllama_mcore.planning.activations import FP32

# DeepSpeed's own numbers where a JSON is silent (zero/config.py), in elements
_ZERO_DEFAULTS = {"reduce_bucket_size": 500_000_000, "stage3_max_reuse_distance": 1_000_000_000}


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes of one rank at its peak, by part."""

    weights: float
    """What the forward pass reads, whole or this rank's shard, and the fp32 master weights."""
    gradients: float
    """Accumulated over the micro-batches."""
    optimizer: float
    """AdamW's two moments, fp32."""
    activations: float
    """Kept for the backward pass, of every micro-batch in flight, and the scratch of a layer's backward pass."""
    logits: float
    """The head's output and its copies; 0 where the peak is elsewhere."""
    buffers: float
    """Weights gathered for a while, reduction buckets, what a pipeline rank sends."""

    @property
    def total(self) -> float:
        """All parts."""
        return sum(getattr(self, field.name) for field in fields(self))


def by_rank(run: RunConfig) -> tuple[Memory, ...]:
    """The peak of each pipeline rank; ranks beside it along the other axes need the same."""
    return tuple(_peak(run, r) for r in range(run.layout.pipeline_model_parallel_size))


def worst(run: RunConfig) -> Memory:
    """The peak of the rank that needs most: what has to fit."""
    return max(by_rank(run), key=lambda memory: memory.total)


def _peak(run: RunConfig, pipeline_rank: int) -> Memory:
    """The largest of four moments: the loss (last rank), the first layer that goes backward, the update, the start."""
    layers, waiting = rank.layers(run, pipeline_rank), rank.in_flight(run, pipeline_rank)
    per_layer = sum(activations.saved_by_layer(run).values())
    kept = sum(n * count * per_layer for n, count in zip(layers, waiting, strict=True))
    last = rank.is_last(run.layout, pipeline_rank)
    if last:
        kept += activations.saved_by_head(run)
    buffers = _engine_buffers(run, pipeline_rank) + _pipeline_buffers(run, pipeline_rank) + _loan(run, pipeline_rank)
    adds = engines.adds_in_the_product(run) and not rank.borrows(run, pipeline_rank)
    head = 0 if adds else _head_gradient(run, pipeline_rank)
    held = _held(run, pipeline_rank)
    passes = held | {"gradients": _gradients_in_passes(run, pipeline_rank, held["gradients"])}
    moments = (
        passes | {"activations": kept, "logits": activations.logits(run) if last else 0, "buffers": buffers + head},
        passes
        | {
            "activations": kept + activations.backward_scratch(run),
            "logits": 0,
            "buffers": buffers + _gradient_buffers(run, pipeline_rank),
        },
        held | {"activations": 0, "logits": 0, "buffers": _update_buffers(run, pipeline_rank)},
        held | {"activations": 0, "logits": 0, "buffers": _joined_masters(run, pipeline_rank)},
    )
    return max((Memory(**moment) for moment in moments), key=lambda memory: memory.total)


def _joined_masters(run: RunConfig, pipeline_rank: int) -> float:
    """Master weights put together from their halves, to be loaded, checked or saved: `DeviceStep.join_masters`."""
    return FP32 * rank.elements(run, pipeline_rank) / run.layout.shard_size if engines.has_own_step(run) else 0


def _gradients_in_passes(run: RunConfig, pipeline_rank: int, held: float) -> float:
    """Gradients that are there while micro-batches are computed: `held`, but where FSDP has none yet or whole ones.

    Whole ones are added up in fp32 and reduced with the last micro-batch; fused layers keep that buffer.
    """
    if run.sharding.fsdp is None:
        return held
    if engines.fsdp_keeps_gradients(run) and (run.transformer_impl == "fused" or run.num_micro_batches > 1):
        return FP32 * rank.elements(run, pipeline_rank)
    return 0 if run.num_micro_batches == 1 else held


def _head_gradient(run: RunConfig, pipeline_rank: int) -> float:
    """The gradient of the fused head's weight, made beside the logits; local logits peak before it is made."""
    if run.transformer_impl != "fused" or not rank.is_last(run.layout, pipeline_rank):
        return 0
    return activations.element_size(run) * rank.vocabulary_elements(run)


def _held(run: RunConfig, pipeline_rank: int) -> dict[str, float]:
    """Weights, gradients and optimizer state as they are at the update."""
    held = rank.elements(run, pipeline_rank)
    if run.sharding.fsdp is not None:
        return _held_by_fsdp(run.sharding.fsdp, run, held)
    by_zero = _held_by_zero(run, held)
    if run.transformer_impl == "fused" and engines.has_flat_gradients(run):  # by rows and by columns, a byte each
        by_zero["weights"] += (
            2 * rank.float8_share(run) * sum(rank.layers(run, pipeline_rank)) * rank.layer_matrices(run)
        )
    return by_zero


def _held_by_zero(run: RunConfig, held: int) -> dict[str, float]:
    """By stage: bit16_groups_flat or lp_param_buffer, single_partition_of_fp32_groups, the accumulation buffers."""
    sharding, size = run.sharding, activations.element_size(run)
    stage, own = engines.stage(run), held / run.layout.shard_size
    # in fp32, stages 0 and 3 update the weights themselves, 1 and 2 a copy of this rank's part
    master = 0 if size == FP32 and stage in (0, 3) else FP32 * (held if stage == 0 else own)
    if engines.has_own_step(run):  # their lower halves, beside the bf16 weights
        master = 2 * own
    accumulated = FP32 if sharding.grad_accum_dtype == "fp32" else 2
    weights = size * (own if stage == 3 else held)
    gradients = accumulated * (own if stage >= 2 else held)
    moments = 2 * FP32 * (held if stage == 0 else own)
    if sharding.offload_optimizer:  # stages 2 and 3 hand gradients to the host as they are reduced
        master, moments, gradients = 0, 0, gradients if stage == 1 else 0
    return {
        "weights": (0 if sharding.offload_param else weights) + master,
        "gradients": gradients,
        "optimizer": moments,
    }


def _held_by_fsdp(fsdp: FsdpConfig, run: RunConfig, held: int) -> dict[str, float]:
    """fp32 shards of all three; in host memory under CPU offload."""
    own = 0 if fsdp.cpu_offload else held / engines.fsdp_group(run)
    whole = held if engines.adds_in_the_product(run) else 0
    return {"weights": FP32 * own, "gradients": FP32 * (own + whole), "optimizer": 2 * FP32 * own}


def _pipeline_buffers(run: RunConfig, pipeline_rank: int) -> float:
    """What is being sent; interleaved, all outputs that wait for their gradient too (model/gpt.py: not deallocated)."""
    if run.layout.pipeline_model_parallel_size == 1:
        return 0
    waiting = rank.in_flight(run, pipeline_rank)
    outputs = waiting[:-1] if rank.is_last(run.layout, pipeline_rank) else waiting
    return activations.hidden_states(run) * (1 + (sum(outputs) if len(waiting) > 1 else 0))


def _loan(run: RunConfig, pipeline_rank: int) -> float:
    """What a rank holds of an embedding that is another's: the matrix as the passes use it, its gradient in fp32."""
    borrowed = rank.vocabulary_elements(run) if rank.borrows(run, pipeline_rank) else 0
    return (activations.element_size(run) + FP32) * borrowed


def _tied_gradient(run: RunConfig, pipeline_rank: int) -> float:
    """The gradient of the head, which waits for that of the embedding where the two are one parameter."""
    both = pipeline_rank == 0 and rank.is_last(run.layout, pipeline_rank)
    tied = both and not run.model.untie_embeddings_and_output_weights
    return activations.element_size(run) * rank.vocabulary_elements(run) if tied else 0


def _engine_buffers(run: RunConfig, pipeline_rank: int) -> float:
    """The sharding library's: by stage, or FSDP's gathered copies."""
    size, stage = activations.element_size(run), engines.stage(run)
    if run.sharding.fsdp is not None:
        return size * _gathered_by_fsdp(run, pipeline_rank)
    bucket = _zero(run, "reduce_bucket_size")
    if stage == 2:  # setup_buckets: two of them where communication overlaps
        overlaps = run.sharding.deepspeed["zero_optimization"].get("overlap_comm", False)
        return size * bucket * (2 if overlaps else 1)
    if stage == 3:
        return activations.reduced_size(run) * bucket + size * _live_in_zero3(run, pipeline_rank)
    return 0  # BF16_Optimizer reduces its accumulation buffer in place


def _live_in_zero3(run: RunConfig, pipeline_rank: int) -> float:
    """Elements gathered when the loss is computed.

    ZeRO-3 does not release what it will use again within stage3_max_reuse_distance elements of its trace, where what
    opens the backward pass stands for the whole model (its layers are leaves: __params_to_release, DeepSpeed 0.19.8):
    all that lies within that distance before the loss is kept. One rank gathers nothing.
    """
    if run.layout.shard_size == 1 and not run.sharding.offload_param:
        return 0
    return min(_zero(run, "stage3_max_reuse_distance"), rank.elements(run, pipeline_rank))


def _gathered_by_fsdp(run: RunConfig, pipeline_rank: int) -> float:
    """Elements of the compute copies: the root group always, and two layers (the next is fetched early) or all."""
    layers = sum(rank.layers(run, pipeline_rank))
    gathered = layers if engines.fsdp_keeps_weights(run) else min(2, layers)
    return rank.root_elements(run, pipeline_rank) + gathered * rank.layer_elements(run)


def _gradient_buffers(run: RunConfig, pipeline_rank: int) -> float:
    """Gradients of a backward pass on their way to where they are accumulated, and FSDP's copy to reduce."""
    size, layer = activations.element_size(run), rank.layer_elements(run)
    if engines.adds_in_the_product(run):
        return FP32 * layer if run.sharding.fsdp is not None else 0
    if run.sharding.fsdp is None:
        waiting = _tied_gradient(run, pipeline_rank)
        if run.transformer_impl == "fused":  # those of a layer are handed over together
            return waiting + size * layer
        tp = run.layout.tensor_model_parallel_size  # linear_fc1's, the largest: each goes to its buffer at once
        return waiting + size * 2 * run.model.hidden_size * run.model.ffn_hidden_size / tp
    root = rank.root_elements(run, pipeline_rank)  # its gradients wait for the embedding's, which comes last
    return size * (root + layer) + FP32 * layer  # the layer's, and its fp32 copy in the reduce-scatter


def _update_buffers(run: RunConfig, pipeline_rank: int) -> float:
    """What an update needs beside what is held.

    ZeRO-1 reduces fp32 gradients in a copy, where they are sent in another precision (engine.py, allreduce_bucket).
    ZeRO-3 updates from a flat copy of this rank's gradients, beside its bucket (stage3.py, _prepare_sub_group).
    Where FSDP's layers add to whole gradients, the last that it reduces are those outside the layers, in a copy.
    """
    held, sent = rank.elements(run, pipeline_rank), activations.reduced_size(run)
    if run.sharding.fsdp is not None:
        return FP32 * rank.root_elements(run, pipeline_rank) if engines.adds_in_the_product(run) else 0
    if engines.stage(run) == 1 and sent < FP32:
        return sent * held if run.layout.shard_size > 1 else 0
    if engines.stage(run) == 3:
        own = 0 if run.sharding.offload_optimizer else held / run.layout.shard_size
        return sent * _zero(run, "reduce_bucket_size") + FP32 * own
    return 0


def _zero(run: RunConfig, key: str) -> float:
    """A size of the JSON's zero_optimization block, in elements."""
    return run.sharding.deepspeed.get("zero_optimization", {}).get(key, _ZERO_DEFAULTS[key])
