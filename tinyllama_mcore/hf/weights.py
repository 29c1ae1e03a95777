"""The safetensors of a Hugging Face directory, one file or many with an index, read and written one tensor at a time.

Why written here: the library's own writer takes all tensors of a file at once, 5 GB in memory for a 5 GB file.
Nothing is unpickled. Neighbours: `export` writes and reads back, `importing` reads other people's models.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from tinyllama_mcore.config.errors import ConfigError

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"


_DTYPES: Mapping[torch.dtype, str] = {torch.bfloat16: "BF16", torch.float32: "F32"}
"""What safetensors calls a dtype."""


def write_file(
    path: Path, shapes: Mapping[str, torch.Size], dtype: torch.dtype, tensors: Iterable[tuple[str, torch.Tensor]]
) -> int:
    """Write one safetensors file as `tensors` come, and return their bytes.

    Format: https://huggingface.co/docs/safetensors, a length, a JSON header, then each tensor's bytes without gaps.

    Args:
        path: the file.
        shapes: each tensor's name and shape, in the order in which they come.
        dtype: of all of them.
        tensors: name and value, on the CPU.
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        begin, end = end, end + shape.numel() * dtype.itemsize
        header[name] = {"dtype": _DTYPES[dtype], "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # tensors start at a multiple of 8
    expected = iter(shapes.items())
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, tensor in tensors:
            assert (name, tensor.shape, tensor.dtype) == (*next(expected), dtype)
            file.write(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    assert next(expected, None) is None
    return end


class WeightFiles:
    """Tensors by Hugging Face name."""

    def __init__(self, directory: Path) -> None:
        """Find the files. ConfigError where there are none, or the index names one outside the directory."""
        self._files = _weight_map(directory)

    def names(self) -> frozenset[str]:
        """Every tensor's name."""
        return frozenset(self._files)

    def tensor(self, name: str) -> torch.Tensor:
        """One tensor as it is stored. ConfigError where there is none of that name."""
        if name not in self._files:
            raise ConfigError(f"the model has no tensor {name}, which its config.json implies")
        try:
            with safe_open(self._files[name], framework="pt") as stored:
                return stored.get_tensor(name)
        except (OSError, SafetensorError) as error:
            raise ConfigError(f"{self._files[name]} cannot be read: {error}") from error


class NamedTensors:
    """Tensors by Hugging Face name that are in memory already, e.g. what another trainer saved."""

    def __init__(self, tensors: Mapping[str, torch.Tensor], what: str) -> None:
        """`what` they are, for messages."""
        self._tensors, self._what = tensors, what

    def names(self) -> frozenset[str]:
        """Every tensor's name."""
        return frozenset(self._tensors)

    def tensor(self, name: str) -> torch.Tensor:
        """One tensor. ConfigError where there is none of that name."""
        if name not in self._tensors:
            raise ConfigError(
                f"the checkpoint has no {self._what} {name}: only a model whose every weight was trained can be "
                "imported"
            )
        return self._tensors[name]


def _weight_map(directory: Path) -> Mapping[str, Path]:
    """Tensor name -> its file."""
    if (directory / SINGLE).is_file():
        try:
            with safe_open(directory / SINGLE, framework="pt") as stored:
                return dict.fromkeys(stored.keys(), directory / SINGLE)
        except SafetensorError as error:
            raise ConfigError(f"{directory / SINGLE} cannot be read: {error}") from error
    if not (directory / INDEX).is_file():
        raise ConfigError(
            f"{directory} has neither {SINGLE} nor {INDEX}; pickled weights (.bin) are not read: save the model again "
            "with save_pretrained of a recent transformers"
        )
    try:
        weight_map = json.loads((directory / INDEX).read_text(encoding="utf-8"))["weight_map"]
    except (UnicodeDecodeError, json.JSONDecodeError, KeyError) as error:
        raise ConfigError(f"{directory / INDEX} is not an index of safetensors ({error})") from error
    outside = next((file for file in weight_map.values() if Path(file).name != file), None)
    if outside is not None:
        raise ConfigError(f"{directory / INDEX} names {outside!r}; its files have to be in the same directory")
    return {name: directory / file for name, file in weight_map.items()}
