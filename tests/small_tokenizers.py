"""Small tokenizers as GPT-2, Llama-3 and Qwen have them, made by the `tokenizers` library from this suite's source."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

KINDS = ("gpt2", "llama3", "qwen")
SPECIAL = {
    "gpt2": ("<|endoftext|>",),
    "llama3": ("<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"),
    "qwen": ("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
}
END = {"gpt2": "<|endoftext|>", "llama3": "<|end_of_text|>", "qwen": "<|endoftext|>"}
CONFIG = {
    "gpt2": {"tokenizer_class": "GPT2Tokenizer", "bos_token": END["gpt2"], "eos_token": END["gpt2"]},
    "llama3": {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|begin_of_text|>",
        "eos_token": {"__type": "AddedToken", "content": END["llama3"], "special": True},
    },
    "qwen": {
        "tokenizer_class": "Qwen2Tokenizer",
        "bos_token": None,
        "eos_token": END["qwen"],
        "pad_token": END["qwen"],
    },
}
REGEX = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|DIGITS| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
DIGITS = {"llama3": r"\p{N}{1,3}", "qwen": r"\p{N}"}
PLAIN = "<think>"
"""An added token of Qwen's that is not special."""


def make(kind: str, directory: Path, vocabulary: int = 600) -> Path:
    """Write tokenizer.json, with so many pieces beside added tokens, and tokenizer_config.json; gives `directory`."""
    made = Tokenizer(models.BPE(ignore_merges=kind == "llama3"))
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=kind == "gpt2")
    if kind == "gpt2":
        made.pre_tokenizer = byte_level
    else:
        split = pre_tokenizers.Split(Regex(REGEX.replace("DIGITS", DIGITS[kind])), "isolated")
        made.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocabulary, initial_alphabet=alphabet, show_progress=False)
    made.train_from_iterator(texts(), trainer)
    made.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in SPECIAL[kind]])
    if kind == "qwen":
        made.normalizer = normalizers.NFC()
        made.add_tokens([AddedToken(PLAIN, special=False, normalized=False)])
    if kind == "llama3":
        begin = SPECIAL[kind][0]
        template = processors.TemplateProcessing(
            single=f"{begin} $A", special_tokens=[(begin, made.token_to_id(begin))]
        )
        made.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), template])
    directory.mkdir(parents=True, exist_ok=True)
    made.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(json.dumps(CONFIG[kind]))
    return directory


def texts() -> list[str]:
    """Documents of source code."""
    here = Path(__file__).parent
    return [path.read_text() for path in sorted(here.glob("*.py")) + sorted((here / "preprocessing").glob("*.py"))]


def library(directory: Path) -> Tokenizer:
    """The library's own tokenizer, special tokens read as text: what is right."""
    loaded = Tokenizer.from_file(str(directory / "tokenizer.json"))
    loaded.encode_special_tokens = True
    return loaded


def change(directory: Path, **model: object) -> dict:
    """The content of a tokenizer.json with other values of its model's keys, written back; `added` are added tokens."""
    content = json.loads((directory / "tokenizer.json").read_text())
    content["added_tokens"] = model.pop("added", content["added_tokens"])
    content["model"] |= model
    (directory / "tokenizer.json").write_text(json.dumps(content))
    return content
