"""Encodes documents in bulk: with gigatoken, where it is installed and agrees with the tokenizer's own library.

That library, SentencePiece or tokenizers, decides. At the start gigatoken has to give its ids for the whole vocabulary
and for texts made to tell tokenizers apart; while it runs, every batch has to spell as many bytes as it was given and
every thousandth document is encoded by both, and so is, with byte-level BPE, every character that occurs. Memory and
time are bounded whatever the length of a document: `text_splitter` says where it may be cut.
Neighbours: `data.tokenizer` decides, `gigatoken_model` is the fast one, `alphabet` says which texts it may have,
`shard` encodes with this.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple, cast

import numpy as np

from tinyllama_mcore.data.indexed import token_dtype
from tinyllama_mcore.data.tokenizer import SPACE, SentencePieceTokenizer, Tokenizer, spelled_bytes
from tinyllama_mcore.preprocessing.alphabet import Alphabet
from tinyllama_mcore.preprocessing.gigatoken_model import Encode, gigatoken_encode
from tinyllama_mcore.preprocessing.text_splitter import Part, cuts_of

if TYPE_CHECKING:
    from tinyllama_mcore.data.byte_level import HuggingFaceTokenizer

CHECKED_ONE_IN = 1000
"""Documents of which one is encoded by the deciding library too; the first is."""
PROOF_TEXTS = 500
"""Random texts of the proof."""
PIECES_A_TEXT = 64
"""Pieces of the vocabulary in one text of the proof, a line each."""
TELLING_TEXTS = (
    *("", " ", "  a", "a  ", "\t", "\n", "\n\n\na", " \n \n", "\r\n", "\x00", "\x00a\x00", "\x1b[0m\x7f\x80\x9f"),
    *(f"x{space * count}y" for space in " \n\t" for count in range(1, 40)),
    *("<s>", "</s>", "<unk>", "a</s>b <s> <unk>c", "<0x0A>", "<0x41>", f"a{SPACE}b", SPACE, "\ufeffx", "\ufffd"),
    *("0123456789 3.14159 1,000,000", "a" * 700, "-" * 700, "aA" * 300, "\u00e9 e\u0301", "\u200d\u200b\u00a0\u3000"),
    *("\U0001f600\U0001f468\u200d\U0001f469\u200d\U0001f467", "\U00010348\U0010ffff\U000e0001", "\u5b57\u6f22" * 99),
    *(
        "\u0627\u0644\u0639\u0631\u0628\u064a\u0629",
        "\u0939\u093f\u0928\u094d\u0926\u0940",
        "    def f(x):\n\treturn x\n",
    ),
)
"""Where tokenizers are known to differ: spaces, controls, bytes, pieces spelled out, characters of every plane."""


class FastEncoderDiffers(RuntimeError):
    """The fast tokenizer did not give the right ids; the encoder that raised this no longer uses it."""


class Encoded(NamedTuple):
    """The tokens of some documents, end to end. The last may continue in the next batch."""

    tokens: np.ndarray
    """Ids in the dtype of the pair, [n]: the library's, and EOD after each document that ends, if asked for."""
    ends: np.ndarray
    """int64: for each document that ends here, the number of tokens up to its end."""
    text_bytes: int
    """UTF-8 bytes of the texts, without those that give no token."""
    empty: int
    """Documents that end here without a token (a tokenizer that strips white space, and a text of nothing else). They
    get no EOD and are not among `ends`."""
    libraries: dict[str, int]
    """Tokens by the library that gave them; EOD counts with those of most."""


class Encoder:
    """Encodes documents in batches of bounded size. A forked process inherits it, ready and proved."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Prove the fast tokenizer against `tokenizer`, where it is installed."""
        self.tokenizer = tokenizer
        self.dtype = token_dtype(tokenizer.vocab_size)
        self._cuts = cuts_of(tokenizer)
        self._sizes = spelled_bytes(tokenizer)
        self._seen = 0
        by_bytes = not isinstance(tokenizer, SentencePieceTokenizer)
        self._fast = gigatoken_encode(tokenizer) if self._cuts.allowed or by_bytes else None
        self._ready = every = _as_it_is
        if self._fast is not None and by_bytes:
            alphabet = Alphabet(cast("HuggingFaceTokenizer", tokenizer), self._fast)
            self._ready, every = alphabet.ready, alphabet.normal
        if self._fast is not None and not agree(self._fast, tokenizer, every):
            self._fast = None

    @property
    def library(self) -> str:
        """What encodes: "gigatoken", or the library that decides, "sentencepiece" or "tokenizers"."""
        return "gigatoken" if self._fast else self.tokenizer.library

    def encode(self, texts: Iterable[str], eod: int | None = None) -> Iterator[Encoded]:
        """The tokens of documents, about a megabyte of text at a time; those without a token are skipped and counted.

        Raises:
            FastEncoderDiffers: what was yielded cannot be trusted; encode all of it again.
        """
        end = [] if eod is None else [np.array([eod], dtype=self.dtype)]
        begun = 0  # tokens so far of the document that continues
        for parts in self._cuts.batches(texts):
            spelled = [part.text.encode() for part in parts]
            given = [self._ready(text) if self._fast else None for text in spelled]
            rows = self._rows(parts, given)
            pieces, ends, written, empty = [], [], 0, []
            for number, (part, row) in enumerate(zip(parts, rows, strict=True)):
                ids = row[self._cuts.opening_ids :] if part.continues else row
                begun, written = begun + len(ids), written + len(ids)
                pieces.append(ids)
                if not part.ends:
                    continue
                if begun:
                    pieces += end
                    written += len(end)
                    ends.append(written)
                else:
                    empty.append(len(spelled[number]))
                begun = 0
            slow = sum(len(row) for row, text in zip(rows, given, strict=True) if text is None) if self._fast else 0
            encoded = Encoded(
                np.concatenate(pieces, dtype=self.dtype, casting="unsafe"),
                np.array(ends, dtype=np.int64),
                sum(map(len, spelled)) - len(self._cuts.opening) * sum(part.continues for part in parts) - sum(empty),
                len(empty),
                {self.library: written - slow} | ({self.tokenizer.library: slow} if slow else {}),
            )
            if self._fast and not (self._spells(parts, given, rows) and self._is_exact(parts, rows)):
                self._fast = None
                raise FastEncoderDiffers
            yield encoded

    def _rows(self, parts: list[Part], given: list[bytes | None]) -> list[np.ndarray]:
        """The ids of each part, openings included; those of None by the library that decides."""
        if self._fast is None:
            return self.tokenizer.encode([part.text for part in parts])
        return [
            self.tokenizer.encode([part.text])[0] if text is None else self._fast(text)
            for part, text in zip(parts, given, strict=True)
        ]

    def _spells(self, parts: list[Part], given: list[bytes | None], rows: list[np.ndarray]) -> bool:
        """Whether the fast tokenizer's ids spell as many bytes as it was given, and what is spelled beyond them."""
        due, found = 0, []
        for part, text, row in zip(parts, given, rows, strict=True):
            if text is not None:
                due += len(text) + self._cuts.extra(part.text)
                found.append(row)
        return int(self._sizes[np.concatenate(found)].sum(dtype=np.int64)) == due if found else True

    def _is_exact(self, parts: list[Part], rows: list[np.ndarray]) -> bool:
        """Whether the ids of one part in so many are the deciding library's."""
        checked = range(-self._seen % CHECKED_ONE_IN, len(parts), CHECKED_ONE_IN)
        self._seen += len(parts)
        exact = self.tokenizer.encode([parts[i].text for i in checked])
        return all(map(np.array_equal, (rows[i] for i in checked), exact))


def _as_it_is(text: bytes) -> bytes | None:
    """Any text may go to the fast tokenizer."""
    return text


def agree(fast: Encode, tokenizer: Tokenizer, ready: Callable[[bytes], bytes | None] = _as_it_is) -> bool:
    """Whether `fast` gives the library's ids: for each piece on its own line, random texts, and `TELLING_TEXTS`.

    Nothing is joined over a newline (`Cuts`), so each piece is encoded by itself there. SentencePiece takes a third of
    the time for a few long texts that it takes for many short ones. `fast` has each text as `ready` gives it; those of
    which it gives None are left out.
    """
    pieces = [spelled.decode(errors="ignore") for spelled in tokenizer.spellings()]
    lines = ["\n".join(pieces[first : first + PIECES_A_TEXT]) for first in range(0, len(pieces), PIECES_A_TEXT)]
    draw = random.Random(0)
    mixed = ["".join(draw.choices(pieces, k=draw.randrange(2, 40))) for _ in range(PROOF_TEXTS)]
    texts = [*TELLING_TEXTS, *map("".join, itertools.pairwise(TELLING_TEXTS)), *lines, *mixed]
    given = [(text, spelled) for text in texts if (spelled := ready(text.encode())) is not None]
    exact = tokenizer.encode([text for text, _ in given])
    return all(map(np.array_equal, (fast(spelled) for _, spelled in given), exact))
