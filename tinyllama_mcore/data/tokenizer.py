"""What every tokenizer answers, the vocabulary that data, tokenizer and model have to agree on, and SentencePiece's.

Ids are the library's own; nothing is added to them here (EOD is `preprocess`'s affair, BOS is never written).
Neighbours: `byte_level` is Hugging Face's kind, `tokenizer_files` opens the one that a path names, `encoder` makes them
fast, `receipt` records the vocabulary, `blend` hands the vocabulary to Megatron.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import sentencepiece

from tinyllama_mcore.config.errors import ConfigError

SPACE = "\u2581"
"""How pieces spell a space."""
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
"""`SentencePiece.Type` of sentencepiece_model.proto."""
NO_TEXT = (UNKNOWN, CONTROL, UNUSED)
End = str | Mapping[str, int] | None
"""What ends a document: a special token by its text; or by its id, for each `Vocabulary.sha256` of which a receipt or a
checkpoint says so; None, and a checksum that is not there: what the tokenizer itself says."""
BPE = 2
"""`TrainerSpec.ModelType` of sentencepiece_model.proto."""


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """What tokens mean. It stands in for Megatron's `GPTDatasetConfig.tokenizer`, which only asks for these names."""

    vocab_size: int
    """Ids, v; every token id is below it."""
    eod: int
    """Id that ends a document (`</s>`, `<|endoftext|>`, `<|end_of_text|>`)."""
    sha256: str
    """Checksum of a tokenizer.model, and of what decides the ids in a tokenizer.json."""

    @property
    def pad(self) -> int:
        """Megatron masks this id out of the loss; -1 is none, since samples here are always full."""
        return -1

    @property
    def unique_identifiers(self) -> dict[str, int | str]:
        """What Megatron writes into its description of a dataset."""
        return asdict(self)


class Tokenizer(Protocol):
    """What data, inspection and export ask of a tokenizer of either kind."""

    path: str
    """Its file."""
    library: str
    """What decides its ids: "sentencepiece" or "tokenizers"."""
    vocabulary: Vocabulary

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know before texts are encoded."""

    @property
    def vocab_size(self) -> int:
        """Ids, v."""

    @property
    def bos(self) -> int:
        """Id that begins a document in other people's data, never written here; -1: none but EOD."""

    @property
    def eod(self) -> int:
        """Id that ends a document."""

    @property
    def unk(self) -> int:
        """Id of what no other piece spells; -1: none."""

    def token(self, number: int) -> str:
        """How an id is spelled."""

    def spellings(self) -> list[bytes]:
        """The text that each id stands for, in UTF-8; empty for what is no text."""

    def written(self, text: str) -> str:
        """A text as `spellings` spell it."""

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """The ids of each text, int32 [tokens], with neither BOS nor EOS. A text must be valid Unicode."""

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """The text of some ids; what ends or begins a document has none."""


def spelled_bytes(tokenizer: Tokenizer) -> np.ndarray:
    """UTF-8 bytes of text that each id stands for, uint16 [v]; 0 for what is no text."""
    return np.array([len(spelled) for spelled in tokenizer.spellings()], dtype=np.uint16)


class SentencePieceTokenizer:
    """A SentencePiece model file (`tokenizer.model`), as Llama's is."""

    library = "sentencepiece"
    notes: tuple[str, ...] = ()

    def __init__(self, path: str | Path, eod: End = None) -> None:
        """Load the model at `path`; ConfigError if it is missing, broken or has no piece that ends a document."""
        self.path = str(path)
        try:
            self._file = model = Path(path).read_bytes()
        except OSError as error:
            raise ConfigError(f"--tokenizer-model {path}: cannot be read ({error.strerror})") from None
        try:
            self._model = sentencepiece.SentencePieceProcessor(model_proto=model)
        except RuntimeError:
            raise ConfigError(
                f"--tokenizer-model {path}: not a SentencePiece model ({len(model)} bytes); give a tokenizer.model file"
            ) from None
        sha256 = hashlib.sha256(model).hexdigest()
        self.vocabulary = Vocabulary(vocab_size=self._model.vocab_size(), eod=self._eod(eod, sha256), sha256=sha256)

    def _eod(self, asked: End, sha256: str) -> int:
        """The id of the piece that ends a document. ConfigError where there is none, or it is text."""
        if not isinstance(asked, str):
            token = (asked or {}).get(sha256, self._model.eos_id())
            if token < 0:
                raise ConfigError(
                    f"--tokenizer-model {self.path}: has no </s> piece, which ends each document; name another control "
                    "piece with --eod-token"
                )
            return token
        token = self._model.piece_to_id(asked)
        if not self._model.is_control(token):
            controls = filter(self._model.is_control, range(self._model.vocab_size()))
            raise ConfigError(
                f"--eod-token {asked}: is no control piece of {self.path}, and a text could give its id; those are "
                f"{', '.join(map(self._model.id_to_piece, controls))}"
            )
        return token

    @property
    def vocab_size(self) -> int:
        """Pieces, v."""
        return self.vocabulary.vocab_size

    @property
    def bos(self) -> int:
        """Id of `<s>`, which is never written into data; -1 where the model has none."""
        return self._model.bos_id()

    @property
    def eod(self) -> int:
        """Id that ends a document."""
        return self.vocabulary.eod

    @property
    def unk(self) -> int:
        """Id of what no other piece spells."""
        return self._model.unk_id()

    def token(self, number: int) -> str:
        """How an id is spelled."""
        return self._model.id_to_piece(number)

    @property
    def pieces(self) -> list[str]:
        """How each id is spelled, [v]; a space as U+2581."""
        return [self._model.id_to_piece(token) for token in range(self.vocab_size)]

    def spellings(self) -> list[bytes]:
        """The text that each id stands for, in UTF-8; empty for what is no text. A byte piece is its byte."""
        return [
            bytes([int(piece.piece[3:-1], 16)])  # <0x0A>
            if piece.type == BYTE
            else b""
            if piece.type in NO_TEXT
            else piece.piece.replace(SPACE, " ").encode()
            for piece in self.proto.pieces
        ]

    def written(self, text: str) -> str:
        """SentencePiece reads U+2581 as a space."""
        return text.replace(SPACE, " ")

    @functools.cached_property
    def proto(self) -> Any:  # noqa: ANN401
        """The model file as SentencePiece's own `ModelProto`; only read it."""
        from sentencepiece import sentencepiece_model_pb2

        proto = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]
        proto.ParseFromString(self._file)
        return proto

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """The ids of each text, int32 [tokens], with neither BOS nor EOS. A text must be valid Unicode."""
        encoded = self._model.encode(list(texts), out_type=int, num_threads=1)
        return [np.array(ids, dtype=np.int32) for ids in encoded]

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """The text of some ids; control pieces such as `</s>` have none."""
        return self._model.decode([int(token) for token in ids])
