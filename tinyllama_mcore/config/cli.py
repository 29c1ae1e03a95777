"""argv + DeepSpeed JSON + recipe -> RunConfig: where each value comes from, and what happens if two places give it.

The recipe fills what nobody gives: the one that is named, else that of the checkpoint that the run resumes from. The
JSON or the command line gives; two different numbers for one value are refused.
Neighbours: `flags` reads argv, `deepspeed` the JSON, `recipes` the recipe; `compose` puts the run together, `rules`
judges it.
"""

from __future__ import annotations

import argparse
import math
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from tinyllama_mcore.config import flags, packages, recipes
from tinyllama_mcore.config.batch_sizes import BatchSizes
from tinyllama_mcore.config.beginning import beginning
from tinyllama_mcore.config.compose import BLOCKS, Changes, assembled, clashes
from tinyllama_mcore.config.data_config import Blend, DataConfig, LaterBlend
from tinyllama_mcore.config.deepspeed.document import Document
from tinyllama_mcore.config.errors import ConfigError
from tinyllama_mcore.config.flag_values import whole
from tinyllama_mcore.config.given import data_of
from tinyllama_mcore.config.loop_config import CheckpointConfig
from tinyllama_mcore.config.rules.ramp import wrong_ramp
from tinyllama_mcore.config.schema import BatchConfig, LayoutConfig, RunConfig


def parse(argv: Sequence[str], *, world_size: int, has_gpu: Callable[[], bool]) -> RunConfig:
    """The run that a command line asks for. Imports no torch; `rules.legality.check` comes next.

    Args:
        argv: the arguments without the program's name.
        world_size: processes in the job, as the launcher says; --world-size, which --dry-run takes, says otherwise.
        has_gpu: whether there is a GPU; called only where no recipe is named.

    Returns:
        The run. `model.vocab_size` is None where the recipe leaves it to the tokenizer, `data.blend` is () where
        no data is named, and `notes` says what the program chose by itself.

    Raises:
        ConfigError: a flag, a key of the JSON or of a recipe file is wrong, or two places give different numbers.
    """
    given = flags.read(argv)
    document = _document(given.deepspeed_config)
    changes = {name: _present(given, kind) for name, kind in BLOCKS.items()}
    _refuse_clashes(changes, document)
    checkpoint, load_note = beginning(CheckpointConfig(**changes["checkpoint"]))
    name, recipe, recipe_note = _recipe(given.recipe, checkpoint, has_gpu)
    layout = LayoutConfig(**{"world_size": world_size} | changes["layout"])
    fixed = {field: value for field, (_, value) in document.given().items()}
    batch, batch_note = _batch(given.train_tokens, fixed | changes["batch"], recipe.batch, layout)
    notes = (recipe_note, batch_note, load_note, _unsaved(given), *flags.given_again(given))
    changes |= {
        "checkpoint": vars(checkpoint),
        "layout": vars(layout),
        "batch": vars(batch),
        "data": _data(changes["data"], batch.sizes),
    }
    own = _passes(given, layout) | _present(given, RunConfig)
    return assembled(name, recipe, document, changes | own | {"notes": tuple(filter(None, notes))})


def _document(source: str | None) -> Document:
    """The JSON. ConfigError where none is named."""
    if source is None:
        raise ConfigError(
            "--deepspeed_config is missing: it names the DeepSpeed JSON that says how the run is sharded; start with "
            "--deepspeed_config zero1"
        )
    return Document.read(source)


def _refuse_clashes(changes: Changes, document: Document) -> None:
    """ConfigError where the JSON gives a value, and the command line another one."""
    for _, field, asked, key, fixed in clashes(changes, document):
        flag = next(row.name for row in flags.flags() if row.target == field)
        if isinstance(fixed, str):
            raise ConfigError(
                f"{flag} {asked} on the command line, but the {key} block of {document.source} says {fixed}: the two "
                "must agree; leave one of them out"
            )
        raise ConfigError(
            f"{flag} {asked:g} on the command line, but {key} is {fixed:g} in {document.source}: the two must agree; "
            f'leave {flag} out, or write "auto" in the JSON'
        )


def _passes(flag: argparse.Namespace, layout: LayoutConfig) -> dict[str, str]:
    """Megatron's own passes where fused layers lack what is asked for; else what the schema says."""
    lacks = flag.compile or layout.recompute_granularity == "selective"
    return {"transformer_impl": "local"} if lacks else {}


def exit_code(program: Callable[[], int | None], *, speak: bool = True, speak_of_packages: bool = True) -> int:
    """Run a program to its exit code: its own (None is 0), or 2 with one line on stderr at the user's mistake.

    Args:
        program: the program; its ConfigError is the user's mistake, an absent package too; any other exception is
            ours and passes.
        speak: False on all ranks but one, so that a job says it once.
        speak_of_packages: False on all ranks of a host but one: each host has packages of its own.
    """
    try:
        code = program() or 0
        sys.stdout.flush()
    except ConfigError as mistake:
        if speak:
            print(f"error: {mistake}", file=sys.stderr, flush=True)
        return 2
    except ModuleNotFoundError as error:
        if (absent := packages.explained(error)) is None:
            raise
        if speak_of_packages:
            print(f"error: {absent}", file=sys.stderr, flush=True)
        return 2
    except BrokenPipeError:  # `... | head` has seen enough; Python would write the rest again as it ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    return code


def _present(given: argparse.Namespace, kind: type) -> dict[str, Any]:
    """The flags that were given and go into fields of the dataclass, by field."""
    values = vars(given)  # a tool that takes some of the flags has no others
    rows = (flag for flag in flags.flags() if flag.kind is kind and values.get(flag.dest) is not None)
    return {flag.target: values[flag.dest] for flag in rows}


def _recipe(
    named: str | None, checkpoint: CheckpointConfig, has_gpu: Callable[[], bool]
) -> tuple[str, recipes.Recipe, str | None]:
    """The recipe with its name, and where it was taken from where nobody named it."""
    if named is not None:
        return named, recipes.load(named), None
    kept = checkpoint.load and recipes.of_checkpoint(checkpoint.load, checkpoint.iteration)
    if kept:
        name, recipe, manifest = kept
        return name, recipe, f"no --recipe given: the numbers of {manifest} ({name}), and what this command gives"
    name, reason = ("tinyllama-1.1b", "there is a GPU") if has_gpu() else ("tinyllama-debug", "there is no GPU here")
    return name, recipes.load(name), f"no --recipe given: {name}, as {reason}"


def _batch(
    train_tokens: int | None, given: Mapping[str, Any], recipe: BatchConfig, layout: LayoutConfig
) -> tuple[BatchConfig, str | None]:
    """The batch, and a note where a number of the recipe was changed or now means something else."""
    global_batch_size = given.get("global_batch_size", recipe.global_batch_size)
    ramp = tuple(given.get("rampup_batch_size") or ()) or recipe.rampup_batch_size
    every_size = math.gcd(global_batch_size, *(ramp or ())[:2])
    batch = replace(
        recipe,
        seq_length=given.get("seq_length", recipe.seq_length),
        global_batch_size=global_batch_size,
        rampup_batch_size=ramp,
        micro_batch_size=given.get("micro_batch_size")
        or _largest_micro_batch(recipe.micro_batch_size, every_size, layout.data_parallel_size),
    )
    if problem := wrong_ramp(batch):  # here, as the length in tokens follows from it
        raise ConfigError(problem)
    batch = replace(batch, train_iters=_train_iters(given.get("train_iters"), train_tokens, batch))
    notes = []
    if "micro_batch_size" not in given and batch.micro_batch_size != recipe.micro_batch_size:
        notes.append(
            f"micro batch {batch.micro_batch_size} in place of the recipe's {recipe.micro_batch_size}: the largest "
            f"that divides {every_size} sequences over {layout.data_parallel_size} data-parallel ranks"
        )
    length_given = "train_iters" in given or train_tokens is not None
    if not length_given and batch.train_tokens != recipe.train_tokens:
        notes.append(
            f"{batch.train_iters:,} iterations are the recipe's for {recipe.tokens_per_iteration:,} tokens each; with "
            f"{batch.tokens_per_iteration:,}{' after a ramp' * (ramp is not None)} they are {batch.train_tokens:,} "
            f"tokens, not {recipe.train_tokens:,}"
        )
    return batch, "; ".join(notes) or None


def _largest_micro_batch(most: int, global_batch_size: int, data_parallel_size: int) -> int:
    """The largest micro batch up to `most` with a whole number of accumulation steps; `most` where there is none.

    It changes only speed and memory, so a recipe's may be lowered. The global batch is part of what a run means.
    """
    per_rank, rest = divmod(global_batch_size, max(1, data_parallel_size))
    return most if rest or not per_rank else next(size for size in range(most, 0, -1) if per_rank % size == 0)


def _train_iters(train_iters: int | None, train_tokens: int | None, batch: BatchConfig) -> int:
    """Iterations in the whole run, from either view of its length; the recipe's where neither is given."""
    if train_tokens is None:
        return train_iters or batch.train_iters
    if train_iters is not None and (tokens := replace(batch, train_iters=train_iters).train_tokens) != train_tokens:
        raise ConfigError(
            f"--train-iters {train_iters} is {tokens} tokens, but "
            f"--train-tokens says {train_tokens}: the two must agree; give one of them"
        )
    iters = batch.sizes.iterations_within(train_tokens // batch.seq_length)
    below, above = (batch.sizes.samples_before(each) * batch.seq_length for each in (iters, iters + 1))
    if below != train_tokens:
        nearest = f"{below} or {above}" if below else f"{above}"
        of = "not a multiple of" if batch.rampup_batch_size is None else "no whole number of iterations: a ramp, then"
        raise ConfigError(
            f"--train-tokens {train_tokens} is {of} the {batch.tokens_per_iteration} tokens of an iteration "
            f"({batch.global_batch_size} sequences of {batch.seq_length}); nearest: {nearest}"
        )
    return iters


def data(flag: argparse.Namespace) -> DataConfig:
    """Where samples come from, by the flags of a tool that takes some of the trainer's.

    Raises:
        ConfigError: weights are missing, or two flags say what is validated on.
    """
    named = _present(flag, DataConfig)
    return data_of(DataConfig(**{"blend": (), **_data(named, None)}), given=named)


def _data(named: Mapping[str, Any], sizes: BatchSizes | None) -> dict[str, Any]:
    """Fields of the data as flags name them, with their blends read.

    `sizes`: of the run's batches, which say at what sample an iteration begins; None: later blends are left out.
    """
    read = {"blend": "--data-path", "valid_blend": "--valid-data-path"}
    fields: dict[str, Any] = {f: _blend(items, read[f]) if f in read else items for f, items in named.items()}
    later = fields.pop("later_blends", ())
    return fields if sizes is None else fields | {"later_blends": tuple(_later(items, sizes) for items in later)}


def datasets(flag: argparse.Namespace) -> tuple[tuple[str, str], ...]:
    """(flag, prefix) of every dataset that a run with these flags reads, first ones first, each prefix once.

    Raises:
        ConfigError: weights or the iteration of a later blend are missing.
    """
    first, later = data(flag), _present(flag, DataConfig).get("later_blends", ())
    blends = [
        ("--data-path", first.blend),
        *(("--data-path-from", _planned(items)[1]) for items in later),
        ("--valid-data-path", first.valid_blend),
    ]
    named: dict[str, str] = {}
    for name, blend in blends:
        for _, prefix in blend:
            named.setdefault(prefix, name)
    return tuple((name, prefix) for prefix, name in named.items())


def _later(items: Sequence[str], sizes: BatchSizes) -> LaterBlend:
    """`ITERATION` and a blend. The iteration is counted with the sizes of this run's batches, from its first."""
    iteration, blend = _planned(items)
    return LaterBlend(first_sample=sizes.samples_before(iteration), blend=blend, iteration=iteration)


def _planned(items: Sequence[str]) -> tuple[int, Blend]:
    """Iterations before a later blend, and the blend."""
    try:
        iteration, blend = whole(1)(items[0]), _blend(items[1:], f"--data-path-from {items[0]}")
    except argparse.ArgumentTypeError:
        iteration, blend = 0, ()
    if not blend:
        raise ConfigError(
            f"--data-path-from {' '.join(items)}: after how many iterations must stand first, then the datasets: "
            "--data-path-from 90000 0.5 PREFIX1 0.5 PREFIX2"
        )
    return iteration, blend


def _blend(items: Sequence[str], name: str) -> Blend:
    """`PREFIX` or `W1 PREFIX1 W2 PREFIX2 ...` as (weight, prefix) pairs."""
    if len(items) <= 1:
        return tuple((1.0, prefix) for prefix in items)
    weights, prefixes = [_as_number(item) for item in items[::2]], items[1::2]
    numbers = [weight for weight in weights if weight is not None]
    if len(numbers) != len(prefixes) or len(items) % 2:
        raise ConfigError(
            f"{name} {' '.join(items)}: with more than one dataset, a weight (its share of the samples) must stand "
            f"before each prefix: {name} 0.7 PREFIX1 0.3 PREFIX2"
        )
    return tuple(zip(numbers, prefixes, strict=True))


def _as_number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _unsaved(flag: argparse.Namespace) -> str | None:
    """The note of a run that keeps no checkpoint."""
    if flag.save is not None:
        return None
    exits = [f"--exit-{word} exits" for word in ("interval", "duration") if getattr(flag, f"exit_{word}")]
    return "; ".join(["no --save given: this run keeps no checkpoint", *(f"{each} without one" for each in exits)])
