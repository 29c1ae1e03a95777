"""Compares the logits of two models, both computed in fp32 on the same fixed tokens.

Why: a table of names can be wrong and still load (swapped gate and up, another order of query groups, another RoPE
base), so what is exported or imported is judged by logits, with `transformers` on one side and the Megatron model on
the other. What the training run itself computed, its probe, is replayed too: the manifest may describe another model
than trained. Neighbours: `rounding` says how far two right models may lie apart; `export` and `importing` refuse to
finish on a mismatch. Shapes: b samples, s sequence, v vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from tinyllama_mcore.checkpoint.probe import LENGTH, Probe, draw, positions
from tinyllama_mcore.config import recipes
from tinyllama_mcore.config.loop_config import CheckpointConfig, LoopConfig
from tinyllama_mcore.config.schema import DataConfig, LayoutConfig, ModelConfig, RunConfig, ShardingConfig
from tinyllama_mcore.hf import families, rounding
from tinyllama_mcore.hf.config import DTYPES
from tinyllama_mcore.model.parameters import part_names
from tinyllama_mcore.parallel.launch import quiet_third_parties

if TYPE_CHECKING:  # transformers takes seconds to import
    from transformers import PreTrainedModel

MULTIPLE = 4
"""How far two right models may lie apart, in what rounding does to one of them (`hf.rounding`): each of the two is off
by that much, and twice that is allowed. docs/evidence/hugging-face.md has what was measured, and the smallest
fault seen."""

Read = Callable[[str], torch.Tensor]
"""Logical name -> the whole tensor, fp32."""


class Mismatch(RuntimeError):
    """What was written is not what it was made of: which check failed, with its figure and bound."""


@dataclass(frozen=True, kw_only=True)
class Parity:
    """How far two models' logits lie apart."""

    largest_difference: float
    """max |a - b| over every logit."""
    logits: int
    """How many were compared."""
    rounding: float
    """What fp32 rounding does to a logit of this model: `hf.rounding.of_fp32`."""

    @property
    def bound(self) -> float:
        """The largest difference that rounding explains."""
        return MULTIPLE * self.rounding

    @property
    def holds(self) -> bool:
        """Whether the two are one model in fp32; False where a logit is not a number."""
        return self.largest_difference <= self.bound < math.inf

    def told(self) -> str:
        """The figures in words."""
        return (
            f"of {self.logits:,} logits none differs by more than {self.largest_difference:.2e}; the bound is "
            f"{self.bound:.2e}, {MULTIPLE} times what fp32 rounding changes in this model's logits"
        )


def probe_tokens(model: ModelConfig) -> torch.Tensor:
    """The probe's tokens [2, s], s at most 128, for a checkpoint that keeps none too."""
    return draw(model, min(LENGTH, model.max_position_embeddings))


def check(made: torch.Tensor, origin: torch.Tensor, rounding_of_one: float, what: str) -> Parity:
    """Compare the logits of what was made with those of what it was made of.

    Raises:
        Mismatch: they differ by more than rounding explains; the message says `what` does, and by how much.
    """
    apart = (made - origin).abs().max().item()
    parity = Parity(largest_difference=apart, logits=origin.numel(), rounding=rounding_of_one)
    if not parity.holds:
        raise Mismatch(
            f"{what} by {apart:.3g}; the bound is {parity.bound:.2g}, {MULTIPLE} times what fp32 rounding changes in "
            f"this model's logits ({parity.logits:,} compared)"
        )
    return parity


@dataclass(frozen=True, kw_only=True)
class Replay:
    """How far the exported model's logits are from those that the training run saved."""

    deviation: float
    """See `deviation`."""
    precision: str
    """The coarser of the run's and the export's."""
    rounding: float
    """Deviation that computing in that precision, rather than in a finer one, makes in this model."""

    @property
    def bound(self) -> float:
        """The largest deviation that rounding explains."""
        return MULTIPLE * self.rounding


def deviation(logits: torch.Tensor, reference: torch.Tensor) -> float:
    """Root mean square of a position's differences over the spread of its logits [b, p, v]; the largest of any."""
    return ((logits - reference).square().mean(-1).sqrt() / reference.std(-1)).max().item()


def replay(theirs: PreTrainedModel, probe: Probe, dtype: str) -> Replay:
    """Compare the logits of the probe's tokens with those that the training run kept; `dtype` is the export's.

    They are computed in fp32 from weights rounded as the run rounded them (in place). What is left is the rounding of
    the run's activations, or of the export's weights: what the coarser precision does to this model bounds both.

    Raises:
        Mismatch: the deviation is above the bound; the message names the figure.
    """
    round_weights(theirs, DTYPES[probe.precision])
    coarser = "bf16" if "bf16" in (probe.precision, dtype) else "fp32"
    kept = positions(probe.tokens.shape[1])
    logits = model_logits(theirs, probe.tokens)[:, kept]
    again = rounding.logits_in(theirs, probe.tokens, _SECOND[coarser])[:, kept]
    found = Replay(
        deviation=deviation(logits, probe.logits), precision=coarser, rounding=deviation(again, logits.double())
    )
    if not found.deviation <= found.bound < math.inf:
        raise Mismatch(
            f"the exported model's logits deviate by {found.deviation:.3g} from those that the training run saved in "
            f"the checkpoint; the bound is {found.bound:.2g}, {MULTIPLE} times what {coarser} rounding changes in this "
            f"model's logits ({logits.shape[0] * logits.shape[1]} positions compared)"
        )
    return found


_SECOND = {"fp32": torch.float64, "bf16": torch.bfloat16}
"""Precision of the evaluation that stands beside the one in fp32, to see what rounding to fp32 or bf16 does."""


def check_export(
    directory: Path, model: ModelConfig, read: Read, probe: Probe | None, dtype: str
) -> tuple[Parity, Replay | None]:
    """Hold the model in `directory`, written in `dtype`, to the training model and to the run's probe.

    It is loaded once, and gone before the training model is built: two fp32 models are never in memory together.

    Raises:
        Mismatch: one of the two differs.
    """
    tokens = probe_tokens(model)
    theirs = load_model(directory)
    logits = model_logits(theirs, tokens)
    rounded = rounding.of_fp32(theirs, tokens, logits)
    replayed = None if probe is None else replay(theirs, probe, dtype)
    del theirs
    expected = megatron_logits(model, read, tokens)
    return check(logits, expected, rounded, "the exported model's logits differ from the training model's"), replayed


def load_model(directory: Path, weights: Mapping[str, torch.Tensor] | None = None) -> PreTrainedModel:
    """The model of `directory` as transformers loads it, in fp32, on the GPU where there is one.

    With `weights`, by name, in place of the files' own.
    """
    import transformers

    config = transformers.AutoConfig.from_pretrained(directory, local_files_only=True)
    kind = getattr(transformers, families.of_config(config.to_dict(), str(directory)).architecture)
    if weights is None:
        model = kind.from_pretrained(directory, dtype=torch.float32, local_files_only=True)
    else:
        model = kind.from_pretrained(None, config=config, state_dict=dict(weights), dtype=torch.float32)
    return torch.nn.Module.to(model.eval(), "cuda" if torch.cuda.is_available() else "cpu")


@torch.no_grad()
def round_weights(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Round every weight to `dtype`, in place; they stay fp32."""
    for weight in model.parameters():
        weight.copy_(weight.to(dtype))


@torch.no_grad()
def model_logits(model: PreTrainedModel, tokens: torch.Tensor) -> torch.Tensor:
    """Logits [b, s, v], fp32 on the CPU, for tokens [b, s]."""
    return model(tokens.to(model.device)).logits.cpu()


@torch.no_grad()
def megatron_logits(model: ModelConfig, read: Read, tokens: torch.Tensor) -> torch.Tensor:
    """Logits [b, s, v] of the training model with the weights that `read` gives, in fp32, for tokens [b, s]."""
    quiet_third_parties()
    from tinyllama_mcore.model import gpt  # Megatron-core costs ten seconds to import
    from tinyllama_mcore.parallel.alone import job_of_one

    with job_of_one() as mesh:
        training_model = gpt.build(standalone_run(model), mesh).to(mesh.device).eval()
        for name, parameter in training_model.named_tensors():
            parameter.copy_(torch.cat([read(part) for part in part_names(name)]))
        local = training_model(0, tokens.to(mesh.device))
        return training_model.chunks[0].whole_logits(local).cpu()


def standalone_run(model: ModelConfig, *, tokenizer_model: str | None = None) -> RunConfig:
    """A run of one process in fp32 around a model that is only computed with, or was trained elsewhere.

    What a model does not say is that of the recipe nearest in size, with sequences that its positions hold.
    """
    _, rest = recipes.nearest(model)
    return RunConfig(
        recipe="imported",
        model=model,
        optimizer=rest.optimizer,
        batch=replace(rest.batch, seq_length=min(rest.batch.seq_length, model.max_position_embeddings)),
        layout=LayoutConfig(world_size=1),
        sharding=ShardingConfig(source="none", zero_stage=0, precision="fp32"),
        data=DataConfig(blend=(), tokenizer_model=tokenizer_model),
        checkpoint=CheckpointConfig(),
        loop=LoopConfig(),
    )
