"""Where a text may be cut so that its parts, encoded one by one, give the ids of the whole.

BPE only ever joins characters that stand side by side in some piece. Between two characters that do so in none, nothing
is joined, whatever stands around them, and the halves do not know each other. Byte-level BPE joins nothing across two
matches of its regex, and no known one has a match with a letter and white space after it. So a document of any length
goes through the tokenizer in parts of about a megabyte. Neighbour: `encoder`.
"""

from __future__ import annotations

import functools
import itertools
import string
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from tinyllama_mcore.data.tokenizer import BPE, NORMAL, SPACE, USER_DEFINED, SentencePieceTokenizer, Tokenizer

if TYPE_CHECKING:
    from tinyllama_mcore.data.byte_level import HuggingFaceTokenizer

PART_CHARACTERS = 1 << 20
"""A document longer than this is cut, and a batch ends when it holds as much."""
OPENING = "\n"
"""Put before a later part, in place of the space that SentencePiece puts before a text; its ids are dropped."""
REGEXES = frozenset(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
    + digits
    + r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    for digits in (r"\p{N}{1,3}", r"\p{N}")
)
"""Regexes of Llama-3 (three digits at most) and Qwen (one), in which no match goes on from a letter to white space."""


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
    """What may be cut with one tokenizer: with SentencePiece's here, with others in `ByteLevelCuts`."""

    opening = OPENING
    """What a later part begins with."""

    def __init__(self, tokenizer: SentencePieceTokenizer) -> None:
        """Read what kind of model it is; only BPE over unchanged text that falls back to bytes can be cut."""
        trainer, normalizer = tokenizer.proto.trainer_spec, tokenizer.proto.normalizer_spec
        plain = trainer.model_type == BPE and trainer.byte_fallback and not trainer.treat_whitespace_as_suffix
        unchanged = normalizer.name == "identity" and not normalizer.remove_extra_whitespaces
        self._prefix = normalizer.add_dummy_prefix
        self._pieces = [piece.piece for piece in tokenizer.proto.pieces if piece.type in (NORMAL, USER_DEFINED)]
        self.allowed = plain and unchanged and not any(OPENING in piece for piece in self._pieces if piece != OPENING)
        """Whether texts may be cut at all."""
        self.opening_ids = len(tokenizer.encode([OPENING])[0])
        """Ids of the opening."""

    def extra(self, text: str) -> int:
        """Bytes that the ids of a text spell beyond its own: a space before it, and U+2581 is read as a space."""
        return self._prefix - 2 * text.count(SPACE)

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
            opening = self.opening if start else ""
            yield Part(text=opening + text[start:stop], continues=start > 0, ends=stop == len(text))
            start = stop

    def _cut(self, text: str, earliest: int) -> int:
        """The first place from `earliest` on where nothing is joined; the end of the text where there is none."""
        if not self.allowed or earliest >= len(text):
            return len(text)
        return next(
            (place for place in range(earliest, len(text)) if self._parted(text[place - 1], text[place])), len(text)
        )

    def _parted(self, before: str, after: str) -> bool:
        """Whether nothing is joined between two characters."""
        return before.replace(" ", SPACE) + after.replace(" ", SPACE) not in self.joined


class ByteLevelCuts(Cuts):
    """Cuts between an ASCII letter and white space after it, where the regex is a known one."""

    opening = ""

    def __init__(self, tokenizer: HuggingFaceTokenizer) -> None:
        """Read how texts are taken apart; nothing is known of other regexes and of added tokens that look around."""
        added = tokenizer.content["added_tokens"]
        self.allowed = (
            _is_known(tokenizer.steps("pre_tokenizer"))
            and tokenizer.normalizes_to_nfc_at_most
            and not any(token[flag] for token in added for flag in ("single_word", "lstrip", "rstrip"))
            and not any(self._parted(*pair) for token in added for pair in itertools.pairwise(token["content"]))
        )
        self.opening_ids = 0

    def extra(self, text: str) -> int:
        """Bytes that the ids of a text spell beyond its own."""
        return 0

    def _parted(self, before: str, after: str) -> bool:
        return before in _LETTERS and after in _WHITE


_LETTERS, _WHITE = frozenset(string.ascii_letters), frozenset(" \n\t\r")


def _is_known(steps: list[dict[str, Any]]) -> bool:
    """Whether these are the steps of GPT-2, or one of `REGEXES` and bytes."""
    *split, last = steps
    if last.get("type") != "ByteLevel" or last.get("add_prefix_space"):
        return False
    if not split:
        return last.get("use_regex", True)
    return (
        len(split) == 1
        and not last.get("use_regex", True)
        and split[0].get("type") == "Split"
        and split[0].get("behavior") == "Isolated"
        and not split[0].get("invert")
        and split[0].get("pattern", {}).get("Regex") in REGEXES
    )


def cuts_of(tokenizer: Tokenizer) -> Cuts:
    """What may be cut with a tokenizer."""
    if isinstance(tokenizer, SentencePieceTokenizer):
        return Cuts(tokenizer)
    return ByteLevelCuts(cast("HuggingFaceTokenizer", tokenizer))
