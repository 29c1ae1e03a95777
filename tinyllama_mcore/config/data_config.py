"""Where samples come from: the part of the schema that data, sampling and inspection take.

Neighbour: `schema` has the other parts, and the run that they make.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from tinyllama_mcore.config.batch_sizes import BatchSizes

Blend = tuple[tuple[float, str], ...]
"""(weight, dataset prefix) of each dataset."""


@dataclass(frozen=True, kw_only=True)
class LaterBlend:
    """A blend that takes the place of the one before in the middle of a run."""

    first_sample: int
    """Number of its first sample among those of the run, from 0."""
    blend: Blend
    iteration: int | None = None
    """Iterations before it, where it was planned by them: `first_sample` then follows from the run's batches."""

    def after(self, sizes: BatchSizes) -> int:
        """Iterations before it; where it was planned by a sample, those of the run that are over by then."""
        return sizes.iterations_within(self.first_sample) if self.iteration is None else self.iteration


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where samples come from. The order of samples depends only on these and the seed."""

    blend: Blend
    """(weight, prefix of a .bin/.idx pair) for each dataset; weights add up to 1 and are shares of samples."""
    split: Annotated[
        tuple[float, float, float], "shares of each dataset's documents for training, validation and test"
    ] = (99.0, 1.0, 0.0)
    later_blends: tuple[LaterBlend, ...] = ()
    """Those that follow `blend`, in their order."""
    valid_blend: Blend = ()
    """As `blend`, for separate validation datasets; all of `blend` is then trained on."""
    tokenizer_model: Annotated[
        str | None, "tokenizer that made the data: a SentencePiece model, a tokenizer.json, or a directory with one"
    ] = None
    tokenizer_type: str | None = None
    """Kind of `tokenizer_model`: a name of `tokenizer_types.TYPES`; None: by the file."""
    eod_token: Annotated[str | None, "special token that ends a document"] = None
    eod: int | None = None
    """Its id, filled in when the data are opened."""
    inter_document_masking: Annotated[
        bool,
        "mask attention between the documents of a sample, and start positions at 0 in each; the paper does neither",
    ] = False
    cache_dir: Annotated[str | None, "directory that sample indices are cached in"] = None
