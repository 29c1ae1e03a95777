"""The order of a run's samples: the rules and the blend that it follows from, and what was drawn before the blend.

A checkpoint keeps it, and a run that resumes has to have the same. The rules never change. The blend may, where the
user allows it: a dataset that stays continues at its own next sample, a new one begins at its first, and of one that is
dropped the position is kept in case it comes back. Datasets are identified by their content, because files move.
Neighbours: `blend` draws samples by it, `checkpoint.compatibility` compares a checkpoint's with a run's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """A dataset of a blend."""

    prefix: str
    """Path of its two files, without `.bin` and `.idx`."""
    fingerprint: str
    """Names the content of its index: `PairInfo.fingerprint`."""
    token_sample: str
    """Names the content of its tokens: `PairInfo.token_sample`."""

    def has_content_of(self, other: Dataset) -> bool:
        """Whether both are the same data, wherever they lie."""
        return (self.fingerprint, self.token_sample) == (other.fingerprint, other.token_sample)


@dataclass(frozen=True, kw_only=True)
class Drawn(Dataset):
    """How far a run has come in a dataset."""

    samples: int
    """Samples drawn; the next one of the dataset's own order has this number."""


@dataclass(frozen=True, kw_only=True)
class BlendHistory:
    """What a run drew before its present blend began."""

    start: int = 0
    """Samples of the run before the blend: the number of its first one."""
    drawn: tuple[Drawn, ...] = ()
    """Everything ever drawn before it."""

    def extended(self, end: int, drawn: Sequence[Drawn]) -> BlendHistory:
        """The history at sample `end` of a run that has since drawn `drawn` from its blend."""
        before, dropped = self.split(drawn)
        together = (replace(entry, samples=seen + entry.samples) for seen, entry in zip(before, drawn, strict=True))
        return BlendHistory(start=end, drawn=(*together, *dropped))

    def split(self, blend: Sequence[Dataset]) -> tuple[tuple[int, ...], tuple[Drawn, ...]]:
        """Samples drawn of each dataset of `blend`, and what was drawn of others."""
        left, seen = list(self.drawn), []
        for dataset in blend:
            known = next((entry for entry in left if entry.has_content_of(dataset)), None)
            if known is not None:
                left.remove(known)
            seen.append(known.samples if known else 0)
        return tuple(seen), tuple(left)


@dataclass(frozen=True, kw_only=True)
class SampleOrder:
    """Everything that decides which tokens sample number i of a run holds."""

    seed: int
    """Seed of each epoch's shuffle."""
    seq_length: int
    """Tokens of a sample."""
    split: tuple[float, ...]
    """Shares of the documents that are trained on, validated on and tested on."""
    tokenizer_sha256: str
    """Checksum of the tokenizer that made the data."""
    inter_document_masking: bool
    """Whether tokens see only their own document."""
    weights: tuple[float, ...]
    """Shares of the blend."""
    datasets: tuple[Dataset, ...]
    """Datasets of the blend, in the order of `weights`."""
    history: BlendHistory = BlendHistory()
    """What was drawn before this blend."""

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> SampleOrder:
        """The order that `to_plain` wrote. KeyError or TypeError for anything else."""
        columns = zip(plain["prefixes"], plain["datasets"], plain["tokens"], strict=True)
        drawn = tuple(Drawn(**entry) for entry in plain.get("drawn", ()))
        return cls(
            **{field: plain[key] for field, key in _RULES.items()},
            split=tuple(plain["split"]),
            weights=tuple(plain["weights"]),
            datasets=tuple(Dataset(prefix=p, fingerprint=f, token_sample=t) for p, f, t in columns),
            history=BlendHistory(start=plain.get("began", 0), drawn=drawn),
        )

    def to_plain(self) -> dict[str, Any]:
        """The order as a checkpoint's manifest holds it."""
        return {
            **{key: getattr(self, field) for field, key in _RULES.items()},
            "split": list(self.split),
            "weights": list(self.weights),
            "prefixes": [dataset.prefix for dataset in self.datasets],
            "datasets": [dataset.fingerprint for dataset in self.datasets],
            "tokens": [dataset.token_sample for dataset in self.datasets],
            "began": self.history.start,
            "drawn": [asdict(entry) for entry in self.history.drawn],
        }

    def other_rules(self, saved: SampleOrder) -> list[str]:
        """What differs from `saved` and may not, in words: anything but the blend and its history."""
        there, here = saved.to_plain(), self.to_plain()
        return [
            f"{key} is {there[key]} in the checkpoint and {here[key]} in this command"
            for key in (*_RULES.values(), "split")
            if there[key] != here[key]
        ]


_RULES = {
    "seed": "seed",
    "seq_length": "sequence length",
    "tokenizer_sha256": "tokenizer",
    "inter_document_masking": "inter-document masking",
}
"""Field -> its key in a manifest, and its name in messages."""
