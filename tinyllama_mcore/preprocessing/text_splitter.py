"""Where a text may be cut so that its parts, encoded one by one, give the ids of the whole.

BPE only ever joins characters that stand side by side in some piece. Between two characters that do so in none, nothing
is joined, whatever stands around them, and the halves do not know each other. So a document of any length goes through
the tokenizer in parts of about a megabyte. Neighbour: `encoder`.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from tinyllama_mcore.data.tokenizer import BPE, NORMAL, SPACE, USER_DEFINED, SentencePieceTokenizer

PART_CHARACTERS = 1 << 20
"""A document longer than this is cut, and a batch ends when it holds as much."""
OPENING = "\n"
"""Put before a later part, in place of the space that SentencePiece puts before a text; its ids are dropped."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """A document, or a part of one."""

    text: str
    """With the opening, in a later part."""
    continues: bool
    """Whether the document began in an earlier part."""
    ends: bool
    """Whether the document ends here."""


class Cuts:
    """What may be cut with one tokenizer."""

    def __init__(self, tokenizer: SentencePieceTokenizer) -> None:
        """Read what kind of model it is; only BPE over unchanged text that falls back to bytes can be cut."""
        trainer, normalizer = tokenizer.proto.trainer_spec, tokenizer.proto.normalizer_spec
        plain = trainer.model_type == BPE and trainer.byte_fallback and not trainer.treat_whitespace_as_suffix
        unchanged = normalizer.name == "identity" and not normalizer.remove_extra_whitespaces
        self._pieces = [piece.piece for piece in tokenizer.proto.pieces if piece.type in (NORMAL, USER_DEFINED)]
        self.allowed = plain and unchanged and not any(OPENING in piece for piece in self._pieces if piece != OPENING)
        """Whether texts may be cut at all."""
        self.opening_ids = len(tokenizer.encode([OPENING])[0])
        """Ids of the opening."""

    @functools.cached_property
    def joined(self) -> frozenset[str]:
        """Pairs of characters that stand side by side in a piece; first read for a text that is longer than a part."""
        return frozenset("".join(pair) for piece in self._pieces for pair in itertools.pairwise(piece))

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
            yield Part(text=opening + text[start:stop], continues=start > 0, ends=stop == len(text))
            start = stop

    def _cut(self, text: str, earliest: int) -> int:
        """The first place from `earliest` on where nothing is joined; the end of the text where there is none."""
        if not self.allowed or earliest >= len(text):
            return len(text)
        before = text[earliest - 1].replace(" ", SPACE)
        for place in range(earliest, len(text)):
            after = text[place].replace(" ", SPACE)
            if before + after not in self.joined:
                return place
            before = after
        return len(text)
