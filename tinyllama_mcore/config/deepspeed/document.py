"""Reads a DeepSpeed JSON into `ShardingConfig`: every key known, every "auto" filled, nothing silently ignored.

Neighbours: `shipped` finds a file by name; `keys` is the table that files are read by; `compose` takes what a file
fixes, and has the rest filled from the run. The engine hands the result to DeepSpeed.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tinyllama_mcore.config import strict_json
from tinyllama_mcore.config.deepspeed import shipped
from tinyllama_mcore.config.deepspeed.key import Reader, Settled
from tinyllama_mcore.config.deepspeed.keys import KEYS, TAKEN
from tinyllama_mcore.config.deepspeed.kinds import BLOCK
from tinyllama_mcore.config.errors import ConfigError
from tinyllama_mcore.config.loop_config import WandbConfig
from tinyllama_mcore.config.schema import FsdpConfig, ShardingConfig
from tinyllama_mcore.config.strict_json import Json, did_you_mean

AUTO = "auto"
JOB_NAME = "DeepSpeedJobName"
"""DeepSpeed's default of a monitor's `job_name`."""


@dataclass(frozen=True, kw_only=True)
class Document:
    """A file, every key and value of it checked, "auto" left as it stands."""

    source: str
    """Its path, or its name among those of `shipped`, as it was given: for messages, and for commands that name it."""
    blocks: Mapping[str, Json]
    """What it says, without the refused keys that are switched off."""

    @classmethod
    def read(cls, path: str) -> Document:
        """The file of a path, or of a name among those that come with the package (`shipped`), checked.

        Raises:
            ConfigError: no such file or name, not JSON, an unknown key (with the one it resembles), a value of another
                kind, or a block that would change what a run means and is not honoured (with the reason and what to do
                instead).
        """
        blocks = _checked_block(strict_json.read(shipped.find(path)), "", path)
        if "fsdp" in blocks:
            for key in blocks:
                if not KEYS[key].with_fsdp:
                    raise ConfigError(
                        f"{path}: {key} is for DeepSpeed, which is not used when an fsdp block shards the run; "
                        f"remove {key}, or remove fsdp"
                    )
        return cls(source=path, blocks=blocks)

    def given(self) -> dict[str, tuple[str, Json]]:
        """What it fixes: field of the run -> (path of the key, value). "auto" fixes nothing."""
        found: dict[str, tuple[str, Json]] = {}
        for key in TAKEN:
            value = _get(self.blocks, key.path)
            if key.fixes is not None and value is not None and value != AUTO:
                found |= {field: (key.path, fixed) for field, fixed in key.fixes(value).items()}
        return found

    def resolve(self, run: Settled) -> ShardingConfig:
        """The JSON with every "auto" filled from the run, and with values whose default in DeepSpeed is another one."""
        filled = {
            path: copy.deepcopy(value) for path, value in self.blocks.items() if KEYS[path].reader is not Reader.LOGGERS
        }
        for key in TAKEN:
            present = _get(filled, key.path)
            if key.auto is not None and (present == AUTO or (present is None and key.always)):
                _set(filled, key.path, key.auto(run))
        zero = filled.get("zero_optimization", {})
        return ShardingConfig(
            source=self.source,
            zero_stage=int(zero.get("stage", 0)),
            precision=run.precision,
            fsdp=_fsdp(filled.get("fsdp")),
            grad_accum_dtype=filled["data_types"]["grad_accum_dtype"],
            offload_optimizer=zero.get("offload_optimizer", {}).get("device", "none") != "none",
            offload_param=zero.get("offload_param", {}).get("device", "none") != "none",
            deepspeed=filled,
        )

    def monitors(self) -> dict[str, Json]:
        """What its monitors ask of our own loggers, as fields of `LoopConfig`. A block is off by default."""
        on = {
            path: block
            for path, block in self.blocks.items()
            if KEYS[path].reader is Reader.LOGGERS and block.get("enabled", False)
        }
        asked: dict[str, Json] = {}
        for name, field in (("tensorboard", "tensorboard_dir"), ("csv_monitor", "csv_dir")):
            if name in on:
                asked[field] = str(Path(on[name].get("output_path", ""), on[name].get("job_name", JOB_NAME)))
        if "wandb" in on:
            asked["wandb"] = WandbConfig(**{key: value for key, value in on["wandb"].items() if key != "enabled"})
        return asked


def _fsdp(block: Mapping[str, Json] | None) -> FsdpConfig | None:
    return None if block is None else FsdpConfig(**{"sharding_strategy": "full_shard", **block})


def _checked_block(block: Mapping[str, Json], prefix: str, source: str) -> dict[str, Json]:
    """The block with its inner blocks checked, and without those that are refused but switched off."""
    return {
        name: _checked_value(name, value, prefix, source)
        for name, value in block.items()
        if not _is_switched_off(_join(prefix, name), value)
    }


def _checked_value(name: str, value: Json, prefix: str, source: str) -> Json:
    """The value of one key. ConfigError says why it is refused."""
    path = _join(prefix, name)
    key = KEYS.get(path)
    if key is not None and key.refused:
        raise ConfigError(f"{source}: {path} is not supported: {key.refused}")
    if key is None or key.kind is None or key.block != prefix:  # the last: a name with a dot in it
        known = (known.path for known in KEYS.values() if known.block == prefix)
        raise ConfigError(f"{source}: unknown key {path!r}{did_you_mean(path, known)}")
    if value == AUTO:
        if key.auto is None:
            raise ConfigError(
                f'{source}: {path} is "auto", but a recipe has no value for it; it must be {key.kind.text}'
            )
        return value
    if not key.kind.test(value):
        nearest = key.kind.nearest(value)
        raise ConfigError(
            f"{source}: {path} must be {key.kind.text}, got {value!r}{nearest and f'; nearest: {nearest}'}"
        )
    return _checked_block(value, path, source) if key.kind is BLOCK else value


def _is_switched_off(path: str, value: Json) -> bool:
    """Whether a refused key says of itself that it does nothing; "auto" means off for what no recipe switches on."""
    refused = path in KEYS and KEYS[path].refused
    return bool(refused) and (value is False or (isinstance(value, dict) and value.get("enabled") in (False, AUTO)))


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
