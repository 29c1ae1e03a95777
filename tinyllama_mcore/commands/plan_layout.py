"""Which layout to train in, before a GPU is held: the command line of `tinyllama_mcore.planning`.

    tinyllama-plan --recipe tinyllama-1.1b --gpu h100 --world-size 16
    tinyllama-plan --gpu a100-40gb --world-size 64 --explain tp=2,pp=2
    tinyllama-plan --gpu h100 --measure here.json --world-size 16

Needs neither a GPU nor torch, but for --measure. See docs/howto/planning.md.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from tinyllama_mcore.config import records
from tinyllama_mcore.config.cli import exit_code
from tinyllama_mcore.config.errors import ConfigError
from tinyllama_mcore.config.flags import Parser, add, named
from tinyllama_mcore.config.paths import unwritable_file
from tinyllama_mcore.planning import gpus, measure, report
from tinyllama_mcore.planning.request import KEYS, MOST_RANKS, Request, answer, bases
from tinyllama_mcore.planning.search import Candidate, Plan, search


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The flags."""
    parser = Parser(
        description="List every legal layout of a recipe on so many GPUs, with memory and speed, fastest first.",
        allow_abbrev=False,
    )
    add(parser, named("--recipe"), default="tinyllama-1.1b")
    parser.add_argument(
        "--gpu",
        required=True,
        metavar="NAME|FILE.json",
        help=f"one of {', '.join(gpus.GPUS)}, or a file that --measure wrote",
    )
    parser.add_argument(
        "--measure",
        type=Path,
        metavar="FILE.json",
        help="correct the figures of --gpu by short runs on the GPUs of this machine, write them to this file and plan "
        "with them (default: plan by the data sheet)",
    )
    add(parser, replace(named("--world-size"), words=f"GPUs, up to {MOST_RANKS}"), required=True)
    add(parser, named("--global-batch-size"))
    add(parser, named("--seq-length"))
    add(parser, named("--fp8-recipe"))
    jsons = replace(
        named("--deepspeed_config"), words="DeepSpeed JSONs to try", otherwise="all that come with the package"
    )
    add(parser, replace(jsons, many=True, aliases=("--deepspeed-config",)))
    parser.add_argument("--top", type=int, default=10, metavar="N", help="rows of the table (default: 10)")
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write every legal run to this file (default: do not)"
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="overwrite the files of --json and --measure (default: refuse)"
    )
    parser.add_argument(
        "--explain",
        default="",
        metavar="KEYS",
        help=f"show the fastest run with these values, e.g. tp=2,pp=2 (default: of all; keys: {', '.join(KEYS)})",
    )
    return parser.parse_args(argv)


def request_of(given: argparse.Namespace) -> Request:
    """What the flags ask for."""
    flags = {
        "--global-batch-size": given.global_batch_size,
        "--seq-length": given.seq_length,
        "--fp8-recipe": given.fp8_recipe,
    }
    return Request(
        recipe=given.recipe,
        world_size=given.world_size,
        given=tuple(word for flag, value in flags.items() if value is not None for word in (flag, str(value))),
        files=tuple(given.deepspeed_config or ()),
        explain=given.explain,
    )


def lines(plan: Plan, best: Candidate, gpu: gpus.Gpu, top: int) -> Iterator[str]:
    """The whole answer."""
    counts = f"{len(plan.fitting):,} legal runs fit, {len(plan.too_large):,} do not"
    yield f"{best.run.layout.world_size} x {gpu.name}: {counts}; the fastest of each layout and JSON:"
    yield from ("", *report.table(plan.fitting or plan.too_large, top))
    if plan.refusals:
        yield from ("", "not legal, one for each reason:", *(f"  {refusal.message}" for refusal in plan.refusals))
    yield from ("", "chosen:", *report.explanation(best.run, gpu))


def write(flag: str, path: Path, text: str) -> None:
    """A file that a flag names."""
    try:
        path.write_text(text + "\n")
    except OSError as error:
        raise ConfigError(f"{flag} {path}: cannot be written ({error.strerror}); name a writable file") from error
    print(f"wrote        {path}")


def refuse_taken(flag: str, path: Path, *, overwrite: bool) -> None:
    """ConfigError where a file cannot be written, or is there and may not be written over."""
    if problem := unwritable_file(path):
        raise ConfigError(f"{flag} {path}: cannot be written ({problem}); name a writable file")
    if path.exists() and not overwrite:
        raise ConfigError(f"{flag} {path} exists: name a new file, or give --overwrite")


def measured(recipe: str, sheet: gpus.Gpu, path: Path) -> gpus.Gpu:
    """The row of the table as the GPUs here are, written to `path`."""
    if path.suffix != ".json" or not path.parent.is_dir():
        raise ConfigError(
            f"--measure {path}: name a .json file in a directory that can be written; --gpu reads it later"
        )
    here = measure.machine()
    gpu, told = measure.measure(recipe, sheet, here, measure.train)
    print(*told, sep="\n")
    write("--measure", path, json.dumps(records.to_plain(gpu), indent=1))
    return gpu


def plan_layout(given: argparse.Namespace) -> None:
    """Search, and tell."""
    request, gpu = request_of(given), gpus.find(given.gpu)
    for flag, path in (("--measure", given.measure), ("--json", given.json)):
        if path is not None:
            refuse_taken(flag, path, overwrite=given.overwrite)
    if given.fp8_recipe is not None and not gpu.float8:
        raise ConfigError(f"--fp8-recipe {given.fp8_recipe}: {gpu.name} does not multiply in float8; leave it out")
    runs = bases(request)  # a wrong recipe, JSON or flag is told before minutes of training
    if given.measure is not None:
        gpu = measured(given.recipe, gpu, given.measure)
    plan = search(runs, gpu)
    best = answer(request, plan)
    print(*lines(plan, best, gpu, given.top), sep="\n")
    if given.json is not None:
        text = json.dumps(report.plain(plan, gpu, best))
        write("--json", given.json, text.replace('{"tokens_per_s_per_gpu"', '\n{"tokens_per_s_per_gpu"'))


def main(argv: Sequence[str] | None = None) -> int:
    """Plan; 2 for a user's mistake."""
    return exit_code(lambda: plan_layout(parse(sys.argv[1:] if argv is None else argv)))
