"""Which texts a fast byte-level tokenizer is given: those whose every character was tried with both, in normal form.

A regex asks of a character whether it is a letter, a digit or white space, and two libraries have that from two
versions of Unicode: gigatoken 0.10.0 and tokenizers 0.23.3 differ in letters of Unicode 16 and 17 (test_byte_level.py).
So each character of the input is tried once, where its class shows; a text with one that differs is encoded by the
library that decides. Neighbour: `encoder` asks here.
"""

from __future__ import annotations

import unicodedata
from typing import TYPE_CHECKING

import numpy as np

from tinyllama_mcore.preprocessing.gigatoken_model import Encode

if TYPE_CHECKING:
    from tinyllama_mcore.data.byte_level import HuggingFaceTokenizer

CONTEXTS = ("a{c}b", "12{c}345", " {c}x", "  {c}y", "{c}'s", "'{c}", "!{c}a", "{c}\n\n.{c}")
"""Where a character's class decides what stays together; `{c}` is the character."""
AT_ONCE = 32
"""Characters that are tried in one text."""
ASCII = bytes(range(128))


class Alphabet:
    """What is known of each character so far, with one tokenizer."""

    def __init__(self, tokenizer: HuggingFaceTokenizer, fast: Encode) -> None:
        """Nothing is known yet but ASCII, which the proof of `encoder` is full of."""
        self._tokenizer, self._fast = tokenizer, fast
        self._normalizes = bool(tokenizer.steps("normalizer"))
        self._same: set[str] = set()
        self._differs: set[str] = set()

    def ready(self, text: bytes) -> bytes | None:
        """What the fast tokenizer is to be given for a UTF-8 text; None where the other one has to encode it."""
        normal = self.normal(text)
        if normal is None:
            return None
        characters = set(normal.translate(None, ASCII).decode())
        if not characters <= self._same:
            self._try(characters - self._same - self._differs)
        return normal if characters.isdisjoint(self._differs) else None

    def normal(self, text: bytes) -> bytes | None:
        """A text as the tokenizer's normalizer, NFC or none, leaves it.

        None where that changes a text with an added token in it: those are cut out before, and nothing composes with
        them. That Python's Unicode is another version than the library's is no matter where it knows every character:
        normal forms are stable (Unicode Standard Annex 15, section 3).
        """
        if not self._normalizes or text.isascii():
            return text
        whole = text.decode()
        if unicodedata.is_normalized("NFC", whole):
            return text
        return None if any(token in whole for token in self._tokenizer.plain) else _nfc(whole)

    def _try(self, characters: set[str]) -> None:
        """Encode new characters by both, some at once, and one by one where those differ."""
        known = sorted(c for c in characters if not self._normalizes or unicodedata.category(c) != "Cn")
        self._differs |= characters - set(known)
        for first in range(0, len(known), AT_ONCE):
            group = known[first : first + AT_ONCE]
            good = group if self._agree(group) else [character for character in group if self._agree([character])]
            self._same.update(good)
            self._differs.update(set(group) - set(good))

    def _agree(self, characters: list[str]) -> bool:
        """Whether both give the same ids in every context."""
        tried = "\n".join(context.format(c=character) for character in characters for context in CONTEXTS)
        (exact,) = self._tokenizer.encode([tried])
        return np.array_equal(self._fast(_nfc(tried) if self._normalizes else tried.encode()), exact)


def _nfc(text: str) -> bytes:
    return unicodedata.normalize("NFC", text).encode()
