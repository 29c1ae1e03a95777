"""A run made in Python: what no field takes is refused in words, as a wrong flag is."""

from __future__ import annotations

from typing import Any

import pytest

from tests.config.conftest import REPOSITORY, with_gpu
from tinyllama_mcore.config import flags
from tinyllama_mcore.config.compose import compose
from tinyllama_mcore.config.rules import legality
from tinyllama_mcore.config.schema import ConfigError, RunConfig

ZERO1 = str(REPOSITORY / "ds_configs/zero1.json")
BLOCKS = {type(block).__name__: name for name, block in vars(compose("tinyllama-1.1b", ZERO1)).items()}
"""Name of each block's class -> its field of a run."""

WRONG: list[tuple[dict[str, Any], str]] = [
    ({"layout": {"world_size": 1.0}}, "layout: world_size must be a whole number, got 1.0"),
    ({"batch": {"train_iters": "5"}}, "batch: train_iters must be a whole number, got '5'"),
    ({"cuda_graph": 3}, "run: cuda_graph must be true or false, got 3"),
    ({"data": {"split": (99, 1)}}, "data: split: expected 3 values, got 2"),
    ({"loop": {"overwrite": "yes"}}, "loop: overwrite must be true or false, got 'yes'"),
    ({"checkpoint": {"sav": "x"}}, "checkpoint.sav is no field of a run; did you mean save?"),
    ({"attention": "flash"}, "attention is no field of a run"),
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
    run = compose("tinyllama-1.1b", ZERO1, **(inner if flag.kind is RunConfig else {BLOCKS[flag.kind.__name__]: inner}))
    with pytest.raises(ConfigError, match=rf"{flag.target} .*{flag.name}.* must be one of"):
        legality.check(run, has_gpu=with_gpu)
