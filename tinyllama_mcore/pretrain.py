"""The trainer's command line: reads the flags, refuses what is not legal, calls `run.train`, gives the exit code.

    tinyllama-pretrain --deepspeed_config zero1
    torchrun --nproc_per_node 8 -m tinyllama_mcore pretrain --deepspeed_config zero1
    deepspeed --module tinyllama_mcore pretrain --deepspeed_config zero1

Up to that call only the standard library is imported, so that refusals are immediate and need no torch. Exit codes: 0
done, 1 the run failed, 2 the user's mistake, reported in one message, 130 interrupted while nothing was trained, 141
nobody reads on what it prints. See docs/howto/train.md.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from tinyllama_mcore.config import cli, flags, paths, tokenizer_types
from tinyllama_mcore.config.errors import ConfigError, RankFailed, RunFailed
from tinyllama_mcore.config.rules import legality
from tinyllama_mcore.config.schema import RunConfig
from tinyllama_mcore.parallel import launch
from tinyllama_mcore.parallel.launchers import Launch, refuse_no_meeting, this_process
from tinyllama_mcore.planning import dry_run

LEAVE_AFTER_S = 3.0
"""Seconds that other ranks wait before they leave a refused run: launchers kill every rank at the first exit, and rank
0 has to have printed the reason by then."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one process of the job; returns the exit code."""
    launch.quiet_third_parties()
    with launch.interrupted_quietly():
        return as_rank(lambda place: _pretrain(sys.argv[1:] if argv is None else argv, place))


def as_rank(program: Callable[[Launch], int]) -> int:
    """The exit code of `program` in this process of a job; of a user's mistake the first rank speaks for all."""
    try:
        place = this_process()
        refuse_no_meeting(place)
    except ConfigError as mistake:  # every rank prints it: which of them is rank 0 is not known here
        print(f"error: {mistake}", file=sys.stderr, flush=True)
        return 2
    first, first_of_host = place.rank == 0, place.local_rank == 0
    code = cli.exit_code(lambda: program(place), speak=first, speak_of_packages=first_of_host)
    if code == 2 and place.rank != 0:
        time.sleep(LEAVE_AFTER_S)
    return code


def _pretrain(argv: Sequence[str], place: Launch) -> int:
    """From argv to the end of the run."""
    given = flags.read(argv)
    if given.world_size is not None and not given.dry_run:
        raise ConfigError(
            f"--world-size {given.world_size} is only for --dry-run: the number of processes of a run is the "
            "launcher's; leave it out, or add --dry-run"
        )
    config = cli.parse(argv, world_size=place.world_size, has_gpu=launch.has_gpu)
    if given.dry_run:
        return _dry_run(config, place)
    legality.check(config, **launch.DEVICE)
    from tinyllama_mcore import run  # and torch with it: the run is legal

    try:
        run.train(config)
    except RunFailed as error:
        if place.rank == 0 or isinstance(error, RankFailed):
            print(f"error: {error}", file=sys.stderr, flush=True)
        return 1
    return 0


def _dry_run(config: RunConfig, place: Launch) -> int:
    """Refuse what a start would refuse before its process group, then print what the run needs.

    Data, tokenizer and checkpoint are opened if all are on this machine; what is missing is printed. The built-in
    corpus is not prepared. With a --world-size other than this job's, GPUs are assumed.
    """
    elsewhere = config.layout.world_size != place.world_size
    missing = dry_run.absent(config, has_gpu=lambda: elsewhere or launch.has_gpu())
    changed: Iterable[str] = ()
    if config.data.blend and not missing:
        from tinyllama_mcore import run
        from tinyllama_mcore.checkpoint import changed_recipe

        config, inputs = run.open_inputs(config)
        if inputs.checkpoint is not None:
            changed = changed_recipe.lines(inputs.checkpoint.manifest, config)
    else:
        size = config.model.vocab_size or paths.SAMPLE_VOCABULARY
        if config.model.vocab_size is None:
            note = f"the size of the vocabulary is not known here; assuming {size:,}, that of the built-in corpus"
            config = replace(config, notes=(*config.notes, note))
        size = tokenizer_types.rounded_up(size, config.make_vocab_size_divisible_by)
        config = replace(config, model=replace(config.model, vocab_size=size))
    if place.rank == 0:
        print(*dry_run.lines(config, missing), *changed, sep="\n", flush=True)
    return 0
