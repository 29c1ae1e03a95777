"""A `tokenizer.json` of Hugging Face's that is byte-level BPE, as GPT-2's, Llama-3's and Qwen's are.

Ids are those of the `tokenizers` library with special tokens read as text: no document can spell the id that ends it.
What the library would take in silence and read otherwise than it is written is refused here. Neighbours:
`tokenizer_content` reads the file and judges it, `tokenizer` says what every tokenizer answers, `tokenizer_files` opens
either kind.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from tinyllama_mcore.config.errors import ConfigError
from tinyllama_mcore.data import tokenizer_content
from tinyllama_mcore.data.tokenizer import End, Vocabulary
from tinyllama_mcore.data.tokenizer_content import BYTES, Json

CONFIG, ROLES = "tokenizer_config.json", "special_tokens_map.json"
"""Beside tokenizer.json: which special token has which role."""
_SPELLED = {ord(char): byte for char, byte in BYTES.items()}
ENDS = ("</s>", "<|endoftext|>", "<|end_of_text|>")
"""Special tokens that end a document wherever they are known; chat formats end a turn with others."""


class HuggingFaceTokenizer:
    """A tokenizer.json. See the `Tokenizer` of `data.tokenizer` for what is not described here."""

    library = "tokenizers"

    def __init__(self, path: str | Path, eod: End = None) -> None:
        """Load the file at `path`.

        Args:
            path: a tokenizer.json; its tokenizer_config.json, where there is one, lies beside it.
            eod: what ends a document; None: the special token that the two files name.

        Raises:
            ConfigError: it cannot be read, is no byte-level BPE, does not say plainly which id a token has, or which
                one ends a document.
        """
        self.path = str(path)
        self.content = tokenizer_content.read(Path(path))
        """What the file says."""
        self.ids = tokenizer_content.ids(self.content, self.path)
        """Token -> id, added ones included."""
        self._tokenizer = tokenizer_content.loaded(self.content, self.path)
        self.special = {token["content"]: token["id"] for token in self.content["added_tokens"] if token["special"]}
        """Special tokens, which no text gives -> id."""
        self.config = {
            key: said for name in (ROLES, CONFIG) for key, said in _config(Path(path).with_name(name)).items()
        }
        """What special_tokens_map.json and tokenizer_config.json say; empty where there is neither."""
        sha256 = tokenizer_content.checksum(self.content)
        self.vocabulary = Vocabulary(vocab_size=max(self.ids.values()) + 1, eod=self._eod(eod, sha256), sha256=sha256)
        if self.eod in self._tokenizer.encode(self.token(self.eod), add_special_tokens=False).ids:
            raise ConfigError(
                f"--tokenizer-model {path}: the text {self.token(self.eod)!r} gives the id that ends a document, "
                f"{self.eod}, though it is a special token: name another one with --eod-token"
            )

    def _eod(self, asked: End, sha256: str) -> int:
        """The id that ends a document. ConfigError where nothing, or more than one thing, says which."""
        if isinstance(asked, str):
            if asked not in self.special:
                raise ConfigError(
                    f"--eod-token {asked}: is no special token of {self.path}, and a text could give its id; those are "
                    f"{_listed(self.special)}"
                )
            return self.special[asked]
        if asked and sha256 in asked:
            return asked[sha256]
        said = self.role("eos")
        ends = [token for token in ENDS if token in self.special]
        if said is not None and (said in ENDS or not ends):
            return self.special[said]
        if said is None and len(ends) == 1:
            return self.special[ends[0]]
        names = f"{CONFIG} names {said} as eos_token, and it has {' and '.join(ends)} too" if said else f"no {CONFIG}"
        raise ConfigError(
            f"--tokenizer-model {self.path}: which special token ends a document is not plain ("
            f"{names if said or not self.config else 'its config names none'}): name it with --eod-token, one of "
            f"{_listed(dict.fromkeys([*ends, *([said] if said else []), *self.special]))}"
        )

    def role(self, name: str) -> str | None:
        """The special token that has a role ("bos", "eos", "pad", "unk") in tokenizer_config.json; None: none has."""
        said = self.config.get(f"{name}_token")
        text = said.get("content") if isinstance(said, dict) else said
        return text if text in self.special else None

    @property
    def vocab_size(self) -> int:
        """The largest id and one, v."""
        return self.vocabulary.vocab_size

    @property
    def eod(self) -> int:
        """Id that ends a document."""
        return self.vocabulary.eod

    @property
    def bos(self) -> int:
        """Id of bos_token; -1 where there is none, or where EOD is that too, as GPT-2's."""
        token = self.special.get(self.role("bos") or "", -1)
        return -1 if token == self.eod else token

    @property
    def unk(self) -> int:
        """Id of the model's unk_token; -1 where bytes spell everything."""
        return self.ids.get(self.content["model"].get("unk_token") or "", -1)

    @property
    def notes(self) -> tuple[str, ...]:
        """The bytes that have no token: the library drops them from a text without a word."""
        missing = [byte for char, byte in BYTES.items() if char not in self.ids]
        if not missing or self.unk >= 0:
            return ()
        return (
            f"--tokenizer-model {self.path}: {len(missing)} of the 256 bytes have no token (the first is "
            f"0x{min(missing):02X}), and texts lose them; train the tokenizer with ByteLevel.alphabet()",
        )

    def steps(self, part: str) -> list[Json]:
        """The steps of its "normalizer" or its "pre_tokenizer", in order."""
        return tokenizer_content.steps(self.content.get(part), {"normalizer": "normalizers"}.get(part, "pretokenizers"))

    @property
    def normalizes_to_nfc_at_most(self) -> bool:
        """Whether a text that is in Unicode's normal form C stays as it is."""
        return all(step.get("type") == "NFC" for step in self.steps("normalizer"))

    def token(self, number: int) -> str:
        """The token of an id."""
        return self._tokenizer.id_to_token(number) or ""

    @functools.cached_property
    def plain(self) -> dict[str, int]:
        """Added tokens that are not special -> id: a text that holds one gives its id."""
        return {token["content"]: token["id"] for token in self.content["added_tokens"] if not token["special"]}

    def spellings(self) -> list[bytes]:
        """The text that each id stands for, in UTF-8; empty for special tokens."""
        found = [b""] * self.vocab_size
        for text, token in self.ids.items():
            if text in self.plain:
                found[token] = text.encode()
            elif text not in self.special:
                found[token] = text.translate(_SPELLED).encode("latin-1", errors="ignore")
        return found

    def written(self, text: str) -> str:
        """A text as it is: bytes spell it."""
        return text

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """The ids of each text, int32 [tokens]. One by one: the library's batches start threads, which forks lose."""
        return [np.array(self._tokenizer.encode(text, add_special_tokens=False).ids, dtype=np.int32) for text in texts]

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """The text of some ids; special tokens have none."""
        return self._tokenizer.decode([int(token) for token in ids], skip_special_tokens=True)


def _listed(tokens: Iterable[str]) -> str:
    """The first few names, for a message."""
    names = list(tokens)
    return ", ".join(names[:8]) + (f" ... ({len(names)} in all)" if len(names) > 8 else "") or "none"


def _config(path: Path) -> Json:
    """One of the files beside tokenizer.json; {} where there is none. ConfigError where it cannot be read."""
    return tokenizer_content.json_object(path) if path.is_file() else {}
