"""The DeepSpeed JSON: no key is silently ignored, every "auto" is filled, and DeepSpeed takes the result."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.config.conftest import REPOSITORY
from tinyllama_mcore.config.deepspeed.document import Document
from tinyllama_mcore.config.deepspeed.key import Key
from tinyllama_mcore.config.deepspeed.keys import KEYS
from tinyllama_mcore.config.deepspeed.kinds import LOG_LEVEL
from tinyllama_mcore.config.deepspeed.refused import REFUSED
from tinyllama_mcore.config.errors import ConfigError
from tinyllama_mcore.config.loop_config import WandbConfig
from tinyllama_mcore.config.schema import RunConfig

SHIPPED = sorted(path.name for path in (REPOSITORY / "ds_configs").glob("*.json"))


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ({"zero_optimisation": {"stage": 3}}, "unknown key 'zero_optimisation'; did you mean zero_optimization?"),
        ({"gradient_clippping": 1.0}, "did you mean gradient_clipping?"),
        ({"train_micro_batch_size_per_gpus": 4}, "did you mean train_micro_batch_size_per_gpu?"),
        ({"zero_optimization": {"stge": 3}}, "did you mean zero_optimization.stage?"),
        ({"zero_optimization": {"offload_optimiser": {}}}, "did you mean zero_optimization.offload_optimizer?"),
        ({"zero_optimization": {"offload_param": {"devise": "cpu"}}}, "zero_optimization.offload_param.device?"),
        ({"bf16": {"enable": True}}, "did you mean bf16.enabled?"),
        ({"data_types": {"grad_accum_type": "fp32"}}, "did you mean data_types.grad_accum_dtype?"),
        ({"optimizer": {"type": "AdamW", "params": {"learning_rate": 1}}}, "unknown key 'optimizer.params.learning_"),
        ({"wandb": {"projekt": "x"}}, "did you mean wandb.project?"),
        ({"csv_monitor": {"enabeld": True}}, "did you mean csv_monitor.enabled?"),
        ({"zero_optimization": {"stage": "3"}}, "zero_optimization.stage must be a whole number, at least 0, got '3'"),
        ({"zero_optimization": {"stage": True}}, "zero_optimization.stage must be a whole number"),
        ({"zero_optimization": {"overlap_comm": "true"}}, "overlap_comm must be true or false, got 'true'"),
        ({"zero_optimization": {"reduce_bucket_size": 0}}, "reduce_bucket_size must be a whole number, at least 1"),
        ({"zero_optimization": True}, "zero_optimization must be an object"),
        ({"zero_optimization": {"offload_param": {"device": "nvme"}}}, 'device must be "none" or "cpu", got \'nvme\''),
        ({"zero_optimization": {"compute_grad_norm": False}}, "compute_grad_norm must be true"),
        ({"bf16": True}, "bf16 must be an object"),
        ({"bf16": {"enabled": 1}}, "bf16.enabled must be true or false, got 1"),
        ({"bf16": {"bf16_master_weights_and_grads": True}}, "bf16_master_weights_and_grads must be false"),
        ({"steps_per_print": 0}, "steps_per_print must be null or a whole number, at least 1, got 0; nearest: 1"),
        ({"steps_per_print": 2.5}, "steps_per_print must be null or a whole number"),
        ({"log_level": "bogus"}, "log_level must be null, debug, info, warning, error or critical, got 'bogus'"),
        ({"gradient_predivide_factor": 0}, "gradient_predivide_factor must be a number above 0, got 0; nearest: 1.0"),
        ({"zero_optimization": {"allgather_bucket_size": 3}}, "at least 2, got 3; nearest: 2 or 4"),
        ({"zero_optimization": {"allgather_bucket_size": 0}}, "allgather_bucket_size must be an even whole number"),
        ({"wall_clock_breakdown": True}, "each log line and --metrics-file have the time of an iteration"),
        ({"flops_profiler": {"enabled": True}}, "each log line and --metrics-file have TFLOP/s and MFU"),
        ({"timers": {"throughput": {"enabled": True}}}, "timers.throughput is not supported"),
        ({"comms_logger": {"enabled": True}}, "comms_logger is not supported"),
        ({"comet": {"enabled": True}}, "comet is not supported: it is not supported; write a wandb"),
        ({"train_batch_size": 0}, "train_batch_size must be a whole number, at least 1, got 0"),
        ({"train_batch_size": 1.5}, "train_batch_size must be a whole number"),
        ({"gradient_clipping": -1}, "gradient_clipping must be a number, at least 0, got -1"),
        ({"data_types": {"grad_accum_dtype": "fp16"}}, 'grad_accum_dtype must be "fp32" or "bf16"'),
        ({"gradient_allreduce_op": "sum"}, 'gradient_allreduce_op must be "mean"'),
        ({"optimizer": {"type": "Lamb"}}, 'optimizer.type must be "AdamW" or "Adam", got \'Lamb\''),
        ({"optimizer": {"type": "Adam", "params": {"betas": [0.9, 1.0]}}}, "betas must be two numbers below 1"),
        ({"optimizer": {"type": "Adam", "params": {"adam_w_mode": False}}}, "adam_w_mode must be true"),
        ({"optimizer": {"type": "AdamW", "params": {"max_grad_norm": 1}}}, "write gradient_clipping at the top level"),
        (
            {"zero_optimization": {"stage": "auto"}},
            'zero_optimization.stage is "auto", but a recipe has no value for it',
        ),
        ({"optimizer": {"type": "AdamW", "params": "auto"}}, 'optimizer.params is "auto"'),
        ({"fp16": {"enabled": True}}, "fp16 is not supported: only bf16 and fp32"),
        ({"fsdp": {}, "zero_optimization": {"stage": 1}}, "zero_optimization is for DeepSpeed, which is not used"),
        ({"fsdp": {"sharding_strategy": "FULL_SHARD"}}, 'must be "full_shard" or "shard_grad_op" or "hybrid_shard"'),
        ({"scheduler": {"type": "WarmupLR"}}, "scheduler is not supported: the learning-rate schedule is the recipe's"),
        ({"activation_checkpointing": {}}, "use --recompute-granularity"),
        ({"pipeline": {"stages": 2}}, "pipeline is not supported"),
        ({"amp": {"enabled": True}}, "amp is not supported: DeepSpeed has removed it"),
        ({"elasticity": {"enabled": True}}, "elasticity is not supported"),
        ({"curriculum_learning": {"enabled": True}}, "curriculum_learning is not supported"),
        ({"sparse_attention": {"mode": "fixed"}}, "sparse_attention is not supported"),
        ({"compression_training": {}}, "compression_training is not supported"),
        ({"zero_optimization": {"cpu_offload": True}}, 'write "offload_optimizer": {"device": "cpu"}'),
        ({"zero_optimization": {"zero_quantized_gradients": True}}, "ZeRO++"),
    ],
)
def test_what_would_be_ignored_or_misread_is_refused(
    write_json: Callable[..., str], document: dict[str, Any], expected: str
) -> None:
    """DeepSpeed 0.19.8 takes most of these without a word."""
    path = write_json(document)
    with pytest.raises(ConfigError) as told:
        Document.read(path)
    assert expected in str(told.value)
    assert path in str(told.value)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("key", REFUSED, ids=lambda key: key.path)
def test_every_refused_key_is_told_with_its_reason(write_json: Callable[..., str], key: Key) -> None:
    """The whole table, key by key."""
    document: Any = {"anything": 1}
    for name in reversed(key.path.split(".")):
        document = {name: document}
    with pytest.raises(ConfigError, match=re.escape(f"{key.path} is not supported: {key.refused}")):
        Document.read(write_json(document))


def test_a_refused_block_that_is_switched_off_is_left_out(write_json: Callable[..., str]) -> None:
    """Templates for Hugging Face's trainer carry such blocks."""
    off = {"fp16": {"enabled": "auto", "loss_scale": 0}, "amp": {"enabled": False}, "wall_clock_breakdown": False}
    off |= {"flops_profiler": {"enabled": False, "profile_step": 1}, "timers": {"throughput": {"enabled": False}}}
    assert Document.read(write_json({**off, "steps_per_print": 10})).blocks == {"steps_per_print": 10, "timers": {}}


@pytest.mark.parametrize("sharding", [{"zero_optimization": {"stage": 1}}, {"fsdp": {}}], ids=["DeepSpeed", "FSDP"])
def test_monitors_are_our_own_loggers(make_run: Callable[..., RunConfig], sharding: dict, tmp_path: Path) -> None:
    """DeepSpeed does not see them, and FSDP has them too. A block is off by default."""
    watchers = {
        "tensorboard": {"enabled": True, "output_path": str(tmp_path)},
        "csv_monitor": {"enabled": True, "output_path": str(tmp_path / "csv"), "job_name": "a"},
        "wandb": {"enabled": True, "project": "p", "team": "t"},
    }
    run = make_run(ds={**sharding, **watchers}, judge=False)
    assert run.loop.tensorboard_dir == str(tmp_path / "DeepSpeedJobName")
    assert run.loop.csv_dir == str(tmp_path / "csv" / "a")
    assert run.loop.wandb == WandbConfig(project="p", team="t")
    assert not set(watchers) & set(run.sharding.deepspeed)
    off = {name: {**block, "enabled": False} for name, block in watchers.items()}
    for silent in (off, {name: {} for name in watchers}):
        assert make_run(ds={**sharding, **silent}).loop == make_run(ds=sharding).loop


def test_two_places_for_tensorboard_are_refused(make_run: Callable[..., RunConfig], tmp_path: Path) -> None:
    """One by the flag, one by the JSON; the same one twice is no contradiction."""
    ds = {"fsdp": {}, "tensorboard": {"enabled": True, "output_path": str(tmp_path), "job_name": "a"}}
    with pytest.raises(ConfigError, match=r"--tensorboard-dir elsewhere .* tensorboard block .* leave one of them"):
        make_run("--tensorboard-dir", "elsewhere", ds=ds)
    assert make_run("--tensorboard-dir", f"{tmp_path}/./a", ds=ds).loop.tensorboard_dir == f"{tmp_path}/./a"


def test_what_the_json_gives_is_taken(make_run: Callable[..., RunConfig]) -> None:
    """A JSON with numbers throughout comes out as it went in."""
    params = {"lr": 3e-4, "betas": [0.8, 0.9], "eps": 1e-6, "weight_decay": 0.2}
    ds = {
        "train_batch_size": 32,
        "train_micro_batch_size_per_gpu": 2,
        "gradient_accumulation_steps": 8,
        "gradient_clipping": 0.5,
        "bf16": {"enabled": False},
        "optimizer": {"type": "AdamW", "params": params},
        "zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}},
        "data_types": {"grad_accum_dtype": "fp32"},
    }
    run = make_run(ds=ds, world=2)
    assert (run.batch.global_batch_size, run.batch.micro_batch_size, run.num_micro_batches) == (32, 2, 8)
    o = run.optimizer
    assert (o.lr, o.adam_beta1, o.adam_beta2, o.adam_eps, o.weight_decay) == (3e-4, 0.8, 0.9, 1e-6, 0.2)
    assert (o.clip_grad, run.sharding.precision, run.sharding.zero_stage) == (0.5, "fp32", 2)
    assert (run.sharding.offload_optimizer, run.sharding.offload_param) == (True, False)
    assert run.sharding.deepspeed == ds


def test_auto_is_filled_from_the_run(make_run: Callable[..., RunConfig]) -> None:
    """From the recipe and the command line; what DeepSpeed would default is written too."""
    params = dict.fromkeys(("lr", "betas", "eps", "weight_decay"), "auto")
    zero = {"stage": 3, "reduce_bucket_size": "auto", "stage3_prefetch_bucket_size": "auto"}
    ds = {
        "train_batch_size": "auto",
        "bf16": {"enabled": "auto"},
        "optimizer": {"type": "AdamW", "params": params},
        "zero_optimization": zero | {"stage3_param_persistence_threshold": "auto"},
    }
    run = make_run("--lr", "1e-3", "--micro-batch-size", "4", ds=ds, world=16)
    assert run.sharding.deepspeed == {
        "train_batch_size": 1024,
        "train_micro_batch_size_per_gpu": 4,
        "gradient_accumulation_steps": 16,
        "gradient_clipping": 1.0,
        "bf16": {"enabled": True},
        "data_types": {"grad_accum_dtype": "fp32"},
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-3, "betas": [0.9, 0.95], "eps": 1e-8, "weight_decay": 0.1}},
        "zero_optimization": {
            "stage": 3,
            "reduce_bucket_size": 16 * 2048 * 5632,
            "stage3_prefetch_bucket_size": 4 * 2048 * 5632,
            "stage3_param_persistence_threshold": 20480,
        },
    }


def test_a_small_model_gets_small_buckets(make_run: Callable[..., RunConfig]) -> None:
    """DeepSpeed allocates whole buckets: its default of 5e8 elements is 2 GB in fp32."""
    run = make_run("--recipe", "tinyllama-debug")
    assert run.sharding.deepspeed["zero_optimization"]["reduce_bucket_size"] == 720_896  # 2.9 MB in fp32


@pytest.mark.parametrize("world", [1, 2, 8])
@pytest.mark.parametrize("recipe", ["tinyllama-debug", "tinyllama-1.1b"])
@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_json_loads_anywhere(make_run: Callable[..., RunConfig], name: str, recipe: str, world: int) -> None:
    """For 1, 2 and 8 ranks, with both kinds of recipe."""
    run = make_run("--deepspeed_config", str(REPOSITORY / "ds_configs" / name), "--recipe", recipe, world=world)
    assert "auto" not in str(run.sharding.deepspeed)
    stage = 0 if name == "fsdp.json" else int(name[4])
    assert run.sharding.zero_stage == stage
    assert (run.sharding.fsdp is not None) == (name == "fsdp.json")
    assert run.sharding.precision == ("bf16" if recipe == "tinyllama-1.1b" and name != "zero0.json" else "fp32")
    assert run.sharding.offload_param == run.sharding.offload_optimizer == ("offload" in name)


@pytest.mark.parametrize("name", [name for name in SHIPPED if name != "fsdp.json"])
def test_deepspeed_takes_what_we_resolve(make_run: Callable[..., RunConfig], name: str) -> None:
    """DeepSpeed's own parser reads the numbers that we meant."""
    from deepspeed.runtime.config import DeepSpeedConfig

    run = make_run("--deepspeed_config", str(REPOSITORY / "ds_configs" / name), "--recipe", "tinyllama-debug")
    theirs = DeepSpeedConfig(dict(run.sharding.deepspeed))
    assert theirs.zero_optimization_stage == run.sharding.zero_stage
    assert theirs.train_batch_size == run.batch.global_batch_size
    assert theirs.gradient_accumulation_steps == run.num_micro_batches
    assert theirs.gradient_clipping == run.optimizer.clip_grad


def names_in(block: str) -> set[str]:
    """The keys of a block, taken and refused."""
    return {key.path.rpartition(".")[2] for key in KEYS.values() if key.block == block}


class Watched(dict):
    """A configuration that remembers what it was asked for."""

    asked: set[str] = set()  # noqa: RUF012  (shared on purpose: DeepSpeed copies the dictionary)

    def get(self, key: str, default: object = None) -> object:
        """As of a dict."""
        self.asked.add(key)
        return super().get(key, default)

    def __contains__(self, key: object) -> bool:
        self.asked.add(str(key))
        return super().__contains__(key)

    def keys(self) -> Watched:  # type: ignore[override]
        """Itself, so that `key in config.keys()` is seen too."""
        return self


def test_the_top_level_keys_are_those_that_deepspeed_asks_for() -> None:
    """Each key that its parser looks up is either taken or refused here; none is made up."""
    from deepspeed.runtime.config import DeepSpeedConfig

    ours = names_in("")
    DeepSpeedConfig(Watched(train_batch_size=1))
    elsewhere = {"fsdp", "sequence_parallel_size", "optimizer", "scheduler"}  # ours, and read before or after parsing
    assert Watched.asked >= {"zero_optimization", "scheduler", "train_batch_size"}
    assert Watched.asked - ours == set()
    assert ours - Watched.asked - elsewhere == set()


def test_the_keys_of_blocks_are_those_of_deepspeeds_classes() -> None:
    """Each field of its pydantic models is either taken or refused here."""
    from deepspeed.monitor import config as monitor
    from deepspeed.runtime.config import _REMOVED_ZERO_CONFIG_KEYS
    from deepspeed.runtime.precision_config import DeepSpeedBF16Config
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
    from deepspeed.runtime.zero.offload_config import (
        DeepSpeedZeroOffloadOptimizerConfig,
        DeepSpeedZeroOffloadParamConfig,
    )

    for block, theirs, more in (
        ("zero_optimization", DeepSpeedZeroConfig, set(_REMOVED_ZERO_CONFIG_KEYS)),
        ("zero_optimization.offload_param", DeepSpeedZeroOffloadParamConfig, set()),
        ("zero_optimization.offload_optimizer", DeepSpeedZeroOffloadOptimizerConfig, set()),
        ("bf16", DeepSpeedBF16Config, set()),
        ("tensorboard", monitor.TensorBoardConfig, set()),
        ("csv_monitor", monitor.CSVConfig, set()),
        ("wandb", monitor.WandbConfig, set()),
    ):
        names = {field.alias or name for name, field in theirs.model_fields.items()} | more
        assert names_in(block) == names, block


def test_log_levels_are_deepspeeds() -> None:
    """Its own table takes each that is taken here."""
    from deepspeed.utils.logging import log_levels

    for level in ("debug", "info", "warning", "error", "critical"):
        assert LOG_LEVEL.test(level)
    assert set(log_levels) == {level for level in (*log_levels, "bogus", "INFO") if LOG_LEVEL.test(level)}


def test_a_number_beyond_all_is_refused(write_json: Callable[..., str]) -> None:
    """1e999 is JSON, and infinite."""
    for number in ("1e999", "-1e999", "9" * 400, "9" * 5000):
        with pytest.raises(ConfigError, match=r"ds.json: -?[19][e9]+ is too large a number"):
            Document.read(write_json(f'{{"zero_optimization": {{"reduce_bucket_size": {number}}}}}'))
