"""Where a text may be cut so that its parts, encoded one by one, give the ids of the whole.

BPE only ever joins characters that stand side by side in some piece. Between two characters that do so in none, nothing
is joined, whatever stands around them, and the halves do not know each other. So a document of any length goes through
the tokenizer in parts of about a megabyte. Neighbour: `encoder`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from tinyllama_mcore.data.tokenizer import NORMAL, SPACE, USER_DEFINED, SentencePieceTokenizer

PART_CHARACTERS = 1 << 20
"""A document longer than this is cut, and a batch ends when it holds as much."""
OPENING = "\n"
"""Put before a part that goes on, in place of the space that SentencePiece puts before a text; its ids are dropped."""
BPE = 2
"""`TrainerSpec.ModelType` of sentencepiece_model.proto."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """A document, or a part of one."""

    text: str
    """With the opening, where it goes on."""
    goes_on: bool
    """Whether the document began in an earlier part."""
    ends: bool
    """Whether the document ends here."""


@dataclass(frozen=True, kw_only=True)
class Cuts:
    """What may be cut with one tokenizer."""

    joined: frozenset[str] | None
    """Pairs of characters that stand side by side in a piece. None: this model's texts cannot be cut."""
    opening_ids: int
    """Ids of the opening."""

    @classmethod
    def of(cls, tokenizer: SentencePieceTokenizer) -> Cuts:
        """Read the pairs out of the model; only BPE over unchanged text that falls back to bytes can be cut."""
        proto = tokenizer.proto()
        trainer, normalizer = proto.trainer_spec, proto.normalizer_spec
        texts = [piece.piece for piece in proto.pieces if piece.type in (NORMAL, USER_DEFINED)]
        joined = frozenset("".join(pair) for text in texts for pair in itertools.pairwise(text))
        plain = trainer.model_type == BPE and trainer.byte_fallback and not trainer.treat_whitespace_as_suffix
        unchanged = normalizer.name == "identity" and not normalizer.remove_extra_whitespaces
        opens = not any(OPENING in pair for pair in joined)
        return cls(
            joined=joined if plain and unchanged and opens else None,
            opening_ids=len(tokenizer.encode([OPENING])[0]),
        )

    def batches(self, texts: Iterable[str]) -> Iterator[list[Part]]:
        """The parts of all texts in order, in batches of one to two `PART_CHARACTERS`, unless no cut is found."""
        batch: list[Part] = []
        size = 0
        for part in itertools.chain.from_iterable(map(self.parts, texts)):
            batch.append(part)
            size += len(part.text)
            if size >= PART_CHARACTERS:
                yield batch
                batch, size = [], 0
        if batch:
            yield batch

    def parts(self, text: str) -> Iterator[Part]:
        """A text in parts."""
        start = 0
        while start < len(text):
            stop = self._cut(text, start + PART_CHARACTERS)
            opening = OPENING if start else ""
            yield Part(text=opening + text[start:stop], goes_on=start > 0, ends=stop == len(text))
            start = stop

    def _cut(self, text: str, earliest: int) -> int:
        """The first place from `earliest` on where nothing is joined; the end of the text where there is none."""
        if self.joined is None or earliest >= len(text):
            return len(text)
        before = text[earliest - 1].replace(" ", SPACE)
        for place in range(earliest, len(text)):
            after = text[place].replace(" ", SPACE)
            if before + after not in self.joined:
                return place
            before = after
        return len(text)
