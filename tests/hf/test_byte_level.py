"""A model trained with a tokenizer.json is exported with it: AutoTokenizer gives the ids that were trained on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from tests import small_tokenizers
from tinyllama_mcore.checkpoint import layout
from tinyllama_mcore.checkpoint.reader import CheckpointReader
from tinyllama_mcore.config.errors import ConfigError
from tinyllama_mcore.data.byte_level import HuggingFaceTokenizer
from tinyllama_mcore.hf import byte_level
from tinyllama_mcore.hf.export import ExportJob, export
from tinyllama_mcore.hf.importing import import_hf
from tinyllama_mcore.hf.parity import Mismatch

TEXTS = [*small_tokenizers.texts()[:5], *byte_level.PROBES, "a<think>b <think>", "e\u0301", "12345 x"]
PIECES, ROWS = 400, 512


def model_with(kind: str, make_llama: Callable[..., Path]) -> Path:
    """A random Llama of 512 rows with a tokenizer.json of 400 pieces, and no tokenizer.model."""
    directory = make_llama(vocab_size=ROWS)
    (directory / "tokenizer.model").unlink()
    return small_tokenizers.make(kind, directory, PIECES)


def exported(run: Path, output: Path, **changes: object) -> Path:
    """The run at `run`, exported."""
    return export(ExportJob(load=run, output=output, verify=False, **changes)).directory


@pytest.mark.parametrize("kind", small_tokenizers.KINDS)
def test_autotokenizer_has_the_ids_trained_on(kind: str, make_llama: Callable[..., Path], tmp_path: Path) -> None:
    """With nothing said: no BOS, whatever tokenizer.json puts before a text. An import of it knows its tokenizer."""
    source = model_with(kind, make_llama)
    imported = import_hf(source, tmp_path / "run", verify=False)
    assert imported.tokenizer == source / "tokenizer.json"
    written = exported(tmp_path / "run", tmp_path / "hf")
    loaded, library = AutoTokenizer.from_pretrained(written), small_tokenizers.library(source)
    library.encode_special_tokens = False  # transformers' way, without split_special_tokens
    for text in TEXTS:
        assert loaded(text)["input_ids"] == library.encode(text, add_special_tokens=False).ids
    same = (source / "tokenizer.json").read_bytes() == (written / "tokenizer.json").read_bytes()
    assert same == (kind != "llama3"), "only a step that adds BOS is taken out"
    end = HuggingFaceTokenizer(source / "tokenizer.json").eod
    assert loaded.eos_token_id == end and loaded.model_max_length == 128
    for name in ("config.json", "generation_config.json"):
        assert json.loads((written / name).read_text())["eos_token_id"] == end
    assert f"`{small_tokenizers.END[kind]}` at the end" in (written / "README.md").read_text()
    import_hf(written, tmp_path / "again", verify=False)
    first, again = (CheckpointReader(layout.find(tmp_path / name)).manifest.provenance for name in ("run", "again"))
    assert again.tokenizer_sha256 == first.tokenizer_sha256 is not None


@pytest.mark.parametrize("wrong", ["Qwen2Tokenizer", "post_processor", "eos_token"])
def test_what_autotokenizer_reads_otherwise_is_noticed(wrong: str, tmp_path: Path) -> None:
    """Planted: a class with a regex of its own, a step that adds BOS, another end. Files alone tell none of them."""
    source = small_tokenizers.make("llama3", tmp_path / "source", PIECES)
    tokenizer = HuggingFaceTokenizer(source / "tokenizer.json")
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    byte_level.write_byte_level(tokenizer, tmp_path, max_length=128)
    byte_level.check_same_ids(tokenizer, tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    if wrong == "post_processor":  # transformers 5.23 passes over add_bos_token; where it does not, the detour can go
        shutil.copyfile(source / "tokenizer.json", tmp_path / "tokenizer.json")
        assert config["add_bos_token"] is False
    else:
        config |= {"eos_token": "<|eot_id|>"} if wrong == "eos_token" else {"tokenizer_class": wrong}
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(Mismatch, match=r"AutoTokenizer (gives other ids than|has eos_token_id)"):
        byte_level.check_same_ids(tokenizer, tmp_path)


def test_what_ends_a_document_is_asked_for(make_llama: Callable[..., Path], tmp_path: Path) -> None:
    """A chat model's tokenizer ends turns, and imports; an export has to know what ended the documents."""
    source = model_with("qwen", make_llama)
    (source / "tokenizer_config.json").write_text('{"eos_token": "<|im_end|>"}')
    import_hf(source, tmp_path / "run", verify=False)
    with pytest.raises(ConfigError, match="name it with --eod-token"):
        exported(tmp_path / "run", tmp_path / "hf")
    written = exported(tmp_path / "run", tmp_path / "hf", eod_token="<|im_end|>")
    assert AutoTokenizer.from_pretrained(written).eos_token == "<|im_end|>"
    other = small_tokenizers.make("llama3", tmp_path / "other", PIECES)
    with pytest.raises(ConfigError, match="is not the one that made the run's data"):
        exported(tmp_path / "run", tmp_path / "no", tokenizer_model=other)


def test_a_tokenizer_of_another_kind_is_none(make_llama: Callable[..., Path], tmp_path: Path) -> None:
    """A model whose tokenizer.json is not read here is imported, and held to no data; one with too many ids is not."""
    source = model_with("gpt2", make_llama)
    content = json.loads((source / "tokenizer.json").read_text())
    added = [token | {"id": 600} for token in content["added_tokens"]]
    small_tokenizers.change(source, added=added)
    with pytest.raises(ConfigError, match="has 601 pieces, but recipe"):
        import_hf(source, tmp_path / "run", verify=False)
    small_tokenizers.change(source, byte_fallback=True)
    assert import_hf(source, tmp_path / "run", verify=False).tokenizer is None
