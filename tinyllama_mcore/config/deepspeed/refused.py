"""Rows of the keys of a DeepSpeed JSON that are known and not honoured: each says why, and what to do instead.

Neighbour: `keys` has the rows of those that are taken, and the table of both.
"""

from __future__ import annotations

from collections.abc import Iterator

from tinyllama_mcore.config.deepspeed.key import Key


def _refused(reason: str, *paths: str) -> Iterator[Key]:
    """Keys that are refused for one reason."""
    return (Key(path, refused=reason) for path in paths)


REFUSED = (
    Key("fp16", refused="only bf16 and fp32 are trained in; set bf16.enabled and remove this block"),
    Key("bfloat16", refused="it is the old name of the block; write bf16"),
    Key("torch_autocast", refused='the model sets its own precision; write "bf16": {"enabled": true}'),
    Key(
        "scheduler",
        refused="the learning-rate schedule is the recipe's; use --lr, --min-lr, --lr-warmup-iters and --train-iters",
    ),
    Key(
        "activation_checkpointing",
        refused="Megatron-core recomputes activations; use --recompute-granularity selective or full",
    ),
    Key("pipeline", refused="Megatron-core splits the layers; use --pipeline-model-parallel-size"),
    Key("tensor_parallel", refused="Megatron-core splits the matrices; use --tensor-model-parallel-size"),
    Key("sequence_parallel_size", refused="Megatron-core splits the sequence; use --context-parallel-size"),
    Key("seq_parallel_communication_data_type", refused="Megatron-core splits the sequence; remove the key"),
    Key("expert_parallel", refused="the model is dense; remove the block"),
    Key("use_data_before_expert_parallelism", refused="the model is dense; remove the key"),
    Key("managed_gradient_accumulation", refused="the training loop says when an update is due; remove the key"),
    Key("compile", refused="layers are compiled by torch.compile; use --compile"),
    Key("data_efficiency", refused="samples are drawn in a fixed order from --data-path; remove the block"),
    Key("dataloader_drop_last", refused="samples are drawn in a fixed order from --data-path; remove the key"),
    Key("vocabulary_size", refused="the vocabulary is the tokenizer's (--tokenizer-model); remove the key"),
    *_refused(
        "this package writes checkpoints itself, in one format for every layout (--save, --save-interval); remove the "
        "key",
        "checkpoint",
        "datastates_ckpt",
        "zero_optimization.load_from_fp32_weights",
        "zero_optimization.elastic_checkpoint",
        "zero_optimization.pipeline_loading_checkpoint",
        "zero_optimization.stage3_gather_16bit_weights_on_model_save",
        "zero_optimization.stage3_gather_fp16_weights_on_model_save",
    ),
    Key("aio", refused="offload to NVMe is not supported; offload to the CPU and remove the block"),
    Key(
        "autotuning",
        refused="a run does not search for its batch size or layout; remove the block, and see tinyllama-plan",
    ),
    Key("hybrid_engine", refused="it is for RLHF; remove the block"),
    Key("weight_quantization", refused="it is for inference; remove the block"),
    *_refused("DeepSpeed no longer reads it; remove the key", "disable_allgather", "zero_optimization.legacy_stage1"),
    Key(
        "wall_clock_breakdown",
        refused="DeepSpeed does not see Megatron's backward passes and would print 0 for them; remove the key: each "
        "log line and --metrics-file have the time of an iteration",
    ),
    Key(
        "timers.throughput",
        refused="DeepSpeed would time only the last micro-batch; remove the block: each log line and --metrics-file "
        "have tokens per second",
    ),
    Key(
        "flops_profiler",
        refused="it counts only calls of DeepSpeed's engine, which Megatron's schedule bypasses; remove the block: "
        "each log line and --metrics-file have TFLOP/s and MFU",
    ),
    Key(
        "comms_logger",
        refused="DeepSpeed does not see what Megatron and torch send; remove the block: nsys profile, or "
        "NCCL_DEBUG=INFO, shows it",
    ),
    Key("comet", refused="it is not supported; write a wandb, tensorboard or csv_monitor block"),
    *_refused(
        "DeepSpeed has removed it; remove the key",
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
        "zero_optimization.mics_shard_size",
        "zero_optimization.mics_hierarchical_params_gather",
        "zero_optimization.zeropp_loco_param",
    ),
    *_refused(
        "ZeRO++ (quantized or secondary shards) changes the numbers of a run or its memory; remove the key",
        "zero_optimization.zero_hpz_partition_size",
        "zero_optimization.zero_quantized_weights",
        "zero_optimization.zero_quantized_gradients",
        "zero_optimization.zero_quantized_nontrainable_weights",
    ),
    Key("zero_optimization.cpu_offload", refused='it is an old name; write "offload_optimizer": {"device": "cpu"}'),
    Key("zero_optimization.cpu_offload_param", refused='it is an old name; write "offload_param": {"device": "cpu"}'),
    Key(
        "zero_optimization.cpu_offload_use_pin_memory",
        refused="it is an old name; write pin_memory inside the offload block",
    ),
    Key("zero_optimization.zenflow", refused="it delays updates, which changes the loss curve; remove the block"),
    Key(
        "zero_optimization.stage3_module_granularity_threshold",
        refused="each decoder layer is gathered as a whole already, and larger blocks cannot be; remove the key",
    ),
    Key("zero_optimization.leaf_module", refused="the model has no expert layers; remove the block"),
    Key("zero_optimization.save_muon_momentum_buffer_in_memory", refused="the optimizer is AdamW; remove the key"),
    *_refused(
        'offload to NVMe is not supported; use "device": "cpu"',
        "zero_optimization.offload_param.nvme_path",
        "zero_optimization.offload_optimizer.nvme_path",
    ),
    Key(
        "zero_optimization.offload_optimizer.ratio",
        refused="all of the optimizer state is offloaded, or none; remove the key",
    ),
    Key(
        "zero_optimization.offload_optimizer.super_offload",
        refused="it needs DeepSpeed's own optimizer; remove the key",
    ),
    *_refused(
        "DeepSpeed's own optimizers are not used; remove the key",
        "zero_optimization.offload_optimizer.cpuadam_cores_perc",
        "optimizer.legacy_fusion",
    ),
    Key("bf16.immediate_grad_update", refused="the trainer sets it itself where ZeRO-1 needs it; remove the key"),
    Key(
        "bf16.check_grad_overflow",
        refused="the training loop itself checks that gradients are finite; remove the key",
    ),
    Key("data_types.param_dtype", refused="weights are kept in fp32 beside the bf16 copy; remove the key"),
    Key("data_types.buffer_dtype", refused="the model has no buffers that this would convert; remove the key"),
    Key("data_types.keep_in_fp32_modules", refused="norms are computed in fp32 by the model itself; remove the key"),
    Key(
        "optimizer.params.max_grad_norm",
        refused="clipping has a key of its own; write gradient_clipping at the top level",
    ),
)
