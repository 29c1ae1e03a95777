"""A run that goes on under another recipe than its checkpoint's: every value of a run is known to matter or not."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tinyllama_mcore.checkpoint import changed_recipe
from tinyllama_mcore.checkpoint.manifest import Checkpoint, Manifest, Provenance, RunState
from tinyllama_mcore.config import cli, records
from tinyllama_mcore.config.errors import ConfigError
from tinyllama_mcore.config.schema import RunConfig
from tinyllama_mcore.optim.schedule import learning_rate
from tinyllama_mcore.sampling.sample_order import Dataset, SampleOrder

ZERO1 = str(Path(__file__).parents[2] / "ds_configs/zero1.json")
AFTER_WARM_UP = 40
"""An iteration of the debug recipe, which warms up for 10 and has 100."""

ELSEWHERE = {
    "model": "compatibility.refuse_other_model",
    "data": "compatibility.blend_history: the order of samples",
    "seed": "compatibility.blend_history",
    "batch.seq_length": "compatibility.blend_history",
    "batch.micro_batch_size": "speed alone",
    "layout": "a run means the same whatever its layout",
    "sharding": "how it is sharded",
    "checkpoint": "where it is kept",
    "loop": "when it tells, evaluates and leaves",
    "recipe": "a name: its values are compared",
    "attention_backend": "speed, and the rounding of a kernel",
    "compile": "speed",
    "deterministic_mode": "speed, and the rounding of a kernel",
    "cuda_graph": "speed",
    "make_vocab_size_divisible_by": "compatibility.refuse_other_model: rows of the embedding",
    "tp_comm_overlap": "speed, and the rounding of a sum",
    "swiglu_backend": "speed, and the rounding of a kernel",
    "transformer_impl": "speed, and the rounding of a kernel",
    "notes": "words",
}
"""Values that no table of changes has to tell -> why not. A block stands for those of its fields that EFFECTS lacks."""

OTHERS: dict[tuple[str, str], Any] = {
    ("optimizer", "lr"): 5e-3,
    ("optimizer", "min_lr"): 1e-4,
    ("optimizer", "lr_warmup_iters"): 20,
    ("optimizer", "lr_decay_style"): "linear",
    ("optimizer", "lr_decay_iters"): 80,
    ("optimizer", "lr_wsd_decay_style"): "linear",
    ("optimizer", "lr_wsd_decay_iters"): 65,
    ("optimizer", "lr_index"): "micro_iteration",
    ("batch", "train_iters"): 200,
    ("batch", "global_batch_size"): 32,
    ("batch", "rampup_batch_size"): (4, 4, 100),
    ("optimizer", "adam_beta1"): 0.8,
    ("optimizer", "adam_beta2"): 0.99,
    ("optimizer", "adam_eps"): 1e-6,
    ("optimizer", "weight_decay"): 0.2,
    ("optimizer", "weight_decay_on"): "matrices",
    ("optimizer", "clip_grad"): 0.5,
    ("sharding", "precision"): "bf16",
    ("sharding", "grad_accum_dtype"): "bf16",
    ("float8", "recipe"): "rowwise_with_gw_hp",
    ("float8", "num_layers_at_start_in_bf16"): 1,
    ("float8", "num_layers_at_end_in_bf16"): 1,
    ("loop", "loss_spike_deviations"): 6.0,
    ("loop", "max_skipped_in_a_row"): 3,
}
"""Another value than the debug recipe's for each row of the table."""
WSD = ("--lr-decay-style", "WSD", "--lr-wsd-decay-iters", "75")
"""A decay under way at AFTER_WARM_UP."""


TRAINED = Provenance(
    versions={},
    order=SampleOrder(
        seed=1234,
        seq_length=128,
        split=(99.0, 1.0, 0.0),
        tokenizer_sha256="0" * 64,
        inter_document_masking=False,
        weights=(1.0,),
        datasets=(Dataset(prefix="data", fingerprint="0", token_sample="0"),),
    ),
)
"""Of a run's checkpoint; an import has no order of samples."""


def debug_run(*flags: str) -> RunConfig:
    """The debug recipe, kept."""
    argv = ["--deepspeed_config", ZERO1, "--recipe", "tinyllama-debug", "--save", "kept", *flags]
    return cli.parse(argv, world_size=1, has_gpu=lambda: False)


def saved(run: RunConfig, iteration: int) -> Manifest:
    """What a checkpoint of the run says of itself, as JSON gives it back."""
    plain = json.loads(json.dumps(records.to_plain(run)))
    state = RunState(iteration=iteration)
    return Manifest(state=state, run=plain, provenance=TRAINED, parameters=1, kinds=("model",))


def kept_in(manifest: Manifest) -> Checkpoint:
    """A checkpoint of which nothing but its manifest is looked at."""
    return Checkpoint(Path("kept"), manifest)


def before_change(row: tuple[str, str], *flags: str) -> RunConfig:
    """The debug run whose checkpoint goes on with another value of the row; one with a decay of WSD's for its own."""
    return debug_run(*(WSD if "wsd" in row[1] else ()), *flags)


def with_value(run: RunConfig, row: tuple[str, str], value: object) -> RunConfig:
    """The run with one value of a block."""
    block, name = row
    return replace(run, **{block: replace(getattr(run, block), **{name: value})})


def values(run: RunConfig) -> Iterator[str]:
    """`block.field` of every value of a run."""
    for field in dataclasses.fields(run):
        block = getattr(run, field.name)
        if dataclasses.is_dataclass(block):
            yield from (f"{field.name}.{inner.name}" for inner in dataclasses.fields(block))
        else:
            yield field.name


def test_every_value_of_a_run_is_told_or_need_not_be() -> None:
    """A new field of RunConfig needs a row, in the table or in `ELSEWHERE`."""
    told = {".".join(row) for row in changed_recipe.EFFECTS}
    left = [name for name in values(debug_run()) if name not in told]
    assert [name for name in left if name not in ELSEWHERE and name.partition(".")[0] not in ELSEWHERE] == []
    assert not [name for name in left if name.startswith("optimizer.")]
    assert OTHERS.keys() == changed_recipe.EFFECTS.keys()


@pytest.mark.parametrize("row", changed_recipe.EFFECTS, ids=".".join)
def test_another_value_is_told_and_another_schedule_refused(row: tuple[str, str]) -> None:
    """Alone in the table, with both values and what it does; the rate of the next iteration below it."""
    before = before_change(row)
    manifest, after = saved(before, AFTER_WARM_UP), with_value(before, row, OTHERS[row])
    (change,) = changed_recipe.changes(manifest, after)
    assert (change.name, change.here) == (row[1], OTHERS[row])
    head, told, rate, *_ = changed_recipe.lines(manifest, after)
    assert head.split()[0] == "changed"
    assert told.split()[0] == row[1] and told.endswith(changed_recipe.EFFECTS[row])
    rates = [learning_rate(AFTER_WARM_UP, run.optimizer, run.batch.train_iters) for run in (before, after)]
    assert rate.split()[:3] == ["rate", f"{rates[0]:.3e}", f"{rates[1]:.3e}"]
    if row in changed_recipe.SCHEDULE:
        with pytest.raises(
            ConfigError,
            match=f"{row[1]} is .* in the checkpoint and .* in this command.*41.*{rates[0]:.3e}.*{rates[1]:.3e}",
        ):
            changed_recipe.refuse_change(kept_in(manifest), after)
        told_to = with_value(after, ("checkpoint", "override_schedule"), True)
        changed_recipe.refuse_change(kept_in(manifest), told_to)
    else:
        changed_recipe.refuse_change(kept_in(manifest), after)


def test_the_same_recipe_is_not_told() -> None:
    """No table, no refusal."""
    assert list(changed_recipe.lines(saved(debug_run(), 7), debug_run())) == []
    changed_recipe.refuse_change(kept_in(saved(debug_run(), 7)), debug_run())


@pytest.mark.parametrize(
    ("row", "value", "refused"),
    [
        (("batch", "train_iters"), 200, False),  # the warm-up so far is the same, and the next rate too
        (("optimizer", "min_lr"), 1e-4, False),
        (("optimizer", "lr"), 4.1e-3, True),  # a little, but the warm-up so far would have been another
        (("optimizer", "lr_warmup_iters"), 11, True),
    ],
    ids=str,
)
def test_in_warm_up_what_is_to_come_may_change(row: tuple[str, str], value: float, refused: bool) -> None:
    """Only what was lived counts, and the next step."""
    manifest, after = saved(debug_run(), 5), with_value(debug_run(), row, value)
    if refused:
        with pytest.raises(ConfigError, match=row[1]):
            changed_recipe.refuse_change(kept_in(manifest), after)
    else:
        changed_recipe.refuse_change(kept_in(manifest), after)


@pytest.mark.parametrize(("lr", "refused"), [(1.4e-2, False), (1.6e-2, True), (7e-3, False), (6e-3, True)])
def test_a_jump_is_refused_even_where_nothing_lived_differs(lr: float, refused: bool) -> None:
    """By a factor of 1.5, up or down: iteration 1 of a warm-up from zero has the rate 0 under any schedule."""
    before = with_value(debug_run(), ("optimizer", "lr"), 1e-2)
    manifest, after = saved(before, 1), with_value(before, ("optimizer", "lr"), lr)
    if refused:
        with pytest.raises(ConfigError, match="next iteration, 2, has"):
            changed_recipe.refuse_change(kept_in(manifest), after)
    else:
        changed_recipe.refuse_change(kept_in(manifest), after)


@pytest.mark.parametrize("row", changed_recipe.SCHEDULE, ids=".".join)
def test_the_checkpoints_schedule_is_taken_whole(row: tuple[str, str]) -> None:
    """Every rate of it, beyond its end too; a note says what was taken, and another time says nothing."""
    before = before_change(row)
    manifest = saved(before, AFTER_WARM_UP)
    flagged = before_change(row, "--use-checkpoint-opt_param-scheduler", "--train-iters", "150")
    asked = with_value(flagged, row, OTHERS[row])
    kept = changed_recipe.with_kept_schedule(asked, manifest)
    changed_recipe.refuse_change(kept_in(manifest), kept)
    for iteration in range(200):
        rate = learning_rate(iteration, kept.optimizer, kept.batch.train_iters)
        assert rate == learning_rate(iteration, before.optimizer, before.batch.train_iters)
    assert kept.batch.train_iters == asked.batch.train_iters
    assert kept.notes[-1].startswith("--use-checkpoint-opt_param-scheduler: ")
    assert changed_recipe.with_kept_schedule(kept, manifest) == kept


def test_a_long_run_is_compared_quickly_and_to_its_last_iteration() -> None:
    """A schedule that differs in the last iteration trained alone."""
    before = debug_run("--train-iters", "1000000")
    manifest = saved(with_value(before, ("optimizer", "lr_decay_iters"), 700_000), 700_001)
    changed_recipe.refuse_change(kept_in(manifest), with_value(before, ("optimizer", "lr_decay_iters"), 700_000))
    with pytest.raises(ConfigError, match="lr_decay_iters is 700000 in the checkpoint and 700001 in this command"):
        changed_recipe.refuse_change(kept_in(manifest), with_value(before, ("optimizer", "lr_decay_iters"), 700_001))


@pytest.mark.parametrize("before", [("--lr-decay-style", "constant"), (*WSD[:-1], "30")], ids=["constant", "WSD"])
@pytest.mark.parametrize("decay", [20, 55])
def test_a_decay_begins_at_a_stable_checkpoint(before: tuple[str, ...], decay: int) -> None:
    """No rate that was lived differs, so nothing has to be said; the table tells where the rate begins to fall."""
    manifest = saved(debug_run(*before), AFTER_WARM_UP)
    after = debug_run(*WSD[:-1], str(decay), "--train-iters", str(AFTER_WARM_UP + decay))
    changed_recipe.refuse_change(kept_in(manifest), after)
    rows = [line.split() for line in changed_recipe.lines(manifest, after)]
    assert [row[0] for row in rows][-2:] == ["rate", "rate"]
    assert rows[-2][1:3] == ["4.000e-03", "4.000e-03"]
    rate = learning_rate(AFTER_WARM_UP + 1, after.optimizer, after.batch.train_iters)
    assert rows[-1][1:3] == ["4.000e-03", f"{rate:.3e}"] and rate < 4e-3
    assert " ".join(rows[-1][3:]) == f"of iteration {AFTER_WARM_UP + 2}, the first that differs"


@pytest.mark.parametrize(
    "flags",
    [
        (*WSD[:-1], "61", "--train-iters", "100"),  # begins an iteration before the checkpoint's last
        (*WSD[:-1], "20", "--train-iters", "60", "--lr", "4.1e-3"),
        (*WSD[:-1], "20", "--train-iters", "60", "--lr-warmup-iters", "11"),
        ("--lr-decay-style", "linear"),
    ],
    ids=" ".join,
)
def test_a_decay_that_would_have_begun_before_is_refused(flags: tuple[str, ...]) -> None:
    """One lived rate that differs is enough, in warm-up as well as at the end."""
    manifest = saved(debug_run("--lr-decay-style", "constant"), AFTER_WARM_UP + 1)
    with pytest.raises(ConfigError, match="was trained with another learning-rate schedule: lr"):
        changed_recipe.refuse_change(kept_in(manifest), debug_run(*flags))


@pytest.mark.parametrize(
    "flags",
    [
        ("--lr-warmup-iters", "99"),
        ("--lr-warmup-iters", "101"),
        ("--lr-decay-iters", "500000", *WSD[:-1], "9"),  # over, up to the same rate, long before the checkpoint
        ("--lr-decay-iters", "500000", *WSD[:-1], "10", "--lr-wsd-decay-style", "cosine"),
        ("--lr-decay-iters", "500001", *WSD[:-1], "11"),
    ],
    ids=" ".join,
)
def test_in_a_long_run_a_difference_of_few_iterations_is_found(flags: tuple[str, ...]) -> None:
    """Schedules that agree in all but ten of a million iterations already trained."""
    wsd = (*WSD[:-1], "10", "--lr-decay-iters", "500000", "--lr-warmup-iters", "100", "--train-iters", "1000000")
    manifest = saved(debug_run(*wsd), 900_000)
    changed_recipe.refuse_change(kept_in(manifest), debug_run(*wsd, "--train-iters", "1000001"))
    with pytest.raises(ConfigError, match=r"Iteration [\d,]+ had the rate"):
        changed_recipe.refuse_change(kept_in(manifest), debug_run(*wsd, *flags))


def test_imported_weights_have_no_recipe() -> None:
    """Nothing was lived: any schedule goes."""
    manifest = replace(saved(debug_run(), 0), provenance=Provenance(versions={}, imported_from="hf"))
    after = with_value(debug_run(), ("optimizer", "lr"), 1.0)
    changed_recipe.refuse_change(kept_in(manifest), after)
    assert list(changed_recipe.lines(manifest, after)) == []


def test_a_run_that_ends_before_its_checkpoint(tmp_path: Path) -> None:
    """Told as such, before anything of its schedule; one that ends there is finished."""
    manifest = saved(debug_run(), AFTER_WARM_UP)
    with pytest.raises(ConfigError, match=r"--train-iters 30 is below iteration 40 of .*nothing is left to do"):
        changed_recipe.refuse_change(Checkpoint(tmp_path / "iter_0000040", manifest), debug_run("--train-iters", "30"))
    assert changed_recipe.nothing_left(debug_run("--train-iters", "41"), Checkpoint(tmp_path, manifest)) is None
    told = changed_recipe.nothing_left(debug_run("--train-iters", "40"), Checkpoint(tmp_path, manifest))
    assert told is not None and "--train-iters" in told and changed_recipe.KEEP in told
