"""Do two models compute the same? Both run in fp32 on the same fixed tokens.

Why: a table of names can be wrong and still load (swapped gate and up, another order of query groups, another RoPE
base), so what is exported or imported is judged by logits, with `transformers` on one side and the Megatron model on
the other. What the training run itself computed, its probe, is replayed too: the manifest may describe another model
than trained. Neighbours: `export` and `importing` refuse to finish on a mismatch. Shapes: b samples, s sequence, v
vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from tinyllama_mcore.checkpoint.probe import LENGTH, Probe, draw, positions
from tinyllama_mcore.config.recipes import RECIPES
from tinyllama_mcore.config.schema import (
    CheckpointConfig,
    DataConfig,
    LayoutConfig,
    LoopConfig,
    ModelConfig,
    RunConfig,
    ShardingConfig,
)
from tinyllama_mcore.hf.config import DTYPES
from tinyllama_mcore.model.parameters import part_names
from tinyllama_mcore.parallel.launch import quiet_third_parties

if TYPE_CHECKING:  # transformers takes seconds to import
    from transformers import LlamaForCausalLM

TOLERANCE = 1e-5
"""Largest difference of two logits. On a CPU the 1.1B model shows 0.0: both sides make the same torch calls."""

PROBE_TOLERANCE = {"fp32": 1e-5, "bf16": 0.05}
"""Largest deviation of the probe, by the coarser of the run's precision and the export's: see `Replay`.

docs/checkpoints.md has what was measured. In fp32 layouts add in another order, a bf16 run rounds activations."""

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

    @property
    def holds(self) -> bool:
        """Whether the two are one model in fp32; False where a logit is not a number."""
        return self.largest_difference <= TOLERANCE


def probe_tokens(model: ModelConfig) -> torch.Tensor:
    """The probe's tokens [2, s], s at most 128, for a checkpoint that keeps none too."""
    return draw(model, min(LENGTH, model.max_position_embeddings))


def check(made: torch.Tensor, origin: torch.Tensor, what: str) -> Parity:
    """Compare the logits of what was made with those of what it was made of.

    Raises:
        Mismatch: they differ by more than `TOLERANCE`; the message says `what` does, and by how much.
    """
    parity = Parity(largest_difference=(made - origin).abs().max().item(), logits=origin.numel())
    if not parity.holds:
        raise Mismatch(
            f"{what} by {parity.largest_difference:.3g}; the bound is {TOLERANCE:.0e} (fp32, {parity.logits:,} logits)"
        )
    return parity


@dataclass(frozen=True, kw_only=True)
class Replay:
    """How far the exported model is from what the training run computed."""

    deviation: float
    """Root mean square of a position's differences over the spread of its logits, the largest of any position."""
    precision: str
    """The coarser of the run's and the export's."""

    @property
    def bound(self) -> float:
        """The largest deviation that its precision explains."""
        return PROBE_TOLERANCE[self.precision]


def replay(logits: torch.Tensor, probe: Probe, dtype: str) -> Replay:
    """Compare logits [b, s, v] of the probe's tokens with those that the training run kept; `dtype` is the export's.

    They are computed in fp32, with weights rounded as the run rounded them: what is left is the rounding of the run's
    activations.

    Raises:
        Mismatch: the deviation is above the bound; the message names the figure.
    """
    kept = logits[:, positions(probe.tokens.shape[1])]
    apart = (kept - probe.logits).square().mean(-1).sqrt() / probe.logits.std(-1)
    coarser = "bf16" if "bf16" in (probe.precision, dtype) else "fp32"
    found = Replay(deviation=apart.max().item(), precision=coarser)
    if not found.deviation <= found.bound:
        raise Mismatch(
            f"the exported model's logits deviate from those that the training run kept by {found.deviation:.3g}; the "
            f"bound is {found.bound:g} ({coarser}, {probe.logits.shape[0] * probe.logits.shape[1]} positions)"
        )
    return found


def check_export(
    directory: Path, model: ModelConfig, read: Read, probe: Probe | None, dtype: str
) -> tuple[Parity, Replay | None]:
    """Hold the LlamaForCausalLM in `directory`, written in `dtype`, to the training model and to the run's probe.

    It is loaded once, and gone before the training model is built: two fp32 models are never in memory together.

    Raises:
        Mismatch: one of the two differs.
    """
    tokens = probe_tokens(model)
    llama = load_llama(directory)
    logits, replayed = llama_logits(llama, tokens), None
    if probe is not None:
        round_weights(llama, DTYPES[probe.precision])
        replayed = replay(llama_logits(llama, probe.tokens), probe, dtype)
    del llama
    expected = megatron_logits(model, read, tokens)
    return check(logits, expected, "the exported model's logits differ from the training model's"), replayed


def load_llama(directory: Path, weights: Mapping[str, torch.Tensor] | None = None) -> LlamaForCausalLM:
    """The model of `directory` as transformers loads it, in fp32, on the GPU where there is one.

    With `weights`, by name, in place of the files' own.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    if weights is None:
        llama = LlamaForCausalLM.from_pretrained(directory, dtype=torch.float32, local_files_only=True)
    else:
        config = LlamaConfig.from_pretrained(directory, local_files_only=True)
        llama = LlamaForCausalLM.from_pretrained(None, config=config, state_dict=dict(weights), dtype=torch.float32)
    return torch.nn.Module.to(llama.eval(), "cuda" if torch.cuda.is_available() else "cpu")


@torch.no_grad()
def round_weights(llama: LlamaForCausalLM, dtype: torch.dtype) -> None:
    """Round every weight to `dtype`, in place; they stay fp32."""
    for weight in llama.parameters():
        weight.copy_(weight.to(dtype))


@torch.no_grad()
def llama_logits(llama: LlamaForCausalLM, tokens: torch.Tensor) -> torch.Tensor:
    """Logits [b, s, v], fp32 on the CPU, for tokens [b, s]."""
    return llama(tokens.to(llama.device)).logits.cpu()


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
    """A run of one process in fp32 around a model that is only computed with, or was trained elsewhere."""
    rest = RECIPES["tinyllama-debug"]
    return RunConfig(
        recipe="imported",
        model=model,
        optimizer=rest.optimizer,
        batch=rest.batch,
        layout=LayoutConfig(world_size=1),
        sharding=ShardingConfig(source="none", zero_stage=0, precision="fp32"),
        data=DataConfig(blend=(), tokenizer_model=tokenizer_model),
        checkpoint=CheckpointConfig(),
        loop=LoopConfig(),
    )
