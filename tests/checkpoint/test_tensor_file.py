"""Files of a checkpoint: what other people's code reads in them, and their checksums."""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file

from tinyllama_mcore.checkpoint import store, tensor_file

TENSORS = {
    "model.b": torch.randn(3, 5),
    "model.a": torch.randn(7),
    "probe.tokens": torch.arange(6).view(2, 3),
    "model.scalar": torch.tensor(2.5),
}


def header(path: Path) -> dict:
    """The JSON of a safetensors file."""
    raw = path.read_bytes()
    text = json.loads(raw[8 : 8 + struct.unpack("<Q", raw[:8])[0]])
    text["__metadata__"]["DCP_SHARDING_INFO"] = json.loads(text["__metadata__"]["DCP_SHARDING_INFO"])
    return text


def test_a_file_is_what_torch_writes(tmp_path: Path) -> None:
    """The header, the bytes behind it, and the name, as torch's own writer of safetensors has them."""
    torchs, ours = tmp_path / "torch", tmp_path / "ours"
    dcp.save(TENSORS, storage_writer=dcp.HuggingFaceStorageWriter(str(torchs), save_distributed=True), no_dist=True)
    ours.mkdir()
    records = store.write(ours, TENSORS, None)
    (theirs,) = torchs.iterdir()
    assert set(records) == {theirs.name}
    assert header(ours / theirs.name) == header(theirs)
    end = [8 + struct.unpack("<Q", path.read_bytes()[:8])[0] for path in (theirs, ours / theirs.name)]
    assert theirs.read_bytes()[end[0] :] == (ours / theirs.name).read_bytes()[end[1] :]


def test_checksums_are_those_of_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of many files, and of tensors of several blocks; safetensors reads each tensor back."""
    monkeypatch.setattr(store, "FILE_BYTES", 100_000)
    monkeypatch.setattr(tensor_file, "BLOCK_BYTES", 30_000)
    tensors = {f"model.{number}": torch.randn(101 + number, 50) for number in range(40)}
    records = store.write(tmp_path, tensors, None)
    assert len(records) > 5
    assert set(records) == {path.name for path in tmp_path.iterdir()}
    for name, record in records.items():
        content = (tmp_path / name).read_bytes()
        assert (record.bytes, record.sha256) == (len(content), hashlib.sha256(content).hexdigest())
        for key, tensor in load_file(tmp_path / name).items():
            assert torch.equal(tensor, tensors.pop(key))
    assert tensors == {}
