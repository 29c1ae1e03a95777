"""The table of the keys of a DeepSpeed JSON, as DeepSpeed 0.19.8 spells them: one row says all that is known of a key.

DeepSpeed ignores a key that it does not know at the top level, so `zero_optimisation` would train without ZeRO and
say nothing. Neighbours: `key` is the row, `kinds` has values and effects, `refused` the rows of keys
that are not honoured; `document` reads a file by the table, and a test holds it against DeepSpeed's classes.
"""

from __future__ import annotations

from collections.abc import Callable

from tinyllama_mcore.config.deepspeed.key import Key, Reader, Settled
from tinyllama_mcore.config.deepspeed.kinds import (
    BETAS,
    BF16_SUMS,
    BLOCK,
    BOOL,
    COUNT,
    COUNT_OR_NULL,
    DEVICE,
    DTYPE,
    EVEN,
    FACTOR,
    INT,
    LOG_LEVEL,
    NUMBER,
    OFF,
    ON,
    ORDER,
    RECIPE,
    TEXT,
    one_of,
)
from tinyllama_mcore.config.deepspeed.refused import REFUSED
from tinyllama_mcore.config.strict_json import Json


def _whole(field: str) -> Callable[[Json], dict[str, Json]]:
    """The value, a whole number, is that of the field."""
    return lambda value: {field: int(value)}


def _real(field: str) -> Callable[[Json], dict[str, Json]]:
    """The value, a number, is that of the field."""
    return lambda value: {field: float(value)}


def _bucket(run: Settled) -> int:
    """Elements of a message: DeepSpeed allocates whole buckets, so they follow the model up to DeepSpeed's own default.

    For tinyllama-1.1b: four layers (369 MB in bf16, enough to fill NVLink). A larger parameter is reduced on its own.
    """
    return min(500_000_000, 16 * run.model.hidden_size * run.model.ffn_hidden_size)


def _prefetched(run: Settled) -> int:
    """Elements that ZeRO-3 gathers ahead: one layer of tinyllama-1.1b, and at most DeepSpeed's own default."""
    return min(50_000_000, 4 * run.model.hidden_size * run.model.ffn_hidden_size)


def _offload(block: str) -> tuple[Key, ...]:
    """The keys that both offload blocks have."""
    return (
        Key(f"{block}.device", DEVICE, effect=ORDER),
        Key(f"{block}.pin_memory", BOOL),
        Key(f"{block}.buffer_count", INT),
    )


def _monitor(block: str) -> tuple[Key, ...]:
    """The block and the keys of a monitor that writes files."""
    return (
        Key(block, BLOCK, with_fsdp=True, reader=Reader.LOGGERS),
        Key(f"{block}.enabled", BOOL),
        Key(f"{block}.output_path", TEXT),
        Key(f"{block}.job_name", TEXT),
    )


_TOP_LEVEL = (
    Key(
        "train_batch_size",
        COUNT,
        effect=RECIPE,
        fixes=_whole("global_batch_size"),
        auto=lambda run: run.batch.global_batch_size,
        always=True,
        with_fsdp=True,
    ),
    Key(
        "train_micro_batch_size_per_gpu",
        COUNT,
        effect=RECIPE,
        fixes=_whole("micro_batch_size"),
        auto=lambda run: run.batch.micro_batch_size,
        always=True,
        with_fsdp=True,
    ),
    Key(
        "gradient_accumulation_steps",
        COUNT,
        effect=RECIPE,
        auto=lambda run: run.num_micro_batches,
        always=True,
        with_fsdp=True,
    ),
    Key(
        "gradient_clipping",
        NUMBER,
        effect=RECIPE,
        fixes=_real("clip_grad"),
        auto=lambda run: run.optimizer.clip_grad,
        always=True,
        with_fsdp=True,
    ),
    Key("communication_data_type", DTYPE, effect=BF16_SUMS),
    Key("gradient_allreduce_op", one_of("mean")),
    Key("prescale_gradients", BOOL),
    Key("gradient_predivide_factor", FACTOR, effect=ORDER),
    Key("zero_allow_untested_optimizer", ON),
    Key("zero_force_ds_cpu_optimizer", OFF),
    Key("steps_per_print", COUNT_OR_NULL),
    Key("memory_breakdown", BOOL),
    Key("dump_state", BOOL),
    Key("disable_python_gc", BOOL),
    Key("log_level", LOG_LEVEL),
    Key("timers", BLOCK),
)

_ZERO = (
    Key("zero_optimization", BLOCK),
    Key("zero_optimization.stage", INT, effect=ORDER),
    Key("zero_optimization.overlap_comm", BOOL),
    Key("zero_optimization.contiguous_gradients", BOOL),
    Key("zero_optimization.reduce_scatter", BOOL),
    Key("zero_optimization.reduce_bucket_size", COUNT, auto=_bucket),
    Key("zero_optimization.allgather_partitions", BOOL),
    Key("zero_optimization.allgather_bucket_size", EVEN, auto=_bucket),
    Key("zero_optimization.use_multi_rank_bucket_allreduce", BOOL),
    Key("zero_optimization.round_robin_gradients", BOOL, effect=ORDER),
    Key("zero_optimization.parameter_alignment", BOOL, effect=ORDER),
    Key("zero_optimization.sub_group_size", COUNT, effect=ORDER),
    Key("zero_optimization.stage3_prefetch_bucket_size", INT, auto=_prefetched),
    Key(  # only the norms stay whole
        "zero_optimization.stage3_param_persistence_threshold", INT, auto=lambda run: 10 * run.model.hidden_size
    ),
    Key("zero_optimization.stage3_model_persistence_threshold", INT),
    Key("zero_optimization.stage3_max_live_parameters", INT),
    Key("zero_optimization.stage3_max_reuse_distance", INT),
    Key("zero_optimization.stage3_use_all_reduce_for_fetch_params", BOOL),
    Key("zero_optimization.stage3_allgather_sequential", BOOL),
    Key("zero_optimization.compute_grad_norm", ON),
    Key("zero_optimization.ignore_unused_parameters", BOOL),
    Key("zero_optimization.memory_efficient_linear", BOOL),
    Key("zero_optimization.override_module_apply", BOOL),
    Key("zero_optimization.log_trace_cache_warnings", BOOL),
    Key("zero_optimization.enable_sanity_checks", BOOL),
    Key("zero_optimization.offload_param", BLOCK),
    *_offload("zero_optimization.offload_param"),
    Key("zero_optimization.offload_param.buffer_size", INT),
    Key("zero_optimization.offload_param.max_in_cpu", INT),
    Key("zero_optimization.offload_optimizer", BLOCK),
    *_offload("zero_optimization.offload_optimizer"),
    Key("zero_optimization.offload_optimizer.fast_init", BOOL),
    Key("zero_optimization.offload_optimizer.pipeline_read", BOOL),
    Key("zero_optimization.offload_optimizer.pipeline_write", BOOL),
)

_PRECISION = (
    Key("bf16", BLOCK, with_fsdp=True),
    Key(
        "bf16.enabled",
        BOOL,
        effect=RECIPE,
        fixes=lambda value: {"precision": "bf16" if value else "fp32"},
        auto=lambda run: run.precision == "bf16",
        always=True,
    ),
    Key("bf16.bf16_master_weights_and_grads", OFF),
    Key("bf16.bf16_optimizer_states", OFF),
    Key("data_types", BLOCK, with_fsdp=True),
    Key("data_types.grad_accum_dtype", DTYPE, effect=BF16_SUMS, auto=lambda _: "fp32", always=True),
)

_OPTIMIZER = (
    Key("optimizer", BLOCK, with_fsdp=True, reader=Reader.ENGINE),
    Key("optimizer.type", one_of("AdamW", "Adam")),
    Key("optimizer.params", BLOCK),
    Key("optimizer.params.lr", NUMBER, effect=RECIPE, fixes=_real("lr"), auto=lambda run: run.optimizer.lr),
    Key(
        "optimizer.params.betas",
        BETAS,
        effect=RECIPE,
        fixes=lambda value: {"adam_beta1": float(value[0]), "adam_beta2": float(value[1])},
        auto=lambda run: [run.optimizer.adam_beta1, run.optimizer.adam_beta2],
    ),
    Key(
        "optimizer.params.eps", NUMBER, effect=RECIPE, fixes=_real("adam_eps"), auto=lambda run: run.optimizer.adam_eps
    ),
    Key(
        "optimizer.params.weight_decay",
        NUMBER,
        effect=RECIPE,
        fixes=_real("weight_decay"),
        auto=lambda run: run.optimizer.weight_decay,
    ),
    Key("optimizer.params.torch_adam", BOOL),
    Key("optimizer.params.adam_w_mode", ON),
    Key("optimizer.params.bias_correction", ON),
    Key("optimizer.params.amsgrad", OFF),
)

_FSDP = (
    Key("fsdp", BLOCK, with_fsdp=True, reader=Reader.ENGINE),
    Key("fsdp.sharding_strategy", one_of("full_shard", "shard_grad_op", "hybrid_shard"), effect=ORDER),
    Key("fsdp.hybrid_shard_size", COUNT, effect=ORDER),
    Key("fsdp.cpu_offload", BOOL, effect=ORDER),
    Key("fsdp.sync_each_batch", BOOL, effect=ORDER),
)

_MONITORS = (
    *_monitor("tensorboard"),
    *_monitor("csv_monitor"),
    Key("wandb", BLOCK, with_fsdp=True, reader=Reader.LOGGERS),
    Key("wandb.enabled", BOOL),
    Key("wandb.group", TEXT),
    Key("wandb.team", TEXT),
    Key("wandb.project", TEXT),
)

TAKEN = (*_TOP_LEVEL, *_ZERO, *_PRECISION, *_OPTIMIZER, *_FSDP, *_MONITORS)
"""Keys that are honoured. Values that several rows fix or fill are written in this order."""


KEYS = {key.path: key for key in (*TAKEN, *REFUSED)}
"""Path -> all that is known of a key."""
