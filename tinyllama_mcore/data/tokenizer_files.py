"""Opens the tokenizer that a path names: a SentencePiece model, a tokenizer.json, or a directory that holds one.

Neighbours: `tokenizer` and `byte_level` are the two kinds; `config.tokenizer_types` has Megatron-LM's names of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tinyllama_mcore.config.errors import ConfigError
from tinyllama_mcore.config.tokenizer_types import HUGGING_FACE, SENTENCEPIECE, TYPES
from tinyllama_mcore.data.tokenizer import End, SentencePieceTokenizer, Tokenizer


def load(path: str | Path, kind: str | None = None, eod: End = None) -> Tokenizer:
    """The tokenizer at `path`.

    Args:
        path: its file, or a directory of Hugging Face's that holds a tokenizer.model or a tokenizer.json.
        kind: a name of `config.tokenizer_types.TYPES`; None: by the file.
        eod: what ends a document; None: the special token that the tokenizer names.

    Raises:
        ConfigError: there is none, there are two, or it is not one that is read here.
    """
    file = find(Path(path), kind)
    if (TYPES[kind] if kind else _kind_of(file)) == HUGGING_FACE:
        from tinyllama_mcore.data.byte_level import HuggingFaceTokenizer

        return HuggingFaceTokenizer(file, eod)
    return SentencePieceTokenizer(file, eod)


@dataclass(frozen=True, kw_only=True)
class Identity:
    """Which tokenizer a file is of; what ends a document is not asked."""

    path: Path
    vocab_size: int
    sha256: str
    """`Vocabulary.sha256`."""


def identity(file: Path) -> Identity:
    """Which tokenizer a file is of. ConfigError where it is broken, OtherKind where it is of a kind not read here."""
    if _kind_of(file) == SENTENCEPIECE:
        known = SentencePieceTokenizer(file).vocabulary
        return Identity(path=file, vocab_size=known.vocab_size, sha256=known.sha256)
    from tinyllama_mcore.data import tokenizer_content

    content = tokenizer_content.read(file)
    size = max(tokenizer_content.ids(content, str(file)).values()) + 1
    return Identity(path=file, vocab_size=size, sha256=tokenizer_content.checksum(content))


def find(path: Path, kind: str | None = None) -> Path:
    """The file of the tokenizer at `path`, which may be a directory. ConfigError where there is none or two."""
    if not path.is_dir():
        if kind and path.is_file() and _kind_of(path) != TYPES[kind]:
            fitting = next(name for name, file in TYPES.items() if file == _kind_of(path))
            raise ConfigError(
                f"--tokenizer-type {kind} reads a {TYPES[kind]}, but --tokenizer-model {path} is "
                f"{'JSON' if _kind_of(path) == HUGGING_FACE else 'not JSON'}: give --tokenizer-type {fitting}"
            )
        return path
    names = (TYPES[kind],) if kind else (SENTENCEPIECE, HUGGING_FACE)
    there = [path / name for name in names if (path / name).is_file()]
    if not there:
        raise ConfigError(f"--tokenizer-model {path}: this directory holds no {' and no '.join(names)}")
    if len(there) > 1:
        raise ConfigError(
            f"--tokenizer-model {path}: this directory holds {SENTENCEPIECE} and {HUGGING_FACE}: name one of the two "
            "files, or the kind with --tokenizer-type"
        )
    return there[0]


def _kind_of(file: Path) -> str:
    """Which kind a file is of, by its ending, else by its first byte; one that is missing for SentencePiece's."""
    if file.suffix in (".json", ".model"):
        return HUGGING_FACE if file.suffix == ".json" else SENTENCEPIECE
    try:
        with file.open("rb") as content:
            return HUGGING_FACE if content.read(64).lstrip()[:1] == b"{" else SENTENCEPIECE
    except OSError:
        return SENTENCEPIECE
