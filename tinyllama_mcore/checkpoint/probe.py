"""The probe: what the training run itself computes on fixed tokens, kept in each checkpoint beside the weights.

Why: names, shapes and checksums say that a checkpoint is whole, not that a program which reads it computes the model
that was trained. Whoever reads it can compute the same tokens and compare (`hf.parity` does). Neighbours: `store`
writes the two tensors like all others. Shapes: b samples, s sequence, p kept positions, v vocabulary.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from tinyllama_mcore.checkpoint.reader import CheckpointReader
from tinyllama_mcore.config.parameters import known_vocab_size
from tinyllama_mcore.config.schema import ModelConfig, RunConfig

if TYPE_CHECKING:
    from tinyllama_mcore.engine.base import ShardingEngine

SAMPLES, LENGTH, KEPT = 2, 128, 4
"""Sequences, tokens in each, and positions of each whose logits are kept: 1 MB for a vocabulary of 32,000."""
TOKENS, LOGITS = "probe.tokens", "probe.logits"
"""Keys in the checkpoint."""


@dataclass(frozen=True, kw_only=True)
class Probe:
    """Tokens, and the logits that the training run gave them."""

    tokens: torch.Tensor
    """[b, s], int64."""
    logits: torch.Tensor
    """[b, p, v], fp32, at `positions(s)`."""
    precision: str
    """What the run computed in: fp32 or bf16."""


def positions(length: int) -> torch.Tensor:
    """The positions whose logits are kept: evenly spread, the last one among them."""
    return (torch.arange(1, KEPT + 1) * length) // KEPT - 1


def take(engine: ShardingEngine, run: RunConfig, *, keeps: bool) -> dict[str, torch.Tensor]:
    """The probe's tensors by key, on the rank that keeps them, {} on others. Collective; changes nothing.

    Compiled layers run as written: another shape would be compiled anew, in the middle of the run.
    """
    tokens = fixed_tokens(run)
    eager = torch.compiler.set_stance("force_eager") if run.compile else contextlib.nullcontext()
    with eager:
        logits = engine.logits(tokens)
    if not keeps:
        return {}
    return {TOKENS: tokens, LOGITS: logits[:, positions(tokens.shape[1])].float().cpu().contiguous()}


def fixed_tokens(run: RunConfig) -> torch.Tensor:
    """Tokens [b, s] over the whole vocabulary; s is 128, or less where the run's sequences or its layout's cuts are."""
    unit = run.layout.sequence_unit
    return draw(run.model, min(LENGTH, run.batch.seq_length) // unit * unit)


def draw(model: ModelConfig, length: int) -> torch.Tensor:
    """Tokens [b, length], the same each time; `length` is at most `LENGTH`."""
    drawn = torch.randint(known_vocab_size(model), (SAMPLES, LENGTH), generator=torch.Generator().manual_seed(0))
    return drawn[:, :length].contiguous()


def kept_in(reader: CheckpointReader) -> Probe | None:
    """The probe of a checkpoint; None where it has none, as imported ones."""
    if TOKENS not in set(reader.keys()):
        return None
    precision = reader.manifest.config.sharding.precision
    return Probe(tokens=reader.tensor(TOKENS), logits=reader.tensor(LOGITS), precision=precision)
