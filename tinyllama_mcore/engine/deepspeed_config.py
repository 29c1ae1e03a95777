"""RunConfig in DeepSpeed's words: a pure function. What Megatron or we already do is turned off here, once."""

from __future__ import annotations

from typing import Any

from tinyllama_mcore.config import engines
from tinyllama_mcore.config.deepspeed.key import Reader
from tinyllama_mcore.config.deepspeed.keys import KEYS
from tinyllama_mcore.config.schema import RunConfig


def deepspeed_config(run: RunConfig) -> dict[str, Any]:
    """The dictionary for `deepspeed.initialize`: the user's JSON, with what the wiring needs set over it.

    Where the ZeRO stage that runs is not the JSON's, that block goes, as it is about sharding that does not happen.

    - Megatron's schedule loops over the micro-batches and divides by their number, so DeepSpeed is told of one; what it
      calls data parallel is the shard axis, context ranks included.
    - `managed_gradient_accumulation: false` makes `engine.step()` the only boundary (DeepSpeed 0.19).
    - AdamW is torch's, built by us: DeepSpeed's `optimizer` block only gave its numbers.
    - Its throughput timer, on by default, sees one micro-batch of an iteration: it is turned off.
    - Stage 0 does not report the norm it clips by, so there we clip.
    """
    sharding, micro = run.sharding, run.batch.micro_batch_size
    config = {path: value for path, value in sharding.deepspeed.items() if KEYS[path].reader is Reader.DEEPSPEED}
    config.update(
        train_micro_batch_size_per_gpu=micro,
        gradient_accumulation_steps=1,
        train_batch_size=micro * run.layout.shard_size,
        managed_gradient_accumulation=False,
        zero_allow_untested_optimizer=True,
        zero_force_ds_cpu_optimizer=False,
        gradient_clipping=0.0 if sharding.zero_stage == 0 else run.optimizer.clip_grad,
        data_types={"grad_accum_dtype": sharding.grad_accum_dtype if sharding.precision == "bf16" else "fp32"},
        bf16={"enabled": sharding.precision == "bf16"},
        timers={"throughput": {"enabled": False}},
    )
    if engines.stage(run) != sharding.zero_stage:
        config["zero_optimization"] = {"stage": engines.stage(run)}
    if engines.has_flat_gradients(run):
        # BF16_Optimizer moves gradients to its fp32 buffers by per-parameter hooks: nobody calls its epilogue here
        config["bf16"]["immediate_grad_update"] = True
    return config
