"""Every key of the DeepSpeed JSON that is taken, run at every stage that takes it, at a value that is not its default.

Two ranks, four iterations: losses, norms and the saved state beside those of the same run without the key, and once
more from the checkpoint of the second iteration. How far a key may move them stands in its row of the table
(`config/deepspeed/keys.py`). In every run of the suite keys that do not touch each other are tried together, and one by
one where that fails; `make test-layouts` tries each by itself.
"""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests.distributed import many, ranks
from tests.distributed.conftest import write_json
from tests.distributed.recipe import RECIPE
from tinyllama_mcore.checkpoint import layout
from tinyllama_mcore.checkpoint.reader import CheckpointReader
from tinyllama_mcore.config import cli
from tinyllama_mcore.config.deepspeed.keys import KEYS, TAKEN
from tinyllama_mcore.config.deepspeed.kinds import BLOCK, NOTHING, Effect
from tinyllama_mcore.config.errors import ConfigError
from tinyllama_mcore.config.rules import legality

STAGES = ("0", "1", "2", "3", "fsdp")
ZERO = STAGES[:4]
HERE = "<home>"
"""Stands in a value for the directory of the run."""
Document = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Trial:
    """How a key is tried."""

    value: Any
    """Not DeepSpeed's default, but where only one value is legal."""
    stages: tuple[str, ...] = ZERO
    """Where it is taken; elsewhere it is refused."""
    beside: Mapping[str, Any] = field(default_factory=dict)
    """Dotted path -> what has to stand in the JSON for the key to do anything, in the run without the key too."""
    needs: Mapping[str, Any] = field(default_factory=dict)
    """The same, of what moves no number: in the run with the key alone."""
    recipe: Mapping[str, Any] = field(default_factory=dict)
    """Dotted path -> what the recipe of the run without the key says in its place."""
    together: str = "a"
    """Keys of one letter do not touch each other and are tried together."""


def trial(value: Any, stages: tuple[str, ...] = ZERO, together: str = "a", **more: Any) -> Trial:  # noqa: ANN401
    """A row of TRIALS."""
    return Trial(value=value, stages=stages, together=together, **more)


SOME = ("1", "2", "3")
BF16 = {"bf16.enabled": True}
ALONE = {"zero_optimization.reduce_scatter": False}
TENSORBOARD = {"tensorboard.enabled": True, "tensorboard.output_path": HERE}
CSV = {"csv_monitor.enabled": True, "csv_monitor.output_path": HERE}
WANDB = find_spec("wandb") is not None and find_spec("wandb").origin is not None  # type: ignore[union-attr]
ADAMW = {"optimizer.type": "AdamW"}
OPTIMIZER, PARAM = ("zero_optimization.offload_optimizer", "zero_optimization.offload_param")
ON_CPU = {f"{OPTIMIZER}.device": "cpu"}
PARAM_ON_CPU = {f"{PARAM}.device": "cpu"}
HYBRID = {"fsdp.sharding_strategy": "hybrid_shard", "fsdp.hybrid_shard_size": 2}

_ZERO_KEYS: dict[str, Trial] = {
    "stage": trial(2, ("0",), "z"),  # the other stages are in test_curves.py
    "overlap_comm": trial(True, ("2", "3"), "b"),
    "contiguous_gradients": trial(False),
    "reduce_scatter": trial(False, together="r"),
    "reduce_bucket_size": trial(7, together="e"),
    "allgather_partitions": trial(False),
    "allgather_bucket_size": trial(2),
    "use_multi_rank_bucket_allreduce": trial(False, together="b"),
    "round_robin_gradients": trial(True, together="e"),
    "parameter_alignment": trial(True, together="e"),
    "sub_group_size": trial(100, together="b"),
    "stage3_prefetch_bucket_size": trial(0),
    "stage3_param_persistence_threshold": trial(0, together="r"),
    "stage3_model_persistence_threshold": trial(5, together="e"),
    "stage3_max_live_parameters": trial(0, together="e"),
    "stage3_max_reuse_distance": trial(0, together="e"),
    "stage3_use_all_reduce_for_fetch_params": trial(True),
    "stage3_allgather_sequential": trial(True, together="e"),
    "compute_grad_norm": trial(True),
    "ignore_unused_parameters": trial(False),
    "memory_efficient_linear": trial(False),
    "override_module_apply": trial(False),
    "log_trace_cache_warnings": trial(True),
    "enable_sanity_checks": trial(True, together="e"),
    "offload_optimizer.device": trial("cpu", SOME, "h"),
    **{
        f"offload_optimizer.{key}": trial(value, SOME, "i", beside=ON_CPU)
        for key, value in {
            "pin_memory": False,
            "buffer_count": 2,
            "fast_init": True,
            "pipeline_read": True,
            "pipeline_write": True,
        }.items()
    },
    "offload_param.device": trial("cpu", ("3",), "h"),
    **{
        f"offload_param.{key}": trial(value, ("3",), "i", beside=PARAM_ON_CPU)
        for key, value in {"pin_memory": False, "buffer_count": 2, "buffer_size": 1000, "max_in_cpu": 0}.items()
    },
}

TRIALS: dict[str, Trial] = {
    "train_batch_size": trial(16, STAGES, "r", recipe={"batch.global_batch_size": 16}),
    "train_micro_batch_size_per_gpu": trial(1, STAGES, "r", recipe={"batch.micro_batch_size": 1}),
    "gradient_accumulation_steps": trial(2, STAGES, "b"),  # it follows from the two, and has to be right
    "gradient_clipping": trial(0.5, STAGES, "r", recipe={"optimizer.clip_grad": 0.5}),
    "bf16.enabled": trial(True, (*SOME, "fsdp"), "t", recipe={"precision": "bf16"}),
    "bf16.bf16_master_weights_and_grads": trial(False, STAGES),
    "bf16.bf16_optimizer_states": trial(False, STAGES),
    "data_types.grad_accum_dtype": trial("bf16", SOME, "v", beside=BF16),
    "communication_data_type": trial("bf16", together="w"),
    "gradient_allreduce_op": trial("mean"),
    "prescale_gradients": trial(True, together="x", beside=ALONE),
    "gradient_predivide_factor": trial(3.0, together="y", beside=ALONE),
    "zero_allow_untested_optimizer": trial(True),
    "zero_force_ds_cpu_optimizer": trial(False),
    "steps_per_print": trial(1),
    "memory_breakdown": trial(True, together="b"),
    "dump_state": trial(True),
    "disable_python_gc": trial(True),
    "log_level": trial("info"),
    "timers": trial({}),
    "optimizer.type": trial("Adam", STAGES),
    "optimizer.params.lr": trial(2e-3, STAGES, "r", needs=ADAMW, recipe={"optimizer.lr": 2e-3}),
    "optimizer.params.betas": trial(
        *([0.8, 0.9], STAGES, "r"), needs=ADAMW, recipe={"optimizer.adam_beta1": 0.8, "optimizer.adam_beta2": 0.9}
    ),
    "optimizer.params.eps": trial(1e-6, STAGES, "r", needs=ADAMW, recipe={"optimizer.adam_eps": 1e-6}),
    "optimizer.params.weight_decay": trial(0.3, STAGES, "r", needs=ADAMW, recipe={"optimizer.weight_decay": 0.3}),
    **{
        f"optimizer.params.{key}": trial(value, STAGES, "r", needs=ADAMW)
        for key, value in {"torch_adam": True, "adam_w_mode": True, "bias_correction": True, "amsgrad": False}.items()
    },
    **{f"zero_optimization.{key}": row for key, row in _ZERO_KEYS.items()},
    "fsdp.sharding_strategy": trial("shard_grad_op", ("fsdp",), "b"),
    "fsdp.hybrid_shard_size": trial(1, ("fsdp",), "e", beside=HYBRID),
    "fsdp.cpu_offload": trial(True, ("fsdp",)),
    "fsdp.sync_each_batch": trial(True, ("fsdp",), "b"),
    "tensorboard.enabled": trial(True, STAGES, "e", needs={"tensorboard.output_path": HERE}),
    "tensorboard.output_path": trial(f"{HERE}/b", STAGES, "b", needs=TENSORBOARD),
    "tensorboard.job_name": trial("c", STAGES, "b", needs=TENSORBOARD),
    "csv_monitor.enabled": trial(True, STAGES, "e", needs={"csv_monitor.output_path": HERE}),
    "csv_monitor.output_path": trial(f"{HERE}/b", STAGES, "b", needs=CSV),
    "csv_monitor.job_name": trial("c", STAGES, "b", needs=CSV),
    "wandb.enabled": trial(WANDB, STAGES, "r"),  # tests/training/test_monitors.py is about what it writes
    **{f"wandb.{key}": trial("w", STAGES, "r") for key in ("group", "team", "project")},
}
"""Dotted path of every key -> how it is tried."""


def put(document: Document, values: Mapping[str, Any]) -> Document:
    """A copy of the document with the values at their dotted paths."""
    made = copy.deepcopy(document)
    for path, value in values.items():
        *blocks, key = path.split(".")
        inside = made
        for block in blocks:
            inside = inside.setdefault(block, {})
        inside[key] = value
    return made


def base(stage: str) -> Document:
    """The JSON without any key that is tried, small enough that ZeRO-3 partitions most and keeps some."""
    if stage == "fsdp":
        return {"fsdp": {}}
    zero: Document = {"stage": int(stage), "reduce_bucket_size": 50_000}
    if stage == "3":
        zero |= {"stage3_param_persistence_threshold": 100, "stage3_prefetch_bucket_size": 10_000}
    return {"zero_optimization": zero}


@dataclass(frozen=True, kw_only=True)
class Case:
    """Keys that are tried in one run."""

    stage: str
    paths: tuple[str, ...]

    @property
    def name(self) -> str:
        """For directories and messages."""
        return f"{self.stage}-{'+'.join(self.paths)}"[:100]

    @property
    def without(self) -> tuple[Document, Document]:
        """JSON and recipe of the run without the keys."""
        document, recipe = base(self.stage), copy.deepcopy(RECIPE)
        recipe["model"]["num_layers"], recipe["batch"]["train_iters"] = 2, 4
        for path in self.paths:
            document = put(document, TRIALS[path].beside)
            recipe = put(recipe, TRIALS[path].recipe)
        return document, recipe

    @property
    def with_them(self) -> tuple[Document, Document]:
        """JSON and recipe of the run with the keys; what the JSON says of the recipe, the recipe says otherwise."""
        _, recipe = dataclasses.replace(self, paths=()).without
        document, _ = self.without
        for path in self.paths:
            document = put(document, TRIALS[path].needs)
        return put(document, {path: TRIALS[path].value for path in self.paths}), recipe


def argv(made: tuple[Document, Document], home: Path, corpus: list[str]) -> list[str]:
    """The command line, with its files written."""
    home.mkdir(parents=True, exist_ok=True)
    document = json.loads(json.dumps(made[0]).replace(HERE, str(home)))
    config, recipe = write_json(home / "ds.json", document), write_json(home / "recipe.json", made[1])
    return ["--deepspeed_config", config, "--recipe", recipe, "--data-path", *corpus]


def kept(home: Path, name: str) -> tuple[str, ...]:
    """Flags that say where a run is kept."""
    return ("--save", str(home / name), "--metrics-file", str(home / f"{name}.jsonl"))


def whole(made: tuple[Document, Document], home: Path, corpus: list[str]) -> many.Run:
    """A run of four iterations that is saved at the second."""
    return home.name, [*argv(made, home / "whole", corpus), *kept(home, "whole"), "--save-interval", "2"]


def half(made: tuple[Document, Document], home: Path, corpus: list[str]) -> many.Run:
    """The run that goes on from there."""
    load = ("--load", str(home / "whole"), "--iteration", "2")
    return f"{home.name}, gone on", [*argv(made, home / "half", corpus), *kept(home, "half"), *load]


def differences(one: Path, other: Path, effect: Effect) -> list[str]:
    """What two runs, each a metrics file and a directory of checkpoints, are further apart in than the effect."""
    found = []
    records = [ranks.metrics(path.with_suffix(".jsonl"))[-2:] for path in (one, other)]
    for a, b in zip(*records, strict=True):
        loss, norm = abs(a["lm_loss"] - b["lm_loss"]), abs(a["grad_norm"] - b["grad_norm"]) / b["grad_norm"]
        if loss > effect.loss or norm > effect.norm:
            found.append(f"iteration {a['iteration']}: loss {loss:.1e}, norm {norm:.1e} apart")
    states = [CheckpointReader(layout.find(path)) for path in (one, other)]
    apart = max(
        float((states[0].tensor(key) - states[1].tensor(key)).abs().max())
        for key in states[0].keys()  # noqa: SIM118  not a dictionary
        if not key.startswith("probe")
    )
    return [*found, f"state {apart:.1e} apart"] if apart > effect.state else found


def failures(cases: Iterable[Case], home: Path, corpus: list[str]) -> dict[Case, str]:
    """Train every case with its keys and without, what several share once, and say what is wrong with which."""
    cases, runs, homes = list(cases), [], {}
    for case in cases:
        for made in (case.without, case.with_them):
            key = json.dumps(made)
            if key not in homes:
                homes[key] = home / f"run{len(homes)}"
                runs.append(whole(made, homes[key], corpus))
        runs.append(half(case.with_them, homes[json.dumps(case.with_them)], corpus))
    failed, wrong = many.train(runs, home), {}
    for case in cases:
        mine, reference = (homes[json.dumps(made)] for made in (case.with_them, case.without))
        names = (mine.name, f"{mine.name}, gone on", reference.name)
        if told := [failed[name] for name in names if name in failed]:
            wrong[case] = told[0]
            continue
        widest = max((KEYS[path].effect for path in case.paths), key=lambda effect: effect.state)
        apart = differences(mine / "whole", reference / "whole", widest)
        apart += [f"gone on, {text}" for text in differences(mine / "half", mine / "whole", NOTHING)]
        if apart:
            wrong[case] = "; ".join(apart)
    return wrong


def paths_of(stage: str) -> list[str]:
    """The keys that a stage takes."""
    return [path for path, row in TRIALS.items() if stage in row.stages]


def test_no_key_is_left_untried() -> None:
    """A new row of the table needs a row here; a block is tried by its keys, an empty one by itself."""
    filled = {key.block for key in TAKEN}
    assert set(TRIALS) == {key.path for key in TAKEN if key.kind is not BLOCK or key.path not in filled}


@pytest.mark.parametrize("stage", STAGES)
def test_a_key_is_taken_where_it_is_tried_and_nowhere_else(stage: str, tmp_path: Path) -> None:
    """By the rules, before anything starts."""
    for path, row in TRIALS.items():
        case = Case(stage=stage, paths=(path,))
        command = argv(case.with_them, tmp_path, [])[:-1]
        try:
            legality.check(cli.parse(command, world_size=2, has_gpu=lambda: False), has_gpu=lambda: False)
            taken = True
        except ConfigError:
            taken = False
        assert taken == (stage in row.stages) or path == "zero_optimization.stage", (path, stage)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("stage", STAGES)
def test_keys_together(stage: str, corpus: list[str], tmp_path: Path) -> None:
    """Keys that do not touch each other in one run; the guilty one is named by running each alone."""
    letters = sorted({TRIALS[path].together for path in paths_of(stage)})
    cases = [
        Case(stage=stage, paths=tuple(path for path in paths_of(stage) if TRIALS[path].together == letter))
        for letter in letters
    ]
    wrong = failures(cases, tmp_path / "together", corpus)
    if wrong:
        alone = [Case(stage=stage, paths=(path,)) for case in wrong for path in case.paths]
        wrong = failures(alone, tmp_path / "alone", corpus) or wrong
    assert not wrong, "\n".join(f"{case.name}: {text}" for case, text in wrong.items())


@pytest.mark.slow
@pytest.mark.layouts
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("stage", STAGES)
def test_every_key_by_itself(stage: str, corpus: list[str], tmp_path: Path) -> None:
    """The whole table."""
    wrong = failures([Case(stage=stage, paths=(path,)) for path in paths_of(stage)], tmp_path, corpus)
    assert not wrong, "\n".join(f"{case.name}: {text}" for case, text in wrong.items())
