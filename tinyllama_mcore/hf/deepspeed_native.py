"""The fp32 weights of a checkpoint that other DeepSpeed code saved of a Hugging Face Llama (`engine.save_checkpoint`).

Why: a run begun elsewhere can move in. DeepSpeed's own `zero_to_fp32` unpickles whatever the files say; here they are
read with `weights_only`, and the few classes of DeepSpeed's that stand in them become empty objects. Neighbours:
`importing` writes what this reads; tools/convert_from_hf.py has the flag. Seen in DeepSpeed 0.19.8.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from tinyllama_mcore.config.schema import ConfigError

FOREIGN = (
    "deepspeed.runtime.fp16.loss_scaler.LossScaler",
    "deepspeed.runtime.zero.config.ZeroStageEnum",
    "deepspeed.utils.tensor_fragment.fragment_address",
)
"""Classes that a sound checkpoint names; nothing of them is needed."""


class _Empty:
    """In place of each of `FOREIGN`."""

    def __init__(self, *_: object) -> None:
        """Keep nothing."""


class DeepSpeedWeights:
    """Weights by the name that the module gave them, fp32 on the CPU: `WeightFiles` for ZeRO 1 to 3."""

    def __init__(self, directory: Path, tag: str | None = None) -> None:
        """Read `directory`/`tag`; without a tag, the one that `latest` names.

        Raises:
            ConfigError: there is no such checkpoint, it is of another kind, or a file holds what may run code.
        """
        self._weights = _weights(directory / (tag or _latest(directory)))

    def names(self) -> frozenset[str]:
        """Every tensor's name."""
        return frozenset(self._weights)

    def tensor(self, name: str) -> torch.Tensor:
        """One tensor. ConfigError where there is none of that name."""
        if name not in self._weights:
            raise ConfigError(f"the checkpoint has no fp32 weight {name}: was a LlamaForCausalLM trained whole?")
        return self._weights[name]


def _latest(directory: Path) -> str:
    """The tag in `latest`."""
    try:
        tag = (directory / "latest").read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{directory / 'latest'} cannot be read ({error}): name the checkpoint with --tag") from error
    if Path(tag).name != tag:
        raise ConfigError(f"{directory / 'latest'} names {tag!r}, which is not a folder beside it")
    return tag


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    """All fp32 weights of a checkpoint folder."""
    by_rank = sorted(folder.glob("*zero_pp_rank_*_optim_states.pt"), key=_data_rank)
    models = sorted(folder.glob("*model_states.pt"))
    if not by_rank or not models:
        raise ConfigError(f"{folder} holds no ZeRO checkpoint of DeepSpeed (*_model_states.pt, *_optim_states.pt)")
    if any("_mp_rank_00_" not in path.name for path in by_rank):
        raise ConfigError(f"{folder} was cut over model-parallel ranks; data-parallel ZeRO alone can be imported")
    states = [load(path)["optimizer_state_dict"] for path in by_rank]
    groups: list[Mapping[str, torch.Size]] = load(models[0])["param_shapes"]
    if len(states) != (ranks := _ranks(states[0]["partition_count"])):
        raise ConfigError(f"{folder} has {len(states)} of {ranks} optimizer files")
    if "fp32_flat_groups" in states[0]:
        flats = [torch.cat([part.flatten() for part in state["fp32_flat_groups"]]) for state in states]
        return dict(_interleaved(itertools.chain.from_iterable(group.items() for group in groups), flats))
    found: dict[str, torch.Tensor] = {}
    for number, group in enumerate(groups):
        flat = torch.cat([state["single_partition_of_fp32_groups"][number] for state in states])
        sizes = [shape.numel() for shape in group.values()]
        parts = flat[: sum(sizes)].split(sizes)
        found |= {name: part.view(shape) for (name, shape), part in zip(group.items(), parts, strict=True)}
    return found


def _interleaved(
    shapes: Iterable[tuple[str, torch.Size]], flats: list[torch.Tensor]
) -> Iterable[tuple[str, torch.Tensor]]:
    """ZeRO-3: each parameter is cut over all ranks by itself, padded to equal pieces."""
    offset = 0
    for name, shape in shapes:
        piece = math.ceil(shape.numel() / len(flats))
        whole = torch.cat([flat[offset : offset + piece] for flat in flats])
        yield name, whole[: shape.numel()].view(shape)
        offset += piece


def load(path: Path) -> Any:  # noqa: ANN401
    """What a .pt file holds, as data. ConfigError where it holds anything that is not."""
    try:
        with torch.serialization.safe_globals([(_Empty, name) for name in FOREIGN]):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # whatever a hostile or broken file leads to: it is not read
        raise ConfigError(f"{path} cannot be read as data: {str(error).splitlines()[:1]}") from error


def _data_rank(path: Path) -> int:
    match = re.search(r"zero_pp_rank_(\d+)_", path.name)
    return int(match[1]) if match else -1


def _ranks(partition_count: int | list[int]) -> int:
    """Data-parallel ranks; ZeRO 1 and 2 count them once for each parameter group."""
    return max(partition_count) if isinstance(partition_count, list) else partition_count
