"""The command line as a table: Megatron's flag names, `-` and `_` alike, each with its help, unit and default.

Neighbour: `cli` turns what this reads into a RunConfig. No flag stands here without an effect.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any, NoReturn

from tinyllama_mcore.config.flag_values import from_zero, layers, quantity, shares, whole
from tinyllama_mcore.config.schema import (
    CheckpointConfig,
    ConfigError,
    DataConfig,
    LayoutConfig,
    LoopConfig,
    RunConfig,
)
from tinyllama_mcore.config.strict_json import did_you_mean


@dataclass(frozen=True, kw_only=True)
class Flag:
    """One option. Its default is None throughout: "not given", which the recipe or the JSON then fills."""

    name: str
    """As it is spelled in the help."""
    help: str
    """What it sets, with the unit; `said_default` is added."""
    default: str | None = None
    """What holds where it is not given, in words; None: the value that the schema's field of this name has."""
    read: Callable[[str], Any] | None = str
    """Value from its text; None: a switch without a value."""
    metavar: str = "N"
    choices: tuple[str, ...] | None = None
    many: bool = False
    """Takes one value or more."""
    negatable: bool = False
    """A switch that also has a `--no-` form."""
    aliases: tuple[str, ...] = ()
    """Other spellings that are taken, such as Megatron-LM's."""

    @property
    def said_default(self) -> str:
        """What the help says of the default."""
        return self.default if self.default is not None else _spelled(_schema_default(self.name))


def _schema_default(flag: str) -> object:
    """The default of the field that a flag sets: the one of its name."""
    name = flag[2:].replace("-", "_")
    kinds = (RunConfig, DataConfig, LayoutConfig, CheckpointConfig, LoopConfig)
    return next(field.default for kind in kinds for field in fields(kind) if field.name == name)


def _spelled(value: object) -> str:
    """As it would be given."""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, tuple):
        return ",".join(f"{share:g}" for share in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


_RECIPE = "the recipe's"
_COUNT, _FROM_ZERO, _MINUTES = whole(1), whole(0), from_zero("minutes")

GROUPS: dict[str, tuple[Flag, ...]] = {
    "run": (
        Flag(
            name="--deepspeed_config",
            metavar="FILE",
            help="DeepSpeed JSON: ZeRO stage, offload, precision, clipping, batch",
            default="none: it has to be given; ds_configs/ has them",
        ),
        Flag(
            name="--recipe",
            metavar="NAME|FILE.json",
            help="numbers of the run that nobody gives",
            default="that of the checkpoint, else tinyllama-1.1b with a GPU, tinyllama-debug without",
        ),
        Flag(
            name="--dry-run",
            read=None,
            help="check the configuration, print the plan and the memory it needs, start nothing",
            default="off",
        ),
        Flag(
            name="--world-size",
            read=_COUNT,
            help="processes of the job to plan for, with --dry-run alone",
            default="the launcher's",
        ),
        Flag(name="--seed", read=_FROM_ZERO, help="of the initial weights and the order of samples"),
        Flag(
            name="--local_rank", read=whole(-1), help="the deepspeed launcher passes it; not used", default="not used"
        ),
    ),
    "data": (
        Flag(
            name="--data-path",
            metavar="[W] PREFIX",
            many=True,
            help="one .bin/.idx prefix, or W1 PREFIX1 W2 PREFIX2 ... with weights as shares of samples",
            default="the built-in sample corpus",
        ),
        Flag(
            name="--split",
            read=shares,
            metavar="A,B,C",
            help="shares of each dataset's documents for training, validation and test",
        ),
        Flag(
            name="--valid-data-path",
            metavar="[W] PREFIX",
            many=True,
            help="as --data-path, datasets to validate on; all of --data-path is then trained on",
            default="the second share of --split",
        ),
        Flag(
            name="--tokenizer-model",
            metavar="FILE",
            help="SentencePiece model that made the data",
            default="the one of the built-in corpus",
        ),
        Flag(
            name="--data-cache-path",
            metavar="DIR",
            help="where dataset indices are cached",
            default="a folder `cache` beside each prefix",
        ),
        Flag(name="--seq-length", read=_COUNT, help="tokens in one sample", default=_RECIPE),
        Flag(
            name="--inter-document-masking",
            read=None,
            help="no token sees another document of its sample, and positions start at 0 in each",
            default="off, as in the paper",
        ),
    ),
    "batch and schedule": (
        Flag(
            name="--micro-batch-size",
            read=_COUNT,
            help="sequences in one forward pass of one data-parallel rank",
            default="the JSON's, else the recipe's or its largest divisor that fits",
        ),
        Flag(
            name="--global-batch-size",
            read=_COUNT,
            help="sequences per optimizer update, over the whole job",
            default="the JSON's, else the recipe's",
        ),
        Flag(name="--train-iters", read=_COUNT, help="optimizer updates in the whole run", default=_RECIPE),
        Flag(
            name="--train-tokens",
            read=_COUNT,
            help="tokens in the whole run: the other view of --train-iters",
            default="--train-iters x --global-batch-size x --seq-length",
        ),
        Flag(
            name="--lr",
            read=quantity,
            metavar="X",
            help="largest learning rate, reached at the end of warm-up",
            default="the JSON's, else the recipe's",
        ),
        Flag(name="--min-lr", read=quantity, metavar="X", help="learning rate at the end of the run", default=_RECIPE),
        Flag(name="--lr-warmup-iters", read=_FROM_ZERO, help="iterations of linear warm-up", default=_RECIPE),
    ),
    "layout and speed": (
        Flag(name="--tensor-model-parallel-size", read=_COUNT, help="ranks that share each matrix"),
        Flag(name="--pipeline-model-parallel-size", read=_COUNT, help="ranks that hold consecutive layers"),
        Flag(
            name="--virtual-pipeline-model-parallel-size",
            read=_COUNT,
            help="model chunks of each pipeline rank; more than 1 is the interleaved schedule",
        ),
        Flag(
            name="--pipeline-num-layers",
            read=layers,
            metavar="N,N,...",
            help="decoder layers of each model chunk, in the order of the model",
            default="as even as it goes, lighter at both ends",
        ),
        Flag(name="--context-parallel-size", read=_COUNT, help="ranks that share each sequence"),
        Flag(
            name="--sequence-parallel",
            read=None,
            help="also cut activations along the sequence between tensor-parallel regions",
        ),
        Flag(
            name="--recompute-granularity",
            choices=("none", "selective", "full"),
            help="activations computed again in the backward pass: selective is core attention, full is each layer",
        ),
        Flag(
            name="--attention-backend",
            choices=("auto", "flash", "cudnn", "sdpa", "unfused"),
            help="kernel of the core attention",
            default="auto: the fastest that the device has",
        ),
        Flag(
            name="--transformer-impl",
            choices=("fused", "local"),
            help="passes of the decoder layers: one autograd function a layer, or Megatron's own",
            default="fused; local with --compile or --recompute-granularity selective",
        ),
        Flag(
            name="--cuda-graph",
            read=None,
            negatable=True,
            help="replay a micro-batch's passes as a CUDA graph: fused layers under ZeRO-1 in bf16, one GPU a model",
            default="on where it can be",
        ),
        Flag(name="--compile", read=None, negatable=True, help="torch.compile each decoder layer"),
    ),
    "checkpoints": (
        Flag(name="--save", metavar="DIR", help="directory that checkpoints go to", default="nothing is kept"),
        Flag(
            name="--load",
            metavar="DIR",
            help="directory that the run goes on from; it must hold a checkpoint",
            default="--save, if it holds a checkpoint",
        ),
        Flag(
            name="--iteration",
            read=_FROM_ZERO,
            help="checkpoint to go on from, and no other; later ones in --save are set aside",
            default="the newest that is whole",
        ),
        Flag(
            name="--allow-data-change",
            read=None,
            help="go on with other datasets or weights than the checkpoint's; what stays is not repeated",
            default="off: another --data-path is refused",
        ),
        Flag(
            name="--override-schedule",
            aliases=("--override-opt_param-scheduler",),
            read=None,
            help="go on under this command's learning rates where the checkpoint's schedule says others",
            default="off: another schedule is refused",
        ),
        Flag(
            name="--use-checkpoint-opt_param-scheduler",
            read=None,
            help="go on under the checkpoint's learning rates, schedule and weight decay, whatever this command says",
        ),
        Flag(name="--no-load", read=None, help="start from zero, even if --save holds a checkpoint", default="off"),
        Flag(
            name="--save-interval",
            read=_FROM_ZERO,
            help="iterations between checkpoints; 0: only at the end",
        ),
        Flag(name="--keep-latest", read=_FROM_ZERO, help="newest checkpoints to keep; 0: all"),
        Flag(
            name="--async-save",
            read=None,
            help="train on while a checkpoint is written from a copy in host memory",
        ),
    ),
    "loop and logs": (
        Flag(
            name="--exit-interval",
            read=_FROM_ZERO,
            help="leave, after a checkpoint where --save keeps one, at an iteration that this divides; 0: never",
        ),
        Flag(
            name="--exit-duration",
            read=_MINUTES,
            metavar="MIN",
            help="leave, after a checkpoint where --save keeps one, once this many minutes have passed; 0: never",
        ),
        Flag(
            name="--loss-spike-deviations",
            read=from_zero("standard deviations"),
            metavar="D",
            help="leave out an update whose loss is D standard deviations above the mean of the last 128; 0: never",
        ),
        Flag(
            name="--max-skipped-in-a-row",
            read=_COUNT,
            metavar="K",
            help="go back to the last good checkpoint, past these samples, after K updates left out in a row",
        ),
        Flag(
            name="--distributed-timeout-minutes",
            read=_MINUTES,
            metavar="MIN",
            help="end the run, with every rank's stacks, after this long without progress; 0: never",
        ),
        Flag(name="--eval-interval", read=_FROM_ZERO, help="iterations between evaluations; 0: never"),
        Flag(name="--eval-iters", read=_COUNT, help="global batches in one evaluation"),
        Flag(name="--log-interval", read=_COUNT, help="iterations between log lines"),
        Flag(name="--metrics-file", metavar="FILE", help="JSON lines, one an iteration", default="not written"),
        Flag(name="--tensorboard-dir", metavar="DIR", help="TensorBoard event files", default="not written"),
        Flag(
            name="--overwrite",
            read=None,
            help="let --metrics-file and --tensorboard-dir be those of another run, whose records are then cut away",
            default="off: they are refused",
        ),
    ),
}


def flags() -> Iterator[Flag]:
    """Every flag, in the order of the help."""
    for group in GROUPS.values():
        yield from group


def option_strings() -> list[str]:
    """Every spelling that is taken, sorted: the list that a test freezes."""
    names = [name for f in flags() for name in (f.name, *f.aliases)]
    return sorted(names + [_negated(f) for f in flags() if f.negatable])


def read(argv: Sequence[str]) -> argparse.Namespace:
    """The flags that were given; None for the others. `--help` prints the table and leaves with code 0.

    Raises:
        ConfigError: an unknown flag (with the one it resembles), a missing or malformed value.
    """
    return _parser().parse_args(list(respelled(argv, [*option_strings(), "--help"])))


class Parser(argparse.ArgumentParser):
    """argparse, but a mistake is one ConfigError instead of a page of usage."""

    def error(self, message: str) -> NoReturn:
        """Called by argparse with what was wrong."""
        raise ConfigError(message)


def _parser() -> Parser:
    """The table as argparse's parser."""
    parser = Parser(
        prog="pretrain_tinyllama.py",
        usage="%(prog)s --deepspeed_config FILE [flags]",
        description="Pretrain TinyLlama in Megatron-core layers, sharded by DeepSpeed.",
        epilog="`-` and `_` are the same in every flag.",
        allow_abbrev=False,
    )
    for title, group in GROUPS.items():
        section = parser.add_argument_group(title)
        for flag in group:
            add(section, flag)
    return parser


def add(section: argparse._ActionsContainer, flag: Flag) -> None:
    """Put a row into a parser, or a group of one."""
    section.add_argument(
        flag.name, *flag.aliases, help=f"{flag.help} (default: {flag.said_default})", **_keywords(flag)
    )


def named(name: str) -> Flag:
    """The row of a name, for tools that take the trainer's flags."""
    return next(flag for flag in flags() if flag.name == name)


def _keywords(flag: Flag) -> dict[str, Any]:
    """The row in argparse's words."""
    if flag.read is None:
        return {"action": argparse.BooleanOptionalAction if flag.negatable else "store_true", "default": None}
    shown = {"choices": flag.choices} if flag.choices else {"metavar": flag.metavar}
    return {"type": flag.read, "default": None, "nargs": "+" if flag.many else None, **shown}


def respelled(argv: Sequence[str], names: Sequence[str]) -> Iterator[str]:
    """The arguments with every flag spelled as in `names`. ConfigError for a flag that is not among them."""
    known = {name.replace("_", "-"): name for name in names}
    for argument in argv:
        name, equals, value = argument.partition("=")
        if not name.startswith("--"):
            yield argument
            continue
        spelled = known.get(name.replace("_", "-"))
        if spelled is None:
            raise ConfigError(f"unknown flag {name}{did_you_mean(name.replace('_', '-'), known)}")
        yield spelled + equals + value


def _negated(flag: Flag) -> str:
    return f"--no-{flag.name[2:]}"
