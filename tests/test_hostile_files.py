"""A pickle that would run code, in each place that something is loaded from: nothing runs, and each is refused.

The same pickle is first shown to run where it is unpickled, so that a test which finds nothing run means something.
"""

from __future__ import annotations

import dataclasses
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.checkpoint.test_checkpoint import save
from tests.data.test_indexed import write
from tests.sampling.test_blend import SEQ, VOCABULARY
from tinyllama_mcore.checkpoint import manifest, selection
from tinyllama_mcore.checkpoint.reader import CheckpointReader
from tinyllama_mcore.config.errors import ConfigError
from tinyllama_mcore.config.paths import MANIFEST
from tinyllama_mcore.config.schema import DataConfig
from tinyllama_mcore.data import indexed, tokenizer_files
from tinyllama_mcore.data.receipt import vocabulary_of
from tinyllama_mcore.data.tokenizer import SentencePieceTokenizer
from tinyllama_mcore.hf.importing import import_hf
from tinyllama_mcore.sampling.blend import open_blend

pytestmark = pytest.mark.faults


class Hostile:
    """Makes a file where it is unpickled."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple:
        """What unpickling calls."""
        return os.mkdir, (str(self.proof),)


@pytest.fixture
def proof(tmp_path: Path) -> Path:
    """What is there once the pickle has run."""
    return tmp_path / "it ran"


def test_the_pickle_runs_where_it_is_unpickled(proof: Path) -> None:
    """The planted fault."""
    pickle.loads(pickle.dumps(Hostile(proof)))
    assert proof.exists()


def in_a_shard(content: bytes, home: Path) -> None:
    """A checkpoint's tensor file, its manifest forged to vouch for it."""
    folder = save(home, 1)
    shard = next(folder.glob("*.safetensors"))
    shard.write_bytes(content)
    forged = dataclasses.replace(manifest.read(folder), files={shard.name: manifest.file_record(shard)})
    (folder / MANIFEST).write_text(manifest.to_text(forged))
    assert "is not a safetensors file" in selection.inspect(folder)[0]
    CheckpointReader(folder)


def in_a_manifest(content: bytes, home: Path) -> None:
    """A checkpoint's manifest."""
    folder = save(home, 1)
    (folder / MANIFEST).write_bytes(content)
    CheckpointReader(folder)


def in_a_tokenizer(content: bytes, home: Path) -> None:
    """tokenizer.model."""
    (home / "tokenizer.model").write_bytes(content)
    SentencePieceTokenizer(home / "tokenizer.model")


def in_a_tokenizer_json(content: bytes, home: Path) -> None:
    """tokenizer.json, and the config beside it."""
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (home / name).write_bytes(content)
    tokenizer_files.load(home)


def in_a_dataset_index(content: bytes, home: Path) -> None:
    """The .idx of a pair."""
    prefix = write(home / "data", [50, 60], vocab_size=60_000, seed=2)
    indexed.idx_path(prefix).write_bytes(content)
    indexed.check(prefix, 60_000)


def in_a_receipt(content: bytes, home: Path) -> None:
    """The .json beside the data."""
    prefix = write(home / "data", [50, 60], vocab_size=60_000, seed=2)
    Path(f"{prefix}.json").write_bytes(content)
    vocabulary_of([str(prefix)], None)


def in_a_config(content: bytes, home: Path) -> None:
    """config.json of a model to import."""
    (home / "config.json").write_bytes(content)
    import_hf(home, home / "out")


LLAMA = (
    '{"model_type": "llama", "vocab_size": 8, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, '
    '"num_attention_heads": 2, "num_key_value_heads": 1}'
)


def in_pickled_weights(content: bytes, home: Path) -> None:
    """pytorch_model.bin, and a .pt, of a model to import."""
    (home / "config.json").write_text(LLAMA)
    (home / "pytorch_model.bin").write_bytes(content)
    (home / "model.pt").write_bytes(content)
    import_hf(home, home / "out")


def in_safetensors(content: bytes, home: Path) -> None:
    """model.safetensors of a model to import."""
    (home / "config.json").write_text(LLAMA)
    (home / "model.safetensors").write_bytes(content)
    import_hf(home, home / "out")


PLACES = (
    in_a_shard,
    in_a_manifest,
    in_a_tokenizer,
    in_a_tokenizer_json,
    in_a_dataset_index,
    in_a_receipt,
    in_a_config,
    in_pickled_weights,
    in_safetensors,
)


@pytest.mark.parametrize("place", PLACES, ids=lambda place: place.__name__)
def test_nothing_runs(place: Callable[[bytes, Path], None], proof: Path, tmp_path: Path) -> None:
    """Both as a bare pickle and as torch.save writes it."""
    torch.save(Hostile(proof), tmp_path / "saved")
    for number, content in enumerate((pickle.dumps(Hostile(proof)), (tmp_path / "saved").read_bytes())):
        home = tmp_path / str(number)
        home.mkdir()
        with pytest.raises(ConfigError):
            place(content, home)
    assert not proof.exists()


@pytest.mark.parametrize("as_array", [False, True])
def test_nothing_runs_from_a_cached_index(as_array: bool, proof: Path, tmp_path: Path) -> None:
    """Megatron's own .npy files, which it reads with allow_pickle: bare, and as an array of objects."""
    prefix = write(tmp_path / "data", [50] * 40, vocab_size=60_000, seed=2)
    data = DataConfig(blend=((1.0, str(prefix)),), cache_dir=str(tmp_path / "cache"))

    def first_sample() -> None:
        samples = open_blend(data, split="train", seq_length=SEQ, seed=1, vocabulary=VOCABULARY)
        assert samples is not None
        samples.prepare(0, 4)
        _ = samples[0]

    first_sample()
    files = sorted((tmp_path / "cache").rglob("*.npy"))
    assert files
    for file in files:
        sound = file.read_bytes()
        if as_array:
            np.save(file, np.array([Hostile(proof)], dtype=object), allow_pickle=True)
        else:
            file.write_bytes(pickle.dumps(Hostile(proof)))
        with pytest.raises(ConfigError, match="is not an index of samples"):
            first_sample()
        file.write_bytes(sound)
    assert not proof.exists()


def test_pickles_beside_a_checkpoint_are_not_read(proof: Path, tmp_path: Path) -> None:
    """`.metadata`, where torch's own format keeps a pickle, and a .pt: not looked at."""
    folder = save(tmp_path, 1)
    for name in (".metadata", "common.pt"):
        (folder / name).write_bytes(pickle.dumps(Hostile(proof)))
    reader = CheckpointReader(folder)
    assert [reader.tensor(key).sum() for key in reader.keys()]  # noqa: SIM118
    assert not proof.exists()
