"""A plain DeepSpeed JSON into `ShardingConfig`: every key known, every "auto" filled, nothing silently ignored.

`read` checks the file by the tables of `deepspeed_keys`, `given` says which of the run's values it fixes, `resolve`
fills the rest from the run. Neighbours: `cli` calls the three in this order; the engine hands the result to DeepSpeed.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from pathlib import Path

from tinyllama_mcore.config import strict_json
from tinyllama_mcore.config.deepspeed_keys import KEYS, REFUSED, WITH_FSDP
from tinyllama_mcore.config.schema import (
    BatchConfig,
    ConfigError,
    FsdpConfig,
    ModelConfig,
    OptimizerConfig,
    ShardingConfig,
    WandbConfig,
)
from tinyllama_mcore.config.strict_json import Json, did_you_mean

AUTO = "auto"
MONITORS = ("tensorboard", "csv_monitor", "wandb")
"""Blocks that our own loggers take; DeepSpeed, which knows the learning rate alone, does not see them."""
JOB_NAME = "DeepSpeedJobName"
"""DeepSpeed's default of a monitor's `job_name`."""

# Path -> the run's value that it fixes; a number there may be met by the same number on the command line, not another.
GIVES: dict[str, str] = {
    "train_batch_size": "global_batch_size",
    "train_micro_batch_size_per_gpu": "micro_batch_size",
    "gradient_clipping": "clip_grad",
    "bf16.enabled": "precision",
    "optimizer.params.lr": "lr",
    "optimizer.params.betas": "betas",
    "optimizer.params.eps": "adam_eps",
    "optimizer.params.weight_decay": "weight_decay",
}

# Further paths that may say "auto".
_DERIVED = (
    "gradient_accumulation_steps",
    "data_types.grad_accum_dtype",
    "zero_optimization.reduce_bucket_size",
    "zero_optimization.allgather_bucket_size",
    "zero_optimization.stage3_prefetch_bucket_size",
    "zero_optimization.stage3_param_persistence_threshold",
)
MAY_BE_AUTO = frozenset((*GIVES, *_DERIVED))

# Written into the resolved JSON whether or not the file has them: DeepSpeed would default them to something else.
_ALWAYS = (
    "train_batch_size",
    "train_micro_batch_size_per_gpu",
    "gradient_accumulation_steps",
    "gradient_clipping",
    "bf16.enabled",
    "data_types.grad_accum_dtype",
)


def read(path: str) -> dict[str, Json]:
    """The file's blocks without those that are switched off, every key and value checked, "auto" left as it stands.

    Raises:
        ConfigError: not JSON, an unknown key (with the one it resembles), a value of another kind, or a block that
            would change what a run means and is not honoured (with the reason and what to do instead).
    """
    document = _checked_block(strict_json.read(path), "", path)
    if "fsdp" in document:
        for key in document:
            if key not in WITH_FSDP:
                raise ConfigError(
                    f"{path}: {key} is DeepSpeed's, which is not started where the fsdp block shards the run; "
                    f"remove {key}, or remove fsdp"
                )
    return document


def given(document: Mapping[str, Json]) -> dict[str, tuple[str, Json]]:
    """What the checked JSON fixes: field of the run -> (path of the key, value). "auto" fixes nothing."""
    found: dict[str, tuple[str, Json]] = {}
    for path, field in GIVES.items():
        value = _get(document, path)
        if value is None or value == AUTO:
            continue
        if field == "betas":
            found |= {"adam_beta1": (path, float(value[0])), "adam_beta2": (path, float(value[1]))}
        elif field == "precision":
            found[field] = (path, "bf16" if value else "fp32")
        else:
            found[field] = (path, int(value) if field.endswith("batch_size") else float(value))
    return found


def resolve(
    document: Mapping[str, Json],
    source: str,
    *,
    model: ModelConfig,
    optimizer: OptimizerConfig,
    batch: BatchConfig,
    precision: str,
    num_micro_batches: int,
) -> ShardingConfig:
    """The checked JSON with every "auto" filled from the run's resolved values.

    Args:
        document: what `read` returned.
        source: path of the file, for messages.
        model: the architecture; bucket sizes follow its width.
        optimizer: the resolved optimizer.
        batch: the resolved batch.
        precision: "fp32" or "bf16".
        num_micro_batches: accumulation steps of one data-parallel rank.
    """
    values = {
        **_batch_values(batch, num_micro_batches),
        **_optimizer_values(optimizer),
        **_bucket_values(model),
        "bf16.enabled": precision == "bf16",
        "data_types.grad_accum_dtype": "fp32",
    }
    filled = {key: copy.deepcopy(value) for key, value in document.items() if key not in MONITORS}
    for path, value in values.items():
        present = _get(filled, path)
        if present == AUTO or (present is None and path in _ALWAYS):
            _set(filled, path, value)
    zero = filled.get("zero_optimization", {})
    return ShardingConfig(
        source=source,
        zero_stage=int(zero.get("stage", 0)),
        precision=precision,
        fsdp=_fsdp(filled.get("fsdp")),
        grad_accum_dtype=filled["data_types"]["grad_accum_dtype"],
        offload_optimizer=zero.get("offload_optimizer", {}).get("device", "none") != "none",
        offload_param=zero.get("offload_param", {}).get("device", "none") != "none",
        deepspeed=filled,
    )


def monitors(document: Mapping[str, Json]) -> dict[str, Json]:
    """What the checked JSON's monitors ask of our own loggers, as fields of `LoopConfig`. A block is off by default."""
    on = {name: document[name] for name in MONITORS if document.get(name, {}).get("enabled", False)}
    asked: dict[str, Json] = {}
    for name, field in (("tensorboard", "tensorboard_dir"), ("csv_monitor", "csv_dir")):
        if name in on:
            asked[field] = str(Path(on[name].get("output_path", ""), on[name].get("job_name", JOB_NAME)))
    if "wandb" in on:
        asked["wandb"] = WandbConfig(**{key: value for key, value in on["wandb"].items() if key != "enabled"})
    return asked


def _fsdp(block: Mapping[str, Json] | None) -> FsdpConfig | None:
    return None if block is None else FsdpConfig(**{"sharding_strategy": "full_shard", **block})


def _batch_values(batch: BatchConfig, num_micro_batches: int) -> dict[str, Json]:
    return {
        "train_batch_size": batch.global_batch_size,
        "train_micro_batch_size_per_gpu": batch.micro_batch_size,
        "gradient_accumulation_steps": num_micro_batches,
    }


def _optimizer_values(optimizer: OptimizerConfig) -> dict[str, Json]:
    return {
        "gradient_clipping": optimizer.clip_grad,
        "optimizer.params.lr": optimizer.lr,
        "optimizer.params.betas": [optimizer.adam_beta1, optimizer.adam_beta2],
        "optimizer.params.eps": optimizer.adam_eps,
        "optimizer.params.weight_decay": optimizer.weight_decay,
    }


def _bucket_values(model: ModelConfig) -> dict[str, Json]:
    """Sizes in elements. DeepSpeed allocates whole buckets, so they follow the model up to DeepSpeed's own defaults.

    For tinyllama-1.1b: messages of four layers (369 MB in bf16, enough to fill NVLink), a prefetch of one layer, and
    only the norms kept whole. A parameter larger than a bucket is reduced on its own.
    """
    matrix = model.hidden_size * model.ffn_hidden_size
    bucket = min(500_000_000, 16 * matrix)
    return {
        "zero_optimization.reduce_bucket_size": bucket,
        "zero_optimization.allgather_bucket_size": bucket,
        "zero_optimization.stage3_prefetch_bucket_size": min(50_000_000, 4 * matrix),
        "zero_optimization.stage3_param_persistence_threshold": 10 * model.hidden_size,
    }


def _checked_block(block: Mapping[str, Json], prefix: str, source: str) -> dict[str, Json]:
    """The block with its inner blocks checked, and without those that are refused but switched off."""
    return {
        key: _checked_value(key, value, prefix, source)
        for key, value in block.items()
        if not _is_switched_off(_join(prefix, key), value)
    }


def _checked_value(key: str, value: Json, prefix: str, source: str) -> Json:
    """The value of one key, or the reason why it cannot stand there."""
    path = _join(prefix, key)
    if path in REFUSED:
        raise ConfigError(f"{source}: {path} is not supported: {REFUSED[path]}")
    if key not in KEYS[prefix]:
        raise ConfigError(f"{source}: unknown key {path!r}{did_you_mean(path, _known(prefix))}")
    if value == AUTO:
        if path not in MAY_BE_AUTO:
            raise ConfigError(f'{source}: {path} is "auto", but no recipe knows it; must be {KEYS[prefix][key].text}')
        return value
    if not KEYS[prefix][key].test(value):
        nearest = KEYS[prefix][key].nearest(value)
        raise ConfigError(
            f"{source}: {path} must be {KEYS[prefix][key].text}, got {value!r}{nearest and f'; nearest: {nearest}'}"
        )
    return _checked_block(value, path, source) if path in KEYS else value


def _known(prefix: str) -> Iterator[str]:
    """Paths that may stand in a block, the refused ones too: resembling one of them is also worth saying."""
    yield from (_join(prefix, key) for key in KEYS[prefix])
    yield from (path for path in REFUSED if path.rpartition(".")[0] == prefix)


def _is_switched_off(path: str, value: Json) -> bool:
    """Whether a refused key says of itself that it does nothing; "auto" means off for what no recipe switches on."""
    return path in REFUSED and (value is False or (isinstance(value, dict) and value.get("enabled") in (False, AUTO)))


def _join(prefix: str, key: str) -> str:
    return f"{prefix}.{key}" if prefix else key


def _get(document: Mapping[str, Json], path: str) -> Json:
    """The value at a dotted path; None where there is none."""
    block, _, key = path.rpartition(".")
    inside = _get(document, block) if block else document
    return None if inside is None else inside.get(key)


def _set(document: dict[str, Json], path: str, value: Json) -> None:
    """Put the value at a dotted path, opening blocks on the way."""
    *blocks, key = path.split(".")
    for block in blocks:
        document = document.setdefault(block, {})
    document[key] = value
