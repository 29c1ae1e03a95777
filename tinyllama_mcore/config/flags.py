"""The command line as a table: Megatron's flag names, with `-` or `_`. A row names a field of the schema.

The help of a flag, the type of its value and its default are the field's own (`schema`), so that each stands once.
Neighbours: `flag` is a row, `flag_values` reads values, `cli` makes a RunConfig of them. No flag stands here without an
effect.
"""

from __future__ import annotations

import argparse
from collections.abc import Collection, Iterator, Sequence
from typing import Any, NoReturn

from tinyllama_mcore.config import tokenizer_types
from tinyllama_mcore.config.errors import ConfigError
from tinyllama_mcore.config.flag import Flag, shown
from tinyllama_mcore.config.flag_values import from_zero, interval, layers, shares, whole
from tinyllama_mcore.config.loop_config import CheckpointConfig, LoopConfig
from tinyllama_mcore.config.schema import (
    BatchConfig,
    DataConfig,
    Float8Config,
    LayoutConfig,
    ModelConfig,
    OptimizerConfig,
    RunConfig,
)
from tinyllama_mcore.config.strict_json import did_you_mean

FLOAT8_RECIPES = ("rowwise_with_gw_hp",)
"""torchao's names (`kernels.float8`)."""
DECAY_STYLES = ("cosine", "linear", "constant", "WSD", "inverse-square-root")
WSD_DECAY_STYLES = ("exponential", "linear", "cosine", "minus_sqrt")
"""Megatron-LM's names (`optim.schedule`)."""


_RAMP = "START INCREMENT SAMPLES"
_RECIPE, _JSON = "the recipe's", "the JSON's, else the recipe's"
_NOT_WRITTEN = "not written"
_IN_RECIPE = "another where the recipe says so"
_FROM_ZERO, _MINUTES = whole(0), from_zero("minutes")

GROUPS: dict[str, tuple[Flag, ...]] = {
    "run": (
        Flag(
            "--deepspeed_config",
            read=str,
            metavar="NAME|FILE.json",
            words="DeepSpeed JSON: ZeRO stage or FSDP, offload, precision, clipping, batch; a file, or the name of one "
            "that comes with the package, such as zero1",
            otherwise="none: it has to be given",
        ),
        Flag(
            "--recipe",
            RunConfig,
            metavar="NAME|FILE.json",
            otherwise="the checkpoint's, else tinyllama-1.1b with a GPU, tinyllama-debug without",
        ),
        Flag("--dry-run", words="check the configuration, print the run with its memory and speed, start nothing"),
        Flag(
            "--world-size",
            LayoutConfig,
            words="processes to plan for; only with --dry-run",
            otherwise="the launcher's number",
        ),
        Flag("--seed", RunConfig, read=_FROM_ZERO),
        Flag(
            "--local_rank",
            read=whole(-1),
            words="the deepspeed launcher passes it; not used",
            otherwise="not used",
        ),
    ),
    "data": (
        Flag(
            "--data-path",
            DataConfig,
            "blend",
            read=str,
            metavar="[W] PREFIX",
            many=True,
            words="dataset to train on, by the prefix of its .bin and .idx; or several with their shares of the "
            "samples: W1 PREFIX1 W2 PREFIX2 ...",
            otherwise="the built-in sample corpus",
        ),
        Flag(
            "--data-path-from",
            DataConfig,
            "later_blends",
            read=str,
            metavar="ITERATION [W] PREFIX",
            many=True,
            repeats=True,
            words="the blend that takes the place of --data-path after so many iterations, spelled like it: "
            "ITERATION W1 PREFIX1 W2 PREFIX2 ...; may be given again, with a later iteration",
            otherwise="one blend from the first iteration to the last",
        ),
        Flag("--split", DataConfig, read=shares, metavar="A,B,C"),
        Flag(
            "--valid-data-path",
            DataConfig,
            "valid_blend",
            read=str,
            metavar="[W] PREFIX",
            many=True,
            words="datasets to validate on, spelled as --data-path, all of which is then trained on",
            otherwise="the second part of --split",
        ),
        Flag("--tokenizer-model", DataConfig, metavar="PATH", otherwise="the one that the data's receipt names"),
        Flag(
            "--tokenizer-type",
            DataConfig,
            read=tokenizer_types.known,
            metavar="KIND",
            words=f"kind of --tokenizer-model: {' or '.join(tokenizer_types.TYPES)}",
            otherwise="by the file",
        ),
        Flag("--eod-token", DataConfig, metavar="TOKEN", otherwise="the data's receipt's, else the tokenizer's own"),
        Flag("--vocab-size", ModelConfig, otherwise="the recipe's, else the number of the tokenizer's ids"),
        Flag("--make-vocab-size-divisible-by", RunConfig),
        Flag(
            "--data-cache-path",
            DataConfig,
            "cache_dir",
            metavar="DIR",
            otherwise="a directory `cache` beside each prefix",
        ),
        Flag("--seq-length", BatchConfig, otherwise=_RECIPE),
        Flag("--inter-document-masking", DataConfig),
    ),
    "batch and schedule": (
        Flag("--micro-batch-size", BatchConfig, otherwise=f"{_JSON} or its largest divisor that fits"),
        Flag("--global-batch-size", BatchConfig, otherwise=_JSON),
        Flag(
            "--rampup-batch-size",
            BatchConfig,
            read=whole(1),
            metavar=_RAMP,
            many=3,
            otherwise="the recipe's: none in those built in",
        ),
        Flag("--train-iters", BatchConfig, otherwise=_RECIPE),
        Flag(
            "--train-tokens",
            read=whole(1),
            words="tokens in the whole run, in place of --train-iters",
            otherwise="--train-iters x --global-batch-size x --seq-length, less what a ramp leaves out",
        ),
        Flag("--lr", OptimizerConfig, metavar="X", otherwise=_JSON),
        Flag("--min-lr", OptimizerConfig, metavar="X", otherwise=_RECIPE),
        Flag("--lr-warmup-iters", OptimizerConfig, read=_FROM_ZERO, otherwise=_RECIPE),
        Flag("--lr-decay-style", OptimizerConfig, choices=DECAY_STYLES, otherwise=_IN_RECIPE),
        Flag("--lr-decay-iters", OptimizerConfig, otherwise="the recipe's, else --train-iters"),
        Flag("--lr-wsd-decay-style", OptimizerConfig, choices=WSD_DECAY_STYLES, otherwise=_IN_RECIPE),
        Flag("--lr-wsd-decay-iters", OptimizerConfig, otherwise="the recipe's; WSD needs it"),
    ),
    "layout and speed": (
        Flag("--tensor-model-parallel-size", LayoutConfig),
        Flag("--pipeline-model-parallel-size", LayoutConfig),
        Flag("--virtual-pipeline-model-parallel-size", LayoutConfig),
        Flag(
            "--pipeline-num-layers",
            LayoutConfig,
            read=layers,
            metavar="N,N,...",
            otherwise="as even as possible, fewer at both ends",
        ),
        Flag("--context-parallel-size", LayoutConfig),
        Flag("--sequence-parallel", LayoutConfig),
        Flag("--recompute-granularity", LayoutConfig, choices=("none", "selective", "full")),
        Flag(
            "--attention-backend",
            RunConfig,
            choices=("auto", "flash", "cudnn", "sdpa", "unfused"),
            otherwise="the fastest that this device has",
        ),
        Flag(
            "--transformer-impl",
            RunConfig,
            choices=("fused", "local"),
            otherwise="local with --compile or --recompute-granularity selective",
        ),
        Flag(
            "--swiglu-backend",
            RunConfig,
            choices=("auto", "quack", "separate"),
            otherwise="quack on a Hopper GPU in bf16 where it is installed, else separate",
        ),
        Flag(
            "--fp8-recipe", Float8Config, "recipe", choices=FLOAT8_RECIPES, otherwise="none: they are computed in bf16"
        ),
        Flag("--num-layers-at-start-in-bf16", Float8Config, read=_FROM_ZERO),
        Flag("--num-layers-at-end-in-bf16", Float8Config, read=_FROM_ZERO),
        Flag("--cuda-graph", RunConfig, negatable=True, otherwise="on where it is possible"),
        Flag("--tp-comm-overlap", RunConfig, negatable=True, otherwise="on where it is possible"),
        Flag("--compile", RunConfig, negatable=True),
        Flag("--deterministic-mode", RunConfig),
    ),
    "checkpoints": (
        Flag("--save", CheckpointConfig, metavar="DIR", otherwise="no checkpoint is written"),
        Flag("--load", CheckpointConfig, metavar="DIR", otherwise="--save, if it holds a checkpoint"),
        Flag("--iteration", CheckpointConfig, read=_FROM_ZERO, otherwise="the newest undamaged one"),
        Flag("--allow-data-change", CheckpointConfig, otherwise="another --data-path is refused"),
        Flag(
            "--override-schedule",
            CheckpointConfig,
            aliases=("--override-opt_param-scheduler",),
            otherwise="another schedule is refused",
        ),
        Flag("--use-checkpoint-opt_param-scheduler", CheckpointConfig),
        Flag("--no-load", CheckpointConfig),
        Flag("--save-interval", CheckpointConfig, read=_FROM_ZERO),
        Flag("--keep-latest", CheckpointConfig, read=_FROM_ZERO),
        Flag("--async-save", CheckpointConfig),
    ),
    "loop and logs": (
        Flag("--exit-interval", LoopConfig, read=_FROM_ZERO),
        Flag("--exit-duration", LoopConfig, read=_MINUTES, metavar="MIN"),
        Flag("--loss-spike-deviations", LoopConfig, read=from_zero("standard deviations"), metavar="D"),
        Flag("--max-skipped-in-a-row", LoopConfig, metavar="K"),
        Flag("--distributed-timeout-minutes", LoopConfig, read=_MINUTES, metavar="MIN"),
        Flag("--eval-interval", LoopConfig, read=_FROM_ZERO),
        Flag("--eval-iters", LoopConfig),
        Flag("--log-interval", LoopConfig),
        Flag("--log-straggler", LoopConfig),
        Flag("--log-grad-norm-by-group", LoopConfig),
        Flag("--metrics-file", LoopConfig, metavar="FILE", otherwise=_NOT_WRITTEN),
        Flag("--tensorboard-dir", LoopConfig, metavar="DIR", otherwise=_NOT_WRITTEN),
        Flag("--profile", LoopConfig, read=interval, metavar="A:B", otherwise="no iteration is profiled"),
        Flag("--profile-dir", LoopConfig, metavar="DIR", otherwise=_NOT_WRITTEN),
        Flag("--overwrite", LoopConfig, otherwise="such a run is refused"),
    ),
}


def wrong_value(part: object, among: Collection[str] | None = None) -> str | None:
    """Why a flag would not take the value of its field in this part of a run; None where every flag would.

    A run that is made in Python was not read from flags, and says nothing that a command line could not.
    `among`: the fields that are looked at; None: all.
    """
    for flag in flags():
        if flag.kind is not type(part) or (among is not None and flag.target not in among):
            continue
        value = getattr(part, flag.target)
        if value is None or isinstance(value, bool):
            continue
        if flag.choices is not None and value not in flag.choices:
            return f"{flag.target} (the flag {flag.name}) must be one of {', '.join(flag.choices)}, got {value!r}"
        if flag.reader is not None and not flag.many:
            text = _JOINED.get(flag.target, ",").join(map(str, value)) if isinstance(value, tuple) else str(value)
            try:
                flag.reader(text)
            except argparse.ArgumentTypeError as error:
                return f"{flag.target} (the flag {flag.name}) {error}"
    return None


_JOINED = {"profile": ":"}
"""Field -> what stands between its numbers in the text of its flag."""


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


class _LastOf(argparse.Action):
    """Keeps the values of the last time, so that a command in a script can be gone on with, and the flag's name."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,  # noqa: ANN401  argparse's own
        option_string: str | None = None,
    ) -> None:
        """As argparse calls it."""
        if getattr(namespace, self.dest) is not None:
            namespace.again = [*getattr(namespace, "again", ()), option_string]
        setattr(namespace, self.dest, values)


def given_again(given: argparse.Namespace) -> Iterator[str]:
    """A note on each flag of several values that was given more than once."""
    yield from (f"{name} is given more than once: the last one counts" for name in getattr(given, "again", ()))


def _parser() -> Parser:
    """The table as argparse's parser."""
    parser = Parser(
        usage="%(prog)s --deepspeed_config NAME|FILE.json [flags]",
        description="Pretrain TinyLlama with Megatron-core and DeepSpeed.",
        epilog="`-` and `_` are the same in every flag.",
        allow_abbrev=False,
    )
    for title, group in GROUPS.items():
        section = parser.add_argument_group(title)
        for flag in group:
            add(section, flag)
    return parser


def add(section: argparse._ActionsContainer, flag: Flag, *, required: bool = False, default: object = None) -> None:
    """Put a row into a parser, or a group of one.

    Args:
        section: the parser or the group.
        flag: the row.
        required: it has to be given, so that its help tells no default.
        default: what a tool takes where it is not given, in place of the row's.
    """
    told = "" if required else f" (default: {flag.default if default is None else shown(default)})"
    words = _keywords(flag) | {"default": default, "required": required}
    section.add_argument(flag.name, *flag.aliases, help=flag.help + told, **words)


def named(name: str) -> Flag:
    """The row of a name, for tools that take the trainer's flags."""
    return next(flag for flag in flags() if flag.name == name)


def _keywords(flag: Flag) -> dict[str, Any]:
    """The row in argparse's words."""
    if flag.reader is None:
        return {"action": argparse.BooleanOptionalAction if flag.negatable else "store_true"}
    so_many = flag.many is not True and flag.many > 1
    metavar = tuple(flag.metavar.split()) if so_many else flag.metavar
    shown: dict[str, Any] = {"choices": flag.choices} if flag.choices else {"metavar": metavar}
    if flag.many is True:
        shown["action"] = "append" if flag.repeats else _LastOf
    return {"type": flag.reader, "nargs": flag.many if so_many else "+" if flag.many else None, **shown}


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
            raise ConfigError(
                tokenizer_types.told(name) or f"unknown flag {name}{did_you_mean(name.replace('_', '-'), known)}"
            )
        yield spelled + equals + value


def _negated(flag: Flag) -> str:
    return f"--no-{flag.name[2:]}"
