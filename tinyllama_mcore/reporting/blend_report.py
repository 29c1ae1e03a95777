"""What a run draws from its blend: any of its samples, decoded, with its documents; and the epochs of each dataset.

Both depend only on flags of the trainer (`blend`). Neighbour: `commands.inspect_data` is the command line.
"""

from __future__ import annotations

from dataclasses import dataclass

from tinyllama_mcore.config.schema import DataConfig
from tinyllama_mcore.data.tokenizer import Tokenizer
from tinyllama_mcore.sampling import blend


@dataclass(frozen=True, kw_only=True)
class DocumentPart:
    """What one document gives to a sample."""

    document: int
    """Position in the pair, from 0."""
    first: int
    """Token of the document with which the part begins."""
    tokens: int
    """In the part."""
    text: str


@dataclass(frozen=True, kw_only=True)
class SampleReport:
    """One training sample."""

    sample: int
    """Number of the sample in the run, from 0: consumed_samples before it is drawn."""
    prefix: str
    """The dataset that it comes from."""
    epoch: int
    """How many times that dataset was drawn to its end before."""
    position: int
    """In that epoch, from 0."""
    tokens: list[int]
    """Its ids, and the label of the last: [s + 1]."""
    parts: tuple[DocumentPart, ...]
    """The documents of which it is made, in order."""


@dataclass(frozen=True, kw_only=True)
class DatasetPlan:
    """What a run of some length draws from one dataset."""

    prefix: str
    weight: float
    """Share of the samples, in the last blend that names it."""
    tokens_per_epoch: int
    samples: int
    tokens: int
    epochs: float
    """Times that the dataset's share of --split is read."""


def samples_of(data: DataConfig, *, seq_length: int, seed: int, tokenizer: Tokenizer) -> blend.BlendedSamples:
    """The training samples of a blend."""
    samples = blend.open_blend(data, split="train", seq_length=seq_length, seed=seed, vocabulary=tokenizer.vocabulary)
    assert samples is not None  # --split always leaves a share to train on
    return samples


def sample(samples: blend.BlendedSamples, number: int, tokenizer: Tokenizer) -> SampleReport:
    """Sample `number` of a run. Builds the index of its epoch, where it is not cached yet."""
    place = samples.place(number)
    store = samples.stores[place.dataset]
    store.build(place.epoch)
    drawn = samples[number]
    tokens = [*drawn.tokens.tolist(), int(drawn.labels[-1])]
    parts, begin = [], 0
    for span in store.spans(place.epoch, place.position):
        text = tokenizer.decode(tokens[begin : begin + span.tokens])
        parts.append(DocumentPart(**span._asdict(), text=text))
        begin += span.tokens
    return SampleReport(
        sample=number,
        prefix=store.prefix,
        epoch=place.epoch,
        position=place.position,
        tokens=tokens,
        parts=tuple(parts),
    )


def plan(tokens: int, samples: blend.BlendedSamples) -> tuple[DatasetPlan, ...]:
    """What a run of so many tokens draws from each dataset: whole samples, so that `tokens` are reached."""
    phases = samples.phases
    weights = {column: w for p in phases for column, w in zip(p.columns, p.pattern.weights, strict=True)}
    seq_length = samples.stores[0].seq_length
    drawn = samples.consumed(-(-tokens // seq_length))
    return tuple(
        DatasetPlan(
            prefix=store.prefix,
            weight=weights[column],
            tokens_per_epoch=store.samples_per_epoch * seq_length,
            samples=drawn[store.prefix],
            tokens=drawn[store.prefix] * seq_length,
            epochs=drawn[store.prefix] / store.samples_per_epoch,
        )
        for column, store in enumerate(samples.stores)
    )
