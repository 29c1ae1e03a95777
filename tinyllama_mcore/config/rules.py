"""Which runs are legal: a table of rules, each with a name, a test and a message in the user's words.

Neighbours: `cli` makes the RunConfig that `check` judges, before a process group or a GPU is touched. Rows stand in the
order in which they presume each other, so the first one broken is the one reported; docs/parallelism.md lists them all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from tinyllama_mcore.config.rule import Rule
from tinyllama_mcore.config.rules_files import FILE_RULES
from tinyllama_mcore.config.rules_layout import LAYOUT_RULES
from tinyllama_mcore.config.rules_monitors import MONITOR_RULES
from tinyllama_mcore.config.rules_recipe import MODEL_RULES, OPTIMIZER_RULES
from tinyllama_mcore.config.rules_sharding import SHARDING_RULES
from tinyllama_mcore.config.rules_unused import UNUSED_RULES
from tinyllama_mcore.config.schema import ConfigError, RunConfig

RULES = (*MODEL_RULES, *LAYOUT_RULES, *SHARDING_RULES, *OPTIMIZER_RULES, *FILE_RULES, *MONITOR_RULES, *UNUSED_RULES)
_GPU_KERNELS = ("flash", "cudnn")


def check(run: RunConfig, *, has_gpu: Callable[[], bool]) -> None:
    """Refuse a run that cannot be right. Only the first broken rule is told: later ones presume it.

    Args:
        run: the run; its vocabulary size need not be known yet.
        has_gpu: whether there is a GPU; called only where a rule needs to know, as asking imports torch.

    Raises:
        ConfigError: with the message of the first row that is broken.
    """
    for rule in rules(has_gpu):
        if not rule.holds(run):
            raise ConfigError(rule.message(run))


def with_vocab_size(run: RunConfig, tokenizer_vocab_size: int, tokenizer: str) -> RunConfig:
    """The run with as many rows in its embedding as its recipe says, or as the tokenizer of its data has pieces.

    Args:
        run: a run whose recipe leaves the vocabulary open or fixes it. Rows beyond the tokenizer are told and kept.
        tokenizer_vocab_size: pieces that the tokenizer knows.
        tokenizer: its path, for the message.

    Raises:
        ConfigError: the recipe has fewer rows than the tokenizer pieces.
    """
    rows = run.model.vocab_size or tokenizer_vocab_size
    if rows < tokenizer_vocab_size:
        raise ConfigError(
            f"the tokenizer {tokenizer} has {tokenizer_vocab_size:,} pieces, but recipe {run.recipe} is for {rows:,}: "
            f"a model needs a row for each piece; give the tokenizer of the recipe (--tokenizer-model), or a recipe "
            f"whose vocab_size is null or at least {tokenizer_vocab_size}"
        )
    told = f"{rows:,} rows for the {tokenizer_vocab_size:,} pieces of the tokenizer: no data has the ids beyond"
    notes = (*run.notes, told) if rows > tokenizer_vocab_size else run.notes
    return replace(run, model=replace(run.model, vocab_size=rows), notes=notes)


def rules(has_gpu: Callable[[], bool]) -> Iterator[Rule]:
    """Every row in the order of judging: those of the run alone, then those that ask for the device."""
    yield from RULES
    yield Rule(
        name="flash and cudnn attention need bf16",
        holds=lambda run: run.attention_backend not in _GPU_KERNELS or run.sharding.precision == "bf16",
        message=lambda run: (
            f"--attention-backend {run.attention_backend} computes in bf16 only, and this run is in "
            f"{run.sharding.precision} ({run.sharding.source}: bf16.enabled); use sdpa or auto"
        ),
    )
    yield Rule(
        name="flash and cudnn attention need a GPU",
        holds=lambda run: run.attention_backend not in _GPU_KERNELS or has_gpu(),
        message=lambda run: (
            f"--attention-backend {run.attention_backend} needs a GPU, and there is none here; use sdpa or auto"
        ),
    )
    yield Rule(  # model/documents.py
        name="document masking in bf16 on a GPU is flash attention",
        holds=lambda run: (
            not run.data.inter_document_masking
            or run.attention_backend in ("auto", "flash")
            or run.sharding.precision != "bf16"
            or not has_gpu()
        ),
        message=lambda run: (
            f"--attention-backend {run.attention_backend} does nothing with --inter-document-masking in bf16 on a GPU, "
            "where documents are kept apart by a variable-length flash kernel; use flash or auto"
        ),
    )
