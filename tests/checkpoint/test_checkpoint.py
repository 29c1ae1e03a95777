"""What a directory of checkpoints is trusted for: whole or not there, newest by number, counted, never unpickled."""

from __future__ import annotations

import dataclasses
import pickle
from pathlib import Path

import pytest
import torch

from tinyllama_mcore.checkpoint import layout, manifest, reader, store, writer
from tinyllama_mcore.checkpoint.manifest import Manifest, RunState
from tinyllama_mcore.config.errors import ConfigError
from tinyllama_mcore.config.paths import MANIFEST, TRACKER

TENSORS = {"model.a": torch.arange(12.0).view(3, 4), "model.b": torch.ones(5)}

pytestmark = pytest.mark.faults


def record(iteration: int, **state: int) -> Manifest:
    """Of a small checkpoint."""
    return Manifest(
        state=RunState(iteration=iteration, **state),
        run={"model": {}},
        provenance=manifest.Provenance(versions={}),
        parameters=17,
        kinds=("model",),
    )


def save(directory: Path, iteration: int, tensors: dict[str, torch.Tensor] = TENSORS) -> Path:
    """A small checkpoint."""
    return writer.save_alone(directory, tensors, record(iteration))


def test_what_is_written_is_read(tmp_path: Path) -> None:
    """Every tensor bit for bit, and the manifest's own round trip."""
    opened = reader.CheckpointReader(save(tmp_path, 3))
    assert sorted(opened.keys()) == sorted(TENSORS)
    for key, tensor in TENSORS.items():
        assert opened.shape(key) == tensor.shape
        assert torch.equal(opened.tensor(key), tensor)
    assert manifest.read(opened.folder) == opened.manifest
    assert (tmp_path / TRACKER).read_text() == "3\n"


def test_a_large_state_is_several_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """None larger than it may be, but for one tensor that is."""
    monkeypatch.setattr(store, "FILE_BYTES", 12)
    tensors = {f"model.{i}": torch.full((elements,), float(i)) for i, elements in enumerate((2, 1, 12, 2))}
    opened = reader.CheckpointReader(save(tmp_path, 1, tensors))
    assert len(list(opened.folder.glob("*.safetensors"))) == 3
    assert all(torch.equal(opened.tensor(key), tensor) for key, tensor in tensors.items())


def test_newest_is_by_number(tmp_path: Path) -> None:
    """Bug 5 of the released run: the newest by text order of unpadded names."""
    for iteration in (2, 10_000_000, 9):
        save(tmp_path, iteration)
    assert layout.iterations(tmp_path) == [2, 9, 10_000_000]
    assert layout.find(tmp_path) == layout.folder(tmp_path, 10_000_000)
    assert layout.find(tmp_path, 9) == layout.folder(tmp_path, 9)
    with pytest.raises(ConfigError, match="no finished checkpoint of iteration 4; finished ones: 2, 9, 10000000"):
        layout.find(tmp_path, 4)


def test_the_pointer_is_a_hint(tmp_path: Path) -> None:
    """A pointer to what is not there, or of garbage, changes nothing."""
    save(tmp_path, 5)
    for text in ("7\n", "garbage", ""):
        (tmp_path / TRACKER).write_text(text)
        assert layout.find(tmp_path) == layout.folder(tmp_path, 5)


def test_a_lost_parameter_is_never_published(tmp_path: Path) -> None:
    """A tensor that no rank wrote: our own error, and no checkpoint appears."""
    with pytest.raises(RuntimeError, match="12 elements of model where the model has 17"):
        save(tmp_path, 1, {"model.a": TENSORS["model.a"]})
    assert layout.iterations(tmp_path) == []
    assert layout.unfinished(tmp_path) != []


def test_saving_an_iteration_again_replaces_it(tmp_path: Path) -> None:
    """A run that went back and came to the same iteration again."""
    save(tmp_path, 1)
    other = {key: tensor + 1 for key, tensor in TENSORS.items()}
    save(tmp_path, 1, other)
    assert torch.equal(reader.CheckpointReader(layout.find(tmp_path)).tensor("model.b"), other["model.b"])
    assert [p.name for p in tmp_path.glob("iter_*")] == ["iter_0000001"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not a manifest"),
        (b"\xff\xfe", "is not a manifest"),
        (b"[]", "is not a manifest"),
        (b'{"schema": 1}', "is not a manifest"),
        (pickle.dumps({"schema": 1}), "is not a manifest"),
    ],
)
def test_a_wrong_manifest_is_refused(content: bytes, message: str, tmp_path: Path) -> None:
    """Empty, binary, of another kind, hostile, newer."""
    folder = save(tmp_path, 1)
    (folder / MANIFEST).write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        manifest.read(folder)


def test_every_bit_of_a_manifest_counts(tmp_path: Path) -> None:
    """A flipped bit is damage, or changes nothing that the manifest says; never another state that is believed."""
    folder = save(tmp_path, 1)
    written, content = manifest.read(folder), (folder / MANIFEST).read_bytes()
    believed = 0
    for place in range(len(content)):
        flipped = bytearray(content)
        flipped[place] ^= 1 << place % 8
        (folder / MANIFEST).write_bytes(flipped)
        try:
            assert manifest.read(folder) == written
            believed += 1
        except manifest.Damaged:
            pass
    assert believed < len(content) // 4  # white space


def test_another_format_is_no_damage(tmp_path: Path) -> None:
    """What a newer program wrote is refused, not passed over."""
    folder = save(tmp_path, 1)
    newer = dataclasses.replace(manifest.read(folder), schema=manifest.SCHEMA + 1)
    (folder / MANIFEST).write_text(manifest.to_text(newer))
    with pytest.raises(ConfigError, match="this program reads format") as refusal:
        manifest.read(folder)
    assert not isinstance(refusal.value, manifest.Damaged)


def test_another_iterations_manifest_is_damage(tmp_path: Path) -> None:
    """Copied, or a directory renamed by hand."""
    save(tmp_path, 1).rename(layout.folder(tmp_path, 2))
    with pytest.raises(manifest.Damaged, match="says iteration 1, which is not"):
        manifest.read(layout.folder(tmp_path, 2))


def test_a_file_that_is_not_in_the_manifest_is_named(tmp_path: Path) -> None:
    """A stray shard of another iteration would otherwise be read."""
    folder = save(tmp_path, 1)
    (folder / "stray.safetensors").write_bytes(next(folder.glob("*.safetensors")).read_bytes())
    assert reader.verify(folder, manifest.read(folder)) == [f"{folder / 'stray.safetensors'} is not in its manifest"]


@pytest.mark.parametrize("escape", ["../outside.safetensors", "{absolute}", "link.safetensors", "a/../../outside"])
def test_no_path_leaves_the_folder(escape: str, tmp_path: Path) -> None:
    """A name that leads out is damage, even where the file is there and its checksum right."""
    folder = save(tmp_path, 1)
    outside = tmp_path / "outside.safetensors"
    outside.write_bytes(next(folder.glob("*.safetensors")).read_bytes())
    (folder / "link.safetensors").symlink_to(outside)
    name = escape.format(absolute=outside)
    hostile = dataclasses.replace(manifest.read(folder), files={name: manifest.file_record(outside)})
    assert "is outside the checkpoint" in reader.verify(folder, hostile)[0]


def test_elements_are_counted_over_pieces(tmp_path: Path) -> None:
    """The count that guards publication reads the files, not what was meant."""
    assert store.elements(save(tmp_path, 1), "model") == 17
    assert store.elements(layout.find(tmp_path), "exp_avg") == 0
