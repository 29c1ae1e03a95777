"""A run made in Python: what no field takes is refused in words, as a wrong flag is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from tests.config.conftest import REPOSITORY, with_gpu
from tinyllama_mcore.config import cli, flags
from tinyllama_mcore.config.compose import compose
from tinyllama_mcore.config.errors import ConfigError
from tinyllama_mcore.config.rules import legality
from tinyllama_mcore.config.schema import RunConfig

ZERO1 = str(REPOSITORY / "ds_configs/zero1.json")
BLOCKS = {type(block).__name__: name for name, block in vars(compose("tinyllama-1.1b", ZERO1)).items()}
"""Name of each block's class -> its field of a run."""

WRONG: list[tuple[dict[str, Any], str]] = [
    ({"layout": {"world_size": 1.0}}, "layout: world_size must be a whole number, got 1.0"),
    ({"batch": {"train_iters": "5"}}, "batch: train_iters must be a whole number, got '5'"),
    ({"cuda_graph": 3}, "run: cuda_graph must be true or false, got 3"),
    ({"data": {"split": (99, 1)}}, "data: split: expected 3 values, got 2"),
    ({"loop": {"overwrite": "yes"}}, "loop: overwrite must be true or false, got 'yes'"),
    ({"checkpoint": {"saves": "x"}}, "checkpoint.saves is not a field of a run; did you mean save?"),
    ({"attention": "flash"}, "attention is not a field of a run"),
    ({"model": {1: 2}}, "model.1 is not a field of a run"),
    ({"float8": "rowwise_with_gw_hp"}, "float8 is a block of a run: give a dict of its fields"),
    ({"layout": {"tensor_model_parallel_size": 0}}, "layout: tensor_model_parallel_size (the flag --tensor-model"),
    ({"layout": {"world_size": 0}}, "world_size (the flag --world-size) must be a whole number, at least 1; got '0'"),
    ({"batch": {"micro_batch_size": 0}}, "must be a whole number, at least 1; got '0'"),
    ({"loop": {"log_interval": 0}}, "log_interval (the flag --log-interval) must be a whole number, at least 1"),
    ({"loop": {"max_skipped_in_a_row": 0}}, "must be a whole number, at least 1; got '0'"),
    ({"loop": {"distributed_timeout_minutes": float("nan")}}, "must be a number of minutes, at least 0; got 'nan'"),
    ({"data": {"split": (float("nan"), 1, 0)}}, "split (the flag --split) must be three shares"),
    ({"float8": {"num_layers_at_end_in_bf16": -3}}, "must be a whole number, at least 0; got '-3'"),
    ({"loop": {"profile": (5, 3)}}, "profile (the flag --profile) must be A:B"),
]


@pytest.mark.parametrize(("changes", "words"), WRONG)
def test_a_wrong_value_is_told(changes: dict[str, Any], words: str) -> None:
    """By the name of its field, with the type that it must have."""
    with pytest.raises(ConfigError) as told:
        compose("tinyllama-1.1b", ZERO1, **changes)
    assert words in str(told.value)


@pytest.mark.parametrize("flag", [f for f in flags.flags() if f.choices], ids=lambda f: f.name)
def test_a_choice_that_no_flag_takes_is_refused(flag: flags.Flag) -> None:
    """Every flag with choices: in Python nothing else stands between its field and the code that looks it up."""
    assert flag.kind is not None
    inner = {flag.target: "nonsense"}
    block = "" if flag.kind is RunConfig else BLOCKS[flag.kind.__name__]
    with pytest.raises(ConfigError, match=rf"{flag.target} .*{flag.name}.* must be one of"):
        compose("tinyllama-1.1b", ZERO1, **({block: inner} if block else inner))
    run = compose("tinyllama-1.1b", ZERO1)  # and where a run is changed afterwards
    part = replace(run if flag.kind is RunConfig else getattr(run, block), **inner)
    with pytest.raises(ConfigError, match=rf"{flag.target} .*{flag.name}.* must be one of"):
        legality.check(part if flag.kind is RunConfig else replace(run, **{block: part}), has_gpu=with_gpu)


def test_a_blend_is_made_of_shares() -> None:
    """As the command line makes them, to the bit, so that one resumes the other's run."""
    argv = ["--deepspeed_config", ZERO1, "--recipe", "tinyllama-1.1b", "--data-path", "2", "a", "1", "b"]
    argv += ["--valid-data-path", "3", "v", "4", "w"]
    data = {"blend": ((2, "a"), (1, "b")), "valid_blend": ((3, "v"), (4, "w"))}
    composed = compose("tinyllama-1.1b", ZERO1, data=data).data
    assert composed == cli.parse(argv, world_size=1, has_gpu=with_gpu).data
    assert (composed.blend, composed.split) == (((2 / 3, "a"), (1 / 3, "b")), (100.0, 0.0, 0.0))


def test_validation_datasets_take_nothing_from_training() -> None:
    """A split beside them says something else, unless it is the one that they make."""
    data: dict[str, Any] = {"blend": ((1.0, "a"),), "valid_blend": ((1.0, "v"),)}
    with pytest.raises(ConfigError, match="--valid-data-path and --split both say what to validate on"):
        compose("tinyllama-1.1b", ZERO1, data={**data, "split": (99, 1, 0)})
    whole = compose("tinyllama-1.1b", ZERO1, data={**data, "split": (100, 0, 0)})
    assert whole == compose("tinyllama-1.1b", ZERO1, data=data)


def test_a_constant_rate_has_no_smallest() -> None:
    """Refused as on the command line; another style leaves behind what the recipe says of its own."""
    with pytest.raises(ConfigError, match="--min-lr 1e-05 does nothing here, as --lr-decay-style constant never falls"):
        compose("tinyllama-1.1b", ZERO1, optimizer={"lr_decay_style": "constant", "min_lr": 1e-5})
    constant = compose("tinyllama-1.1b", ZERO1, optimizer={"lr_decay_style": "constant"})
    legality.check(constant, has_gpu=with_gpu)


def test_a_monitor_of_the_json_is_not_overruled(write_json: Callable[..., str]) -> None:
    """Two places that say where a monitor writes, one of them without effect."""
    block = {"enabled": True, "output_path": "there", "job_name": "a"}
    source = write_json({"zero_optimization": {"stage": 1}, "tensorboard": block, "csv_monitor": block})
    for field, name in (("tensorboard_dir", "tensorboard"), ("csv_dir", "csv_monitor")):
        with pytest.raises(ConfigError, match=rf"loop\.{field} is here, but {name} of .* is there/a; change one"):
            compose("tinyllama-1.1b", source, loop={field: "here"})
        for spelled in ("there/a", "./there/b/../a"):
            assert getattr(compose("tinyllama-1.1b", source, loop={field: spelled}).loop, field) == spelled
