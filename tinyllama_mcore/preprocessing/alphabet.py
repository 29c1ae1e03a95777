"""Which texts a fast byte-level tokenizer may be given: those whose every character was tried with both.

A regex asks of a character whether it is a letter, a digit or white space, and two libraries have that from two
versions of Unicode: gigatoken 0.10.0 and tokenizers 0.23.3 differ in letters of Unicode 16 and 17 (test_alphabet.py).
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
_JAMO = range(0x1160, 0x1200)
"""Vowels and finals of Hangul, which compose with what stands before them."""


class Alphabet:
    """What is known of each character so far, with one tokenizer."""

    def __init__(self, tokenizer: HuggingFaceTokenizer, fast: Encode) -> None:
        """Nothing is known yet but ASCII, which the proof of `encoder` is full of."""
        self._tokenizer, self._fast = tokenizer, fast
        self._normalizes = bool(tokenizer.steps("normalizer"))
        self._same: set[str] = set()
        self._composes: set[str] = set()
        """The same in both where the text is in normal form C, which marks may take it out of."""
        self._differs: set[str] = set()

    def covers(self, text: bytes) -> bool:
        """Whether both give the same ids for every character of a UTF-8 text; a new one is tried."""
        characters = set(text.translate(None, ASCII).decode())
        if characters <= self._same:
            return True
        self._try(characters - self._same - self._composes - self._differs)
        return characters.isdisjoint(self._differs) and (characters <= self._same or self.is_normal(text))

    def is_normal(self, text: bytes) -> bool:
        """Whether the tokenizer's normalizer, NFC or none, leaves a text as it is."""
        return not self._normalizes or unicodedata.is_normalized("NFC", text.decode())

    def _try(self, characters: set[str]) -> None:
        """Encode new characters by both, some at once, and one by one where those differ."""
        known = sorted(character for character in characters if self._is_known(character))
        self._differs.update(character for character in characters if not self._is_known(character))
        for first in range(0, len(known), AT_ONCE):
            group = known[first : first + AT_ONCE]
            good = group if self._agree(group) else [character for character in group if self._agree([character])]
            self._differs.update(set(group) - set(good))
            for character in good:
                (self._composes if self._may_compose(character) else self._same).add(character)

    def _agree(self, characters: list[str]) -> bool:
        """Whether both give the same ids in every context that is in the form which texts here have."""
        texts = [context.format(c=character) for character in characters for context in CONTEXTS]
        tried = "\n".join(text for text in texts if self.is_normal(text.encode()))
        (exact,) = self._tokenizer.encode([tried])
        return np.array_equal(self._fast(tried.encode()), exact)

    def _is_known(self, character: str) -> bool:
        """Whether this Python's Unicode can tell how the normalizer treats a character, and it leaves it as it is."""
        return not self._normalizes or (
            unicodedata.category(character) != "Cn" and unicodedata.is_normalized("NFC", character)
        )

    def _may_compose(self, character: str) -> bool:
        """Whether a text in which it stands may have to be composed."""
        return self._normalizes and (unicodedata.category(character)[0] == "M" or ord(character) in _JAMO)
