"""The keys of a DeepSpeed JSON as DeepSpeed 0.19.8 spells them: those that are taken, and those refused with a reason.

DeepSpeed ignores a key that it does not know at the top level, so `zero_optimisation` would train without ZeRO and
say nothing. Neighbour: `deepspeed_json` reads a file by these tables. A test holds them against DeepSpeed's classes.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace

from tinyllama_mcore.config.rule import nearest_multiples
from tinyllama_mcore.config.strict_json import Json


@dataclass(frozen=True, kw_only=True)
class Effect:
    """By how much a key moves the numbers of a run; tests/distributed/test_keys.py runs every key."""

    text: str
    """What it does to them, and why."""
    loss: float
    """Largest difference of a loss, in nats."""
    norm: float
    """Largest relative difference of a gradient norm."""
    state: float
    """Largest difference of a weight or a moment after four iterations at a learning rate of 1e-3."""


NOTHING = Effect(text="every bit is the same", loss=0, norm=0, state=0)
ORDER = Effect(text="sums are made in another order, in fp32", loss=2e-6, norm=1e-5, state=1e-5)
BF16_SUMS = Effect(text="gradients are summed in bf16", loss=1e-3, norm=1e-2, state=4e-3)
RECIPE = Effect(text="a number of the recipe: the run is that of a recipe that says the same", loss=0, norm=0, state=0)


@dataclass(frozen=True, kw_only=True)
class Kind:
    """What a value may be."""

    text: str
    """For messages: "... must be {text}"."""
    test: Callable[[Json], bool]
    nearest: Callable[[Json], str] = lambda value: ""
    """The legal values next to one that is not, for messages; empty where `text` says it all."""
    effect: Effect = NOTHING
    """What values other than DeepSpeed's default do to the numbers of a run."""


def _moves(kind: Kind, effect: Effect) -> Kind:
    """The kind, of a key with that effect."""
    return replace(kind, effect=effect)


def _number(value: Json) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _one_of(*values: Json) -> Kind:
    spelled = " or ".join("null" if v is None else str(v).lower() if isinstance(v, bool) else f'"{v}"' for v in values)
    return Kind(text=spelled, test=lambda value: any(value is v or (isinstance(v, str) and value == v) for v in values))


BOOL = Kind(text="true or false", test=lambda value: isinstance(value, bool))
INT = Kind(text="a whole number, at least 0", test=lambda value: _number(value) and value >= 0 and value == int(value))
COUNT = Kind(
    text="a whole number, at least 1",
    test=lambda value: INT.test(value) and value >= 1,
    nearest=lambda value: str(max(1, round(value))) if _number(value) else "",
)
EVEN = Kind(  # stage_1_and_2.py takes multiples of `nccl_start_alignment_factor` (DeepSpeed 0.19.8)
    text="an even whole number, at least 2",
    test=lambda value: COUNT.test(value) and value % 2 == 0,
    nearest=lambda value: nearest_multiples(max(1, int(value)), 2) if _number(value) else "",
)
FACTOR = Kind(  # DeepSpeed divides by it
    text="a number above 0",
    test=lambda value: _number(value) and value > 0,
    nearest=lambda value: "1.0",
)
NUMBER = Kind(text="a number, at least 0", test=lambda value: _number(value) and value >= 0)
TEXT = Kind(text="a string", test=lambda value: isinstance(value, str))
BLOCK = Kind(text="an object {...}", test=lambda value: isinstance(value, dict))
STRINGS = Kind(
    text="a list of strings", test=lambda value: isinstance(value, list) and all(isinstance(v, str) for v in value)
)
BETAS = Kind(
    text="two numbers below 1, such as [0.9, 0.95]",
    test=lambda value: isinstance(value, list) and len(value) == 2 and all(NUMBER.test(v) and v < 1 for v in value),
)
DTYPE = _one_of("fp32", "bf16")
DEVICE = _one_of("none", "cpu")
ON, OFF = _one_of(True), _one_of(False)

LOG_LEVEL = Kind(
    text="null, debug, info, warning, error or critical",
    test=lambda value: value is None or value in ("debug", "info", "warning", "error", "critical"),
)

_MONITOR = {"enabled": BOOL, "output_path": TEXT, "job_name": TEXT}
_OFFLOAD = {"device": _moves(DEVICE, ORDER), "pin_memory": BOOL, "buffer_count": INT}

# Block -> key -> what it may hold. "" is the top level; a block that stands here is checked key by key.
KEYS: dict[str, dict[str, Kind]] = {
    "": {
        "train_batch_size": _moves(COUNT, RECIPE),
        "train_micro_batch_size_per_gpu": _moves(COUNT, RECIPE),
        "gradient_accumulation_steps": _moves(COUNT, RECIPE),
        "gradient_clipping": _moves(NUMBER, RECIPE),
        "zero_optimization": BLOCK,
        "fsdp": BLOCK,
        "bf16": BLOCK,
        "data_types": BLOCK,
        "optimizer": BLOCK,
        "communication_data_type": _moves(DTYPE, BF16_SUMS),
        "gradient_allreduce_op": _one_of("mean"),
        "prescale_gradients": BOOL,
        "gradient_predivide_factor": _moves(FACTOR, ORDER),
        "zero_allow_untested_optimizer": ON,
        "zero_force_ds_cpu_optimizer": OFF,
        "steps_per_print": replace(
            COUNT, text=f"null or {COUNT.text}", test=lambda value: value is None or COUNT.test(value)
        ),
        "memory_breakdown": BOOL,
        "dump_state": BOOL,
        "disable_python_gc": BOOL,
        "log_level": LOG_LEVEL,
        "timers": BLOCK,
        "tensorboard": BLOCK,
        "wandb": BLOCK,
        "csv_monitor": BLOCK,
    },
    "zero_optimization": {
        "stage": _moves(INT, ORDER),
        "overlap_comm": BOOL,
        "contiguous_gradients": BOOL,
        "reduce_scatter": BOOL,
        "reduce_bucket_size": COUNT,
        "allgather_partitions": BOOL,
        "allgather_bucket_size": EVEN,
        "use_multi_rank_bucket_allreduce": BOOL,
        "round_robin_gradients": _moves(BOOL, ORDER),
        "parameter_alignment": _moves(BOOL, ORDER),
        "sub_group_size": _moves(COUNT, ORDER),
        "offload_param": BLOCK,
        "offload_optimizer": BLOCK,
        "stage3_prefetch_bucket_size": INT,
        "stage3_param_persistence_threshold": INT,
        "stage3_model_persistence_threshold": INT,
        "stage3_max_live_parameters": INT,
        "stage3_max_reuse_distance": INT,
        "stage3_use_all_reduce_for_fetch_params": BOOL,
        "stage3_allgather_sequential": BOOL,
        "compute_grad_norm": ON,
        "ignore_unused_parameters": BOOL,
        "memory_efficient_linear": BOOL,
        "override_module_apply": BOOL,
        "log_trace_cache_warnings": BOOL,
        "enable_sanity_checks": BOOL,
    },
    "zero_optimization.offload_param": _OFFLOAD | {"buffer_size": INT, "max_in_cpu": INT},
    "zero_optimization.offload_optimizer": _OFFLOAD
    | {"fast_init": BOOL, "pipeline_read": BOOL, "pipeline_write": BOOL},
    "fsdp": {
        "sharding_strategy": _moves(_one_of("full_shard", "shard_grad_op", "hybrid_shard"), ORDER),
        "hybrid_shard_size": COUNT,
        "cpu_offload": BOOL,
    },
    "bf16": {
        "enabled": _moves(BOOL, RECIPE),
        "bf16_master_weights_and_grads": OFF,
        "bf16_optimizer_states": OFF,
    },
    "data_types": {"grad_accum_dtype": _moves(DTYPE, BF16_SUMS)},
    "optimizer": {"type": _one_of("AdamW", "Adam"), "params": BLOCK},
    "optimizer.params": {
        "lr": _moves(NUMBER, RECIPE),
        "betas": _moves(BETAS, RECIPE),
        "eps": _moves(NUMBER, RECIPE),
        "weight_decay": _moves(NUMBER, RECIPE),
        "torch_adam": BOOL,
        "adam_w_mode": ON,
        "bias_correction": ON,
        "amsgrad": OFF,
    },
    "timers": {},
    "tensorboard": _MONITOR,
    "csv_monitor": _MONITOR,
    "wandb": {"enabled": BOOL, "group": TEXT, "team": TEXT, "project": TEXT},
}

WITH_FSDP = frozenset(
    (
        *("fsdp", "bf16", "data_types", "data_types.grad_accum_dtype", "optimizer", "gradient_clipping"),
        *("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps"),
        *("tensorboard", "csv_monitor", "wandb"),
    )
)
"""What may stand beside an `fsdp` block: DeepSpeed, which reads the rest, is not started then."""

_GONE = "DeepSpeed has removed it; remove the key"
_ZEROPP = "quantized or secondary shards (ZeRO++) change what a run computes or keeps; remove the key"
_SAVE = "checkpoints are written by this package in one layout-free form (--save, --save-interval); remove the key"
_OPTIMIZER_ONLY = "DeepSpeed's own optimizers are not used; remove the key"

# Dotted path -> why it is not honoured and what to do instead. What is false, or a block with "enabled": false, is let
# by and left out.
REFUSED: dict[str, str] = {
    "fp16": "only bf16 and fp32 are trained in; set bf16.enabled and remove this block",
    "bfloat16": "the old name of the block; write bf16",
    "torch_autocast": 'precision is the model\'s own, not autocast\'s; write "bf16": {"enabled": true}',
    "scheduler": "the learning-rate schedule is the recipe's; use --lr, --min-lr, --lr-warmup-iters and --train-iters",
    "activation_checkpointing": "Megatron-core recomputes activations; use --recompute-granularity selective or full",
    "pipeline": "Megatron-core cuts the layers; use --pipeline-model-parallel-size",
    "tensor_parallel": "Megatron-core cuts the matrices; use --tensor-model-parallel-size",
    "sequence_parallel_size": "Megatron-core cuts the sequence; use --sequence-parallel",
    "seq_parallel_communication_data_type": "Megatron-core cuts the sequence; use --sequence-parallel",
    "expert_parallel": "the model is dense; remove the block",
    "use_data_before_expert_parallelism": "the model is dense; remove the key",
    "managed_gradient_accumulation": "the training loop says when an update is due; remove the key",
    "compile": "layers are compiled by torch.compile; use --compile",
    "data_efficiency": "samples are drawn in a fixed order from --data-path; remove the block",
    "dataloader_drop_last": "samples are drawn in a fixed order from --data-path; remove the key",
    "vocabulary_size": "the vocabulary is the tokenizer's (--tokenizer-model); remove the key",
    "checkpoint": _SAVE,
    "datastates_ckpt": _SAVE,
    "aio": "there is no offload to NVMe here; offload to the CPU and remove the block",
    "autotuning": "batch sizes and layout are said, not searched for; remove the block",
    "hybrid_engine": "it is for RLHF; remove the block",
    "weight_quantization": "it is for inference; remove the block",
    "disable_allgather": "DeepSpeed reads it no more; remove the key",
    "wall_clock_breakdown": "DeepSpeed does not see Megatron's backward passes and would print 0 for them; each log "
    "line and --metrics-file have the time of an iteration: remove the key",
    "timers.throughput": "DeepSpeed would time the last micro-batch alone; each log line and --metrics-file have "
    "tokens a second: remove the block",
    "flops_profiler": "it counts what passes through DeepSpeed's own calls, which Megatron's schedule does not make; "
    "each log line and --metrics-file have TFLOP/s and MFU: remove the block",
    "comms_logger": "DeepSpeed does not see what Megatron and torch send; nsys profile, or "
    "NCCL_DEBUG=INFO, says what was sent: remove the block",
    "comet": "it was never tried; write a wandb, tensorboard or csv_monitor block",
    **dict.fromkeys(
        (
            "nebula",
            "compression_training",
            "amp",
            "quantize_training",
            "sparse_gradients",
            "eigenvalue",
            "sparse_attention",
            "elasticity",
            "graph_harvesting",
            "curriculum_learning",
            "progressive_layer_drop",
        ),
        _GONE,
    ),
    **dict.fromkeys(
        (
            "zero_optimization.mics_shard_size",
            "zero_optimization.mics_hierarchical_params_gather",
            "zero_optimization.zeropp_loco_param",
        ),
        _GONE,
    ),
    **dict.fromkeys(
        (
            "zero_optimization.zero_hpz_partition_size",
            "zero_optimization.zero_quantized_weights",
            "zero_optimization.zero_quantized_gradients",
            "zero_optimization.zero_quantized_nontrainable_weights",
        ),
        _ZEROPP,
    ),
    **dict.fromkeys(
        (
            "zero_optimization.load_from_fp32_weights",
            "zero_optimization.elastic_checkpoint",
            "zero_optimization.pipeline_loading_checkpoint",
            "zero_optimization.stage3_gather_16bit_weights_on_model_save",
            "zero_optimization.stage3_gather_fp16_weights_on_model_save",
        ),
        _SAVE,
    ),
    "zero_optimization.cpu_offload": 'the old name; write "offload_optimizer": {"device": "cpu"}',
    "zero_optimization.cpu_offload_param": 'the old name; write "offload_param": {"device": "cpu"}',
    "zero_optimization.cpu_offload_use_pin_memory": "the old name; write pin_memory inside the offload block",
    "zero_optimization.legacy_stage1": "DeepSpeed reads it no more; remove the key",
    "zero_optimization.zenflow": "it updates weights late, so the loss curve is another; remove the block",
    "zero_optimization.stage3_module_granularity_threshold": "each decoder layer is gathered as a whole already, and "
    "larger blocks cannot be; remove the key",
    "zero_optimization.leaf_module": "the model has no expert layers; remove the block",
    "zero_optimization.save_muon_momentum_buffer_in_memory": "the optimizer is AdamW; remove the key",
    "zero_optimization.offload_param.nvme_path": 'there is no offload to NVMe here; use "device": "cpu"',
    "zero_optimization.offload_optimizer.nvme_path": 'there is no offload to NVMe here; use "device": "cpu"',
    "zero_optimization.offload_optimizer.ratio": "all of the optimizer state is offloaded, or none; remove the key",
    "zero_optimization.offload_optimizer.super_offload": "it needs DeepSpeed's own optimizer; remove the key",
    "zero_optimization.offload_optimizer.cpuadam_cores_perc": _OPTIMIZER_ONLY,
    "bf16.immediate_grad_update": "the engine sets it where ZeRO-1 needs it; remove the key",
    "bf16.check_grad_overflow": "the training loop watches for gradients that are not finite; remove the key",
    "data_types.param_dtype": "weights are kept in fp32 beside the bf16 copy; remove the key",
    "data_types.buffer_dtype": "the model has no such buffers; remove the key",
    "data_types.keep_in_fp32_modules": "norms are computed in fp32 by the model itself; remove the key",
    "optimizer.legacy_fusion": _OPTIMIZER_ONLY,
    "optimizer.params.max_grad_norm": "write gradient_clipping at the top level",
}
