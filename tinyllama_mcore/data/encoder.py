"""Documents to ids in bulk, as fast as is exact: gigatoken where it is installed and agrees with SentencePiece.

SentencePiece decides. At the start gigatoken has to give its ids for the whole vocabulary and for texts made to tell
tokenizers apart; while it runs, every batch has to spell as many bytes as it was given and every thousandth document is
encoded by both. Memory and time are bounded whatever the length of a document: `cuts` says where it may be cut.
Neighbours: `tokenizer` is SentencePiece, `shard` encodes with this.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from tinyllama_mcore.data.cuts import Cuts
from tinyllama_mcore.data.tokenizer import CONTROL, SPACE, UNUSED, SentencePieceTokenizer

CHECKED_ONE_IN = 1000
"""Documents of which one is encoded by SentencePiece too; the first is."""
PROOF_TEXTS = 500
"""Random texts of the proof."""
PIECES_A_TEXT = 64
"""Of the vocabulary that stand in one text of the proof, a line each."""
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

Encode = Callable[[Sequence[bytes]], tuple[np.ndarray, np.ndarray]]
"""UTF-8 texts to (ids end to end, number of ids of each text)."""


class FastEncoderDiffers(RuntimeError):
    """The fast tokenizer did not give SentencePiece's ids; the encoder that raised this leaves it from now on."""


class Encoded(NamedTuple):
    """The ids of some documents, end to end. The last may go on in the next batch."""

    ids: np.ndarray
    """Integers [sum of lengths], SentencePiece's own, without EOD."""
    lengths: np.ndarray
    """Integers [parts]: ids of each document, or part of one."""
    ends: np.ndarray
    """bool [parts]: whether the document ends there."""


class Encoder:
    """Encodes documents in batches of bounded size."""

    def __init__(self, tokenizer: SentencePieceTokenizer) -> None:
        """Prove the fast tokenizer against `tokenizer`, where it is installed."""
        self._exact = tokenizer
        self._cuts = Cuts.of(tokenizer)
        self._sizes = tokenizer.spelled_bytes()
        self._prefix = tokenizer.proto().normalizer_spec.add_dummy_prefix
        self._seen = 0
        self._fast = gigatoken_encode(tokenizer) if self._cuts.joined is not None else None
        if self._fast is not None and not agree(self._fast, tokenizer):
            self._fast = None

    @property
    def library(self) -> str:
        """What encodes: "gigatoken" or "sentencepiece"."""
        return "gigatoken" if self._fast else "sentencepiece"

    def encode(self, texts: Iterable[str]) -> Iterator[Encoded]:
        """The ids of documents that are not empty, about a megabyte of text at a time.

        Raises:
            FastEncoderDiffers: what was yielded cannot be trusted; encode all of it again.
        """
        for parts in self._cuts.batches(texts):
            ids, lengths = self._ids([part.text for part in parts])
            opened = np.flatnonzero([part.goes_on for part in parts])
            if len(opened):
                starts = (np.cumsum(lengths) - lengths)[opened]
                ids = np.delete(ids, [start + i for start in starts for i in range(self._cuts.opening_ids)])
                lengths[opened] -= self._cuts.opening_ids
            yield Encoded(ids, lengths, np.array([part.ends for part in parts]))

    def _ids(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        if self._fast is None:
            return sentencepiece_encode(self._exact, texts)
        spelled = [text.encode() for text in texts]
        ids, lengths = self._fast(spelled)
        checked = range(-self._seen % CHECKED_ONE_IN, len(texts), CHECKED_ONE_IN)
        self._seen += len(texts)
        given = sum(map(len, spelled)) - 2 * sum(text.count(SPACE) for text in texts) + self._prefix * len(texts)
        spells = int(self._sizes[ids].sum(dtype=np.int64)) == given  # U+2581 in a text is read as a space
        if spells and all(self._is_exact(texts[i], ids, lengths, i) for i in checked):
            return ids, lengths
        self._fast = None
        raise FastEncoderDiffers

    def _is_exact(self, text: str, ids: np.ndarray, lengths: np.ndarray, i: int) -> bool:
        start = int(lengths[:i].sum())
        return np.array_equal(ids[start : start + lengths[i]], self._exact.encode([text])[0])


def agree(fast: Encode, tokenizer: SentencePieceTokenizer) -> bool:
    """Whether `fast` gives SentencePiece's ids: for each piece on its own line, random texts, and `TELLING_TEXTS`.

    Nothing is joined over a newline (`Cuts`), so a piece stands alone there; SentencePiece takes a few long texts in
    a third of the time of many short ones.
    """
    pieces = [piece.replace(SPACE, " ") for piece in tokenizer.pieces]
    lines = ["\n".join(pieces[first : first + PIECES_A_TEXT]) for first in range(0, len(pieces), PIECES_A_TEXT)]
    draw = random.Random(0)
    mixed = ["".join(draw.choices(pieces, k=draw.randrange(2, 40))) for _ in range(PROOF_TEXTS)]
    texts = [*TELLING_TEXTS, *map("".join, itertools.pairwise(TELLING_TEXTS)), *lines, *mixed]
    return all(map(np.array_equal, fast([text.encode() for text in texts]), sentencepiece_encode(tokenizer, texts)))


def sentencepiece_encode(tokenizer: SentencePieceTokenizer, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """What `Encode` promises, from SentencePiece itself."""
    encoded = tokenizer.encode(texts)
    return np.concatenate([np.zeros(0, dtype=np.int32), *encoded]), np.array([len(ids) for ids in encoded])


def gigatoken_encode(tokenizer: SentencePieceTokenizer) -> Encode | None:
    """Gigatoken with the same model; None where it is not installed or cannot hold the model.

    A control piece that is spelled out in a text (`<s>`) would become the control itself (seen in 0.10.0,
    test_encoder.py shows it), so it is given a model in which these pieces are unused.
    """
    try:
        import gigatoken
    except ImportError:
        return None
    proto = tokenizer.proto()
    for piece in proto.pieces:
        if piece.type == CONTROL:
            piece.type = UNUSED
    try:
        model = gigatoken.Tokenizer.from_sentencepiece(proto.SerializeToString())
    except ValueError:
        return None

    def encode(texts: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
        rows = model.encode_batch(list(texts), parallel=False).layout
        offsets = rows.offsets.data
        return rows.content.data[offsets[0] : offsets[-1]], np.diff(offsets)

    return encode
