"""A tokenizer.json as plain data: what decides the ids, its checksum, and what of it cannot be taken at its word.

The `tokenizers` library (0.23.3) loads files that say one thing and gives ids that say another: added tokens get the
next free ids in the order of the list, whatever ids the file has (findings/tokenizers_added_tokens_are_renumbered.sh).
Neighbour: `byte_level` is the tokenizer that is made of it.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

import tokenizers

from tinyllama_mcore.config.errors import ConfigError

Json = dict[str, Any]
DECIDES = ("added_tokens", "normalizer", "pre_tokenizer", "model")
"""Keys that decide the ids of a text. `post_processor` puts BOS before them, `decoder` gives them back as text,
`truncation` and `padding` make them a batch."""
READ = "only byte-level BPE is read, as GPT-2's, Llama-3's and Qwen's are"


def _byte_characters() -> dict[str, int]:
    """How byte-level BPE spells a byte: itself where it is printable in Latin-1, else a character from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [byte for byte in range(256) if byte not in printable]
    spelled = {byte: chr(byte) for byte in printable} | {byte: chr(0x100 + i) for i, byte in enumerate(rest)}
    return {char: byte for byte, char in spelled.items()}


BYTES = _byte_characters()
"""Character of a piece -> byte: GPT-2's `bytes_to_unicode`, the other way round."""


class OtherKind(ConfigError):
    """A tokenizer.json of a kind that is not read here."""


def read(path: Path) -> Json:
    """The content of a tokenizer.json. ConfigError where it cannot be read; OtherKind where it is not read here."""
    content = json_object(path)
    where = f"--tokenizer-model {path}"
    model = content.get("model")
    kind = model.get("type", "BPE" if "merges" in model else None) if isinstance(model, dict) else None
    if kind != "BPE":
        raise OtherKind(
            f"{where}: its model is {kind or 'missing'}; {READ}. Of a SentencePiece model, give its tokenizer.model"
        )
    assert isinstance(model, dict)
    content["added_tokens"] = content.get("added_tokens") or []
    for found, what in (
        (not isinstance(model.get("vocab"), dict) or not model["vocab"], "it has no vocabulary"),
        (
            bool(model.get("dropout")),
            f"it drops merges at random (dropout {model.get('dropout')}): make it null",
        ),
        (bool(model.get("byte_fallback")), f"it falls back to bytes; {READ}: give its SentencePiece tokenizer.model"),
        (not _of_bytes(content.get("pre_tokenizer")), f"its pre-tokenizer has no ByteLevel step; {READ}"),
        (any(model.get(key) for key in ("continuing_subword_prefix", "end_of_word_suffix")), f"it marks words; {READ}"),
        (not all(map(_is_added, content["added_tokens"])), "an added token lacks its content, its id or a flag"),
    ):
        if found:
            raise OtherKind(f"{where}: {what}")
    return content


def json_object(path: Path) -> Json:
    """The object of a JSON file. ConfigError where it cannot be read, is cut short or gives a key twice."""
    where = f"--tokenizer-model {path}"

    def unique(pairs: list[tuple[str, Any]]) -> Json:
        found = dict(pairs)
        if len(found) < len(pairs):
            counts = Counter(key for key, _ in pairs)
            twice = counts.most_common(1)[0][0]
            raise ConfigError(f"{where}: {twice!r} is given twice in one object; keep one of the two")
        return found

    try:
        text = path.read_bytes().decode("utf-8-sig")
        content = json.loads(text, object_pairs_hook=unique)
    except OSError as error:
        raise ConfigError(f"{where}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(
            f"{where}: is not JSON, or is cut short ({path.stat().st_size:,} bytes: {error}); fetch it again"
        ) from None
    if not isinstance(content, dict):
        raise ConfigError(f"{where}: expected an object {{...}} at the top, found {type(content).__name__}")
    return content


def _is_added(token: object) -> bool:
    """Whether an entry of added_tokens has all that it needs."""
    flags = ("special", "single_word", "lstrip", "rstrip", "normalized")
    return (
        isinstance(token, dict)
        and bool(token.get("content"))
        and isinstance(token["content"], str)
        and type(token.get("id")) is int
        and all(isinstance(token.get(flag), bool) for flag in flags)
    )


def steps(step: object, key: str) -> list[Json]:
    """The steps of a normalizer or a pre-tokenizer, one after the other; `key` is what a Sequence keeps them under."""
    if not isinstance(step, dict):
        return []
    if step.get("type") != "Sequence":
        return [step]
    return [inner for each in step.get(key) or [] for inner in steps(each, key)]


def _of_bytes(pre_tokenizer: object) -> bool:
    """Whether texts become bytes."""
    return any(step.get("type") == "ByteLevel" for step in steps(pre_tokenizer, "pretokenizers"))


def ids(content: Json, path: str) -> dict[str, int]:
    """Token -> id as the file says. ConfigError where two tokens share an id, or more ids are left out than used."""
    where = f"--tokenizer-model {path}"
    found: dict[str, int] = dict(content["model"]["vocab"])
    owner: dict[int, str] = {}
    for token in content["added_tokens"]:
        if found.setdefault(token["content"], token["id"]) != token["id"]:
            raise ConfigError(
                f"{where}: the added token {token['content']!r} has id {token['id']}, but its vocabulary says "
                f"{found[token['content']]}: the two must agree"
            )
    for text, number in found.items():
        if type(number) is not int or number < 0:
            raise ConfigError(f"{where}: the id of {text!r} is {number!r}; it must be a whole number, at least 0")
        if owner.setdefault(number, text) != text:
            raise ConfigError(f"{where}: id {number} is that of {owner[number]!r} and of {text!r}; ids must differ")
    largest = max(content["model"]["vocab"].values())
    if largest >= 2 * len(owner):
        raise ConfigError(
            f"{where}: its largest id is {largest:,} ({owner[largest]!r}), and it has only {len(owner):,} tokens; ids "
            f"must go from 0 to about {len(owner) - 1:,}, for a model has a row for each"
        )
    return found


def loaded(content: Json, path: str) -> tokenizers.Tokenizer:
    """The library's tokenizer, special tokens read as text. ConfigError where it cannot load, or gives other ids."""
    where = f"--tokenizer-model {path}"
    try:
        tokenizer = tokenizers.Tokenizer.from_file(path)
    except Exception as error:  # the library raises nothing more special
        raise ConfigError(f"{where}: the tokenizers library cannot load it: {error}") from None
    for token in content["added_tokens"]:
        given = tokenizer.token_to_id(token["content"])
        if given != token["id"]:
            raise ConfigError(
                f"{where}: the added token {token['content']!r} has id {token['id']}, but the tokenizers library "
                f"gives it {given}: it numbers added tokens on from the vocabulary, in the order of the list; give "
                "them those ids, in that order"
            )
    tokenizer.encode_special_tokens = True
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def checksum(content: Json) -> str:
    """sha256 of what decides the ids, however the file is laid out: a saved copy has that of its original."""
    model = {key: value for key, value in content["model"].items() if value}
    model["merges"] = [pair.split(" ") if isinstance(pair, str) else pair for pair in model.get("merges", [])]
    kept = {key: content.get(key) for key in DECIDES} | {"model": {**model, "type": "BPE"}}
    return hashlib.sha256(json.dumps(kept, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
