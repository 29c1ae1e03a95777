"""The keys of a DeepSpeed JSON as DeepSpeed 0.19.8 spells them: those that are taken, and those refused with a reason.

DeepSpeed ignores a key that it does not know at the top level, so `zero_optimisation` would train without ZeRO and
say nothing. Neighbour: `deepspeed_json` reads a file by these tables. A test holds them against DeepSpeed's classes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tinyllama_mcore.config.strict_json import Json


@dataclass(frozen=True, kw_only=True)
class Kind:
    """What a value may be."""

    text: str
    """For messages: "... must be {text}"."""
    test: Callable[[Json], bool]


def _number(value: Json) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _one_of(*values: Json) -> Kind:
    spelled = " or ".join("null" if v is None else str(v).lower() if isinstance(v, bool) else f'"{v}"' for v in values)
    return Kind(text=spelled, test=lambda value: any(value is v or (isinstance(v, str) and value == v) for v in values))


BOOL = Kind(text="true or false", test=lambda value: isinstance(value, bool))
INT = Kind(text="a whole number, at least 0", test=lambda value: _number(value) and value >= 0 and value == int(value))
COUNT = Kind(text="a whole number, at least 1", test=lambda value: INT.test(value) and value >= 1)
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

_MONITOR = {"enabled": BOOL, "output_path": TEXT, "job_name": TEXT}
_OFFLOAD = {"device": DEVICE, "pin_memory": BOOL, "buffer_count": INT}

# Block -> key -> what it may hold. "" is the top level; a block that stands here is checked key by key.
KEYS: dict[str, dict[str, Kind]] = {
    "": {
        "train_batch_size": COUNT,
        "train_micro_batch_size_per_gpu": COUNT,
        "gradient_accumulation_steps": COUNT,
        "gradient_clipping": NUMBER,
        "zero_optimization": BLOCK,
        "fsdp": BLOCK,
        "bf16": BLOCK,
        "data_types": BLOCK,
        "optimizer": BLOCK,
        "communication_data_type": DTYPE,
        "gradient_allreduce_op": _one_of("mean"),
        "prescale_gradients": BOOL,
        "gradient_predivide_factor": NUMBER,
        "zero_allow_untested_optimizer": ON,
        "zero_force_ds_cpu_optimizer": OFF,
        "steps_per_print": Kind(text="a whole number or null", test=lambda value: value is None or INT.test(value)),
        "wall_clock_breakdown": BOOL,
        "memory_breakdown": BOOL,
        "dump_state": BOOL,
        "disable_python_gc": BOOL,
        "log_level": Kind(text="a string or null", test=lambda value: value is None or isinstance(value, str)),
        "timers": BLOCK,
        "tensorboard": BLOCK,
        "wandb": BLOCK,
        "csv_monitor": BLOCK,
        "comet": BLOCK,
        "flops_profiler": BLOCK,
        "comms_logger": BLOCK,
    },
    "zero_optimization": {
        "stage": INT,
        "overlap_comm": BOOL,
        "contiguous_gradients": BOOL,
        "reduce_scatter": BOOL,
        "reduce_bucket_size": COUNT,
        "allgather_partitions": BOOL,
        "allgather_bucket_size": COUNT,
        "use_multi_rank_bucket_allreduce": BOOL,
        "round_robin_gradients": BOOL,
        "parameter_alignment": BOOL,
        "sub_group_size": COUNT,
        "offload_param": BLOCK,
        "offload_optimizer": BLOCK,
        "stage3_prefetch_bucket_size": INT,
        "stage3_param_persistence_threshold": INT,
        "stage3_model_persistence_threshold": INT,
        "stage3_max_live_parameters": INT,
        "stage3_max_reuse_distance": INT,
        "stage3_module_granularity_threshold": INT,
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
        "sharding_strategy": _one_of("full_shard", "shard_grad_op", "hybrid_shard"),
        "hybrid_shard_size": COUNT,
        "cpu_offload": BOOL,
    },
    "bf16": {
        "enabled": BOOL,
        "bf16_master_weights_and_grads": OFF,
        "bf16_optimizer_states": OFF,
    },
    "data_types": {"grad_accum_dtype": DTYPE},
    "optimizer": {"type": _one_of("AdamW", "Adam"), "params": BLOCK},
    "optimizer.params": {
        "lr": NUMBER,
        "betas": BETAS,
        "eps": NUMBER,
        "weight_decay": NUMBER,
        "torch_adam": BOOL,
        "adam_w_mode": ON,
        "bias_correction": ON,
        "amsgrad": OFF,
    },
    "timers": {"throughput": BLOCK},
    "timers.throughput": {"enabled": BOOL, "synchronized": BOOL},
    "tensorboard": _MONITOR,
    "csv_monitor": _MONITOR,
    "wandb": {"enabled": BOOL, "group": TEXT, "team": TEXT, "project": TEXT},
    "comet": {"enabled": BOOL, "samples_log_interval": INT, "online": BOOL}
    | dict.fromkeys(("project", "workspace", "api_key", "experiment_name", "experiment_key", "mode"), TEXT),
    "flops_profiler": {
        "enabled": BOOL,
        "recompute_fwd_factor": NUMBER,
        "profile_step": INT,
        "module_depth": Kind(text="a whole number", test=lambda value: _number(value) and value == int(value)),
        "top_modules": INT,
        "detailed": BOOL,
        "output_file": Kind(text="a string or null", test=lambda value: value is None or isinstance(value, str)),
    },
    "comms_logger": {"enabled": BOOL, "prof_all": BOOL, "prof_ops": STRINGS, "verbose": BOOL, "debug": BOOL},
}

WITH_FSDP = frozenset(
    (
        *("fsdp", "bf16", "data_types", "data_types.grad_accum_dtype", "optimizer", "gradient_clipping"),
        *("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps"),
    )
)
"""What may stand beside an `fsdp` block: DeepSpeed, which reads the rest, is not started then."""

_GONE = "DeepSpeed has removed it; remove the key"
_ZEROPP = "quantized or secondary shards (ZeRO++) change what a run computes or keeps; remove the key"
_SAVE = "checkpoints are written by this package in one layout-free form (--save, --save-interval); remove the key"
_OPTIMIZER_ONLY = "DeepSpeed's own optimizers are not used; remove the key"

# Dotted path -> why it is not honoured and what to do instead. A block with "enabled": false is let by and left out.
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
