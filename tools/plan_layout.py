"""Which layout to train in, before a GPU is held: the command line of `tinyllama_mcore.planning`.

    python tools/plan_layout.py --recipe tinyllama-1.1b --gpu h100 --world-size 16
    python tools/plan_layout.py --gpu a100-40gb --world-size 64 --explain tp=2,pp=2

Needs neither a GPU nor torch. See docs/planning.md.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from tinyllama_mcore.config.cli import exit_code
from tinyllama_mcore.config.flags import Parser
from tinyllama_mcore.config.schema import ConfigError
from tinyllama_mcore.config.strict_json import Json
from tinyllama_mcore.planning import gpus, report
from tinyllama_mcore.planning.request import KEYS, SHIPPED, Request, answer, bases
from tinyllama_mcore.planning.search import Candidate, Plan, search


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The flags."""
    parser = Parser(
        description="Every legal layout of a recipe on so many GPUs, with memory and speed, best first.",
        allow_abbrev=False,
    )
    parser.add_argument("--recipe", default="tinyllama-1.1b", metavar="NAME|FILE.json", help="default: tinyllama-1.1b")
    parser.add_argument("--gpu", required=True, metavar="NAME", help=f"one of {', '.join(gpus.GPUS)}")
    parser.add_argument("--world-size", type=int, required=True, metavar="N", help="GPUs, up to 4096")
    parser.add_argument("--global-batch-size", metavar="N", help="sequences an update (default: the recipe's)")
    parser.add_argument("--seq-length", metavar="N", help="tokens of a sequence (default: the recipe's)")
    parser.add_argument(
        *("--deepspeed_config", "--deepspeed-config"),
        nargs="+",
        default=[],
        metavar="FILE",
        help=f"DeepSpeed JSONs to try (default: those of {SHIPPED}/)",
    )
    parser.add_argument("--top", type=int, default=10, metavar="N", help="rows of the table (default: 10)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all that was found (default: do not)")
    parser.add_argument(
        "--explain",
        default="",
        metavar="KEYS",
        help=f"tell the best run that is so, e.g. tp=2,pp=2 (default: the best of all; keys: {', '.join(KEYS)})",
    )
    return parser.parse_args(argv)


def request_of(given: argparse.Namespace) -> Request:
    """What the flags ask for."""
    batch = {"--global-batch-size": given.global_batch_size, "--seq-length": given.seq_length}
    return Request(
        recipe=given.recipe,
        world_size=given.world_size,
        given=tuple(word for flag, value in batch.items() if value is not None for word in (flag, value)),
        files=tuple(given.deepspeed_config),
        explain=given.explain,
    )


def lines(plan: Plan, best: Candidate, gpu: gpus.Gpu, top: int) -> Iterator[str]:
    """The whole answer."""
    counts = f"{len(plan.fitting):,} legal runs fit, {len(plan.too_large):,} do not"
    yield f"{best.run.layout.world_size} x {gpu.name}: {counts}; of each layout and JSON the best:"
    yield from ("", *report.table(plan.fitting or plan.too_large, top))
    if plan.refusals:
        yield from ("", "not legal, one of each kind:", *(f"  {refusal.message}" for refusal in plan.refusals))
    yield from ("", "chosen:", *report.explanation(best.run, gpu))


def write(path: Path, found: Json) -> None:
    """What was found, one run a line."""
    text = json.dumps(found).replace('{"tokens_per_s_per_gpu"', '\n{"tokens_per_s_per_gpu"')
    try:
        path.write_text(text + "\n")
    except OSError as error:
        raise ConfigError(f"--json {path}: cannot be written ({error.strerror}); name a file that can") from error
    print(f"wrote        {path}")


def plan_layout(given: argparse.Namespace) -> None:
    """Search, and tell."""
    request, gpu = request_of(given), gpus.find(given.gpu)
    plan = search(bases(request), gpu)
    best = answer(request, plan)
    print(*lines(plan, best, gpu, given.top), sep="\n")
    if given.json is not None:
        write(given.json, report.plain(plan, gpu, best))


def main(argv: Sequence[str] | None = None) -> int:
    """Plan; 2 for a user's mistake."""
    return exit_code(lambda: plan_layout(parse(sys.argv[1:] if argv is None else argv)))


if __name__ == "__main__":
    sys.exit(main())
