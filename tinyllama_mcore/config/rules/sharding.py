"""Rules of the sharding, which the DeepSpeed JSON says: ZeRO, FSDP, offload, and what they can be combined with."""

from __future__ import annotations

from tinyllama_mcore.config.nearest import divisors
from tinyllama_mcore.config.rules.rule import About, Rule
from tinyllama_mcore.config.schema import RunConfig


def _zero(run: RunConfig, key: str) -> object:
    """A key of the JSON's zero_optimization block."""
    return run.sharding.deepspeed.get("zero_optimization", {}).get(key)


def is_zero(run: RunConfig, *stages: int) -> bool:
    """Whether DeepSpeed shards the run, at one of these stages."""
    return run.sharding.fsdp is None and run.sharding.zero_stage in stages


def _hybrid_fits(run: RunConfig) -> bool:
    fsdp = run.sharding.fsdp
    if fsdp is None or fsdp.sharding_strategy != "hybrid_shard":
        return fsdp is None or fsdp.hybrid_shard_size is None
    return fsdp.hybrid_shard_size is not None and run.layout.shard_size % fsdp.hybrid_shard_size == 0


def _hybrid_message(run: RunConfig) -> str:
    fsdp = run.sharding.fsdp
    assert fsdp is not None
    key = f"{run.sharding.source}: fsdp.hybrid_shard_size"
    if fsdp.sharding_strategy != "hybrid_shard":
        return f"{key} is {fsdp.hybrid_shard_size}, but fsdp.sharding_strategy is {fsdp.sharding_strategy}; remove it"
    given = "missing" if fsdp.hybrid_shard_size is None else str(fsdp.hybrid_shard_size)
    return (
        f"{key} is {given}; it must divide the {run.layout.shard_size} ranks of data x context parallel: "
        f"{divisors(run.layout.shard_size)}; best is the number of GPUs of a node"
    )


def _scatters(run: RunConfig) -> bool:
    """Whether DeepSpeed reduces gradients straight to the rank that keeps them: it divides them in one way then."""
    return is_zero(run, 2, 3) and _zero(run, "reduce_scatter") is not False


def _division(key: str, default: object) -> Rule:
    """A key that says how gradients are divided stands at its default where they are scattered (DeepSpeed 0.19.8)."""
    spelled = str(default).lower()
    return Rule(
        name=f"{key} needs reduce_scatter off with ZeRO 2 and 3",
        about=About.SHARDING,
        holds=lambda run: not _scatters(run) or run.sharding.deepspeed.get(key, default) == default,
        message=lambda run: (
            f"{run.sharding.source}: {key} is {str(run.sharding.deepspeed[key]).lower()}, but ZeRO "
            f"{run.sharding.zero_stage} with zero_optimization.reduce_scatter supports {spelled} only; "
            f'write {spelled}, or "reduce_scatter": false'
        ),
    )


SHARDING_RULES = (
    Rule(
        name="the ZeRO stage is 0, 1, 2 or 3",
        about=About.SHARDING,
        holds=lambda run: run.sharding.zero_stage in range(4),
        message=lambda run: (
            f"{run.sharding.source}: zero_optimization.stage is {run.sharding.zero_stage}; it must be 0, 1, 2 or 3"
        ),
    ),
    Rule(  # DeepSpeed 0.19.8 takes a real optimizer step on zero gradients at start: the curve is 0.9% off
        name="ZeRO 0 trains in fp32",
        about=About.SHARDING,
        holds=lambda run: not is_zero(run, 0) or run.sharding.precision == "fp32",
        message=lambda run: (
            f"{run.sharding.source}: ZeRO stage 0 with bf16 computes a wrong first update in DeepSpeed; "
            'use --deepspeed_config zero1, or "bf16": {"enabled": false}'
        ),
    ),
    Rule(  # ZeRO 3 under 1F1B did not end in two trials of DeepSpeed 0.19.8 where ZeRO 2 took seconds
        name="ZeRO 3 needs pipeline parallel 1",
        about=About.SHARDING,
        holds=lambda run: not is_zero(run, 3) or run.layout.pipeline_model_parallel_size == 1,
        message=lambda run: (
            f"--pipeline-model-parallel-size {run.layout.pipeline_model_parallel_size} needs ZeRO 2 or less: ZeRO 3 "
            f"gathers parameters in an order that a pipeline breaks; {run.sharding.source} says 3: "
            "use --deepspeed_config zero2, or fsdp, which shards parameters under a pipeline too"
        ),
    ),
    Rule(
        name="overlap_comm needs ZeRO 2 or 3",
        about=About.SHARDING,
        holds=lambda run: not _zero(run, "overlap_comm") or run.sharding.zero_stage >= 2,
        message=lambda run: (
            f"{run.sharding.source}: zero_optimization.overlap_comm is true at stage {run.sharding.zero_stage}, where "
            "gradients are reduced once an iteration and there is nothing to overlap; write false, or use stage 2 or 3"
        ),
    ),
    _division("gradient_predivide_factor", 1.0),
    _division("prescale_gradients", False),
    Rule(
        name="offload_optimizer needs ZeRO 1, 2 or 3",
        about=About.SHARDING,
        holds=lambda run: not run.sharding.offload_optimizer or run.sharding.zero_stage >= 1,
        message=lambda run: (
            f"{run.sharding.source}: offload_optimizer needs zero_optimization.stage 1, 2 or 3, got 0; "
            "use --deepspeed_config zero3_offload"
        ),
    ),
    Rule(
        name="offload_param needs ZeRO 3",
        about=About.SHARDING,
        holds=lambda run: not run.sharding.offload_param or run.sharding.zero_stage == 3,
        message=lambda run: (
            f"{run.sharding.source}: offload_param needs zero_optimization.stage 3, got {run.sharding.zero_stage}; "
            "use --deepspeed_config zero3_offload, or only offload_optimizer"
        ),
    ),
    Rule(
        name="fp32 accumulates in fp32",
        about=About.SHARDING,
        holds=lambda run: run.sharding.precision == "bf16" or run.sharding.grad_accum_dtype == "fp32",
        message=lambda run: (
            f"{run.sharding.source}: data_types.grad_accum_dtype is {run.sharding.grad_accum_dtype!r}, but gradients "
            'are fp32 without bf16.enabled; write "fp32" or "auto"'
        ),
    ),
    Rule(
        name="hybrid shard groups divide the ranks",
        about=About.SHARDING,
        holds=_hybrid_fits,
        message=_hybrid_message,
    ),
    Rule(
        name="FSDP accumulates in fp32",
        about=About.SHARDING,
        holds=lambda run: run.sharding.fsdp is None or run.sharding.grad_accum_dtype == "fp32",
        message=lambda run: (
            f"{run.sharding.source}: data_types.grad_accum_dtype is {run.sharding.grad_accum_dtype!r}, but FSDP "
            'reduces and accumulates in fp32; write "fp32" or "auto"'
        ),
    ),
)
