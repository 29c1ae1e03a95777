"""What a run had drawn when its present blend began, so that a blend may change without a sample being repeated.

A dataset that stays goes on at its own next sample, a new one begins at its first, and one that is left out is
remembered for the day that it comes back. Datasets are known by what is in them: files may move. A checkpoint keeps
this beside the weights of the blend; all further samples follow from both. Neighbours: `blend` draws,
`checkpoint.compatibility` decides what may change.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """How far a run has come in one dataset."""

    prefix: str
    """Where it lay."""
    fingerprint: str
    """Of its index: `PairInfo.fingerprint`."""
    token_sample: str
    """Of its tokens: `PairInfo.token_sample`."""
    samples: int
    """Drawn of it; the next one of its own order is this."""

    def is_of(self, other: Drawn) -> bool:
        """Whether both are of the same data."""
        return (self.fingerprint, self.token_sample) == (other.fingerprint, other.token_sample)


@dataclass(frozen=True, kw_only=True)
class Past:
    """Where the present blend began."""

    start: int = 0
    """Samples of the run before it: the first that it gives."""
    drawn: tuple[Drawn, ...] = ()
    """All that was ever drawn before it."""

    @classmethod
    def read(cls, order: Mapping[str, Any]) -> Past:
        """Of a checkpoint's order of samples; of one whose blend never changed, nothing."""
        return cls(start=order.get("began", 0), drawn=tuple(Drawn(**entry) for entry in order.get("drawn", ())))

    def plain(self) -> dict[str, Any]:
        """What `read` takes."""
        return {"began": self.start, "drawn": [asdict(entry) for entry in self.drawn]}

    def then(self, samples: int, blend: Sequence[Drawn]) -> Past:
        """The past of a run that drew from `blend` until it had `samples` in all."""
        before, left_out = self.of(blend)
        together = (replace(entry, samples=seen + entry.samples) for seen, entry in zip(before, blend, strict=True))
        return Past(start=samples, drawn=(*together, *left_out))

    def of(self, blend: Sequence[Drawn]) -> tuple[tuple[int, ...], tuple[Drawn, ...]]:
        """How far each dataset of a blend had been drawn, and what was drawn of others."""
        left, seen = list(self.drawn), []
        for entry in blend:
            known = next((each for each in left if each.is_of(entry)), None)
            if known is not None:
                left.remove(known)
            seen.append(known.samples if known else 0)
        return tuple(seen), tuple(left)
