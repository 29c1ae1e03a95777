"""A small SentencePiece model like Llama's, small random Llamas by transformers, and a checkpoint made of one."""

from __future__ import annotations

import shutil
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest
import sentencepiece
import torch
from transformers import LlamaForCausalLM, PreTrainedModel

from tinyllama_mcore.hf.importing import import_hf

LLAMA_STYLE = {
    "model_type": "bpe",
    "vocab_size": 800,
    "byte_fallback": True,
    "split_digits": True,
    "allow_whitespace_only_pieces": True,
    "normalization_rule_name": "identity",
    "remove_extra_whitespaces": False,
    "max_sentence_length": 100_000,
    "minloglevel": 2,
}


@pytest.fixture(scope="session")
def code() -> list[str]:
    """Documents of library source code, as written: tabs, indentation, any character."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    paths = [
        path for room in ("email", "json", "xml", "html", "asyncio") for path in sorted((folder / room).rglob("*.py"))
    ]
    return [path.read_bytes().decode("utf-8") for path in paths]


@pytest.fixture(scope="session")
def train_tokenizer(code: list[str], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Train a SentencePiece model on the code; keywords change `LLAMA_STYLE`."""

    def train(**changes: object) -> Path:
        prefix = tmp_path_factory.mktemp("tokenizer") / "tokenizer"
        lines = (line for document in code[:40] for line in document.splitlines())
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=lines, model_prefix=str(prefix), **(LLAMA_STYLE | changes)
        )
        return prefix.with_suffix(".model")

    return train


@pytest.fixture(scope="session")
def tokenizer_model(train_tokenizer: Callable[..., Path]) -> Path:
    """The Llama-style model of 800 pieces."""
    return train_tokenizer()


@pytest.fixture(scope="session")
def make_llama(tokenizer_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Save a random model of transformers and its tokenizer.model; keywords change its config, a LlamaConfig at first.

    Biases and weights of norms are random too.
    """

    def make(kind: type[PreTrainedModel] = LlamaForCausalLM, **changes: object) -> Path:
        directory = tmp_path_factory.mktemp("model")
        shape = {
            "vocab_size": 800,
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 8,
            "num_key_value_heads": 2,
            "max_position_embeddings": 128,
            "rms_norm_eps": 1e-5,
            "initializer_range": 0.1,
        }
        torch.manual_seed(0)
        model = kind(kind.config_class(**(shape | changes)))
        for name, parameter in model.named_parameters():
            if kind is not LlamaForCausalLM and parameter.dim() == 1:
                torch.nn.init.normal_(parameter, 0.0 if name.endswith("bias") else 1.0, 0.3)
        model.save_pretrained(directory)
        shutil.copyfile(tokenizer_model, directory / "tokenizer.model")
        return directory

    return make


@pytest.fixture(scope="session")
def checkpoint(make_llama: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with one checkpoint, of a random model of 2 query groups."""
    directory = tmp_path_factory.mktemp("run")
    import_hf(make_llama(), directory)
    return directory
