"""Reads what other DeepSpeed code saved of a Hugging Face Llama (`engine.save_checkpoint`): fp32 weights and moments.

Why: a run begun elsewhere can move in. DeepSpeed's own `zero_to_fp32` unpickles whatever the files say; here they are
read with `weights_only`, and the few classes of DeepSpeed's that stand in them become empty objects. Neighbours:
`importing` writes what this reads; `commands.convert_from_hf` has the flag. Seen in DeepSpeed 0.19.8.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from tinyllama_mcore.config.errors import ConfigError
from tinyllama_mcore.hf.importing import Saved
from tinyllama_mcore.hf.weights import NamedTensors
from tinyllama_mcore.optim.groups import MOMENTS

FOREIGN = (
    "deepspeed.runtime.fp16.loss_scaler.LossScaler",
    "deepspeed.runtime.zero.config.ZeroStageEnum",
    "deepspeed.utils.tensor_fragment.fragment_address",
)
"""Classes that a sound checkpoint names; nothing of them is needed."""


def _no_member(*_: object) -> None:
    """In the place of `getattr`, by which early releases of Python 3.11 write a member of an enumeration."""


class _Empty:
    """In place of each of `FOREIGN`."""

    def __init__(self, *_: object) -> None:
        """Keep nothing."""


def read(directory: Path, tag: str | None = None) -> Saved:
    """What `directory`/`tag` holds; without a tag, the one that `latest` names.

    Raises:
        ConfigError: there is no such checkpoint, it is of another kind, or a file holds what may run code.
    """
    folder = directory / (tag or _latest(directory))
    by_rank = sorted(folder.glob("*zero_pp_rank_*_optim_states.pt"), key=_data_rank)
    models = sorted(folder.glob("*model_states.pt"))
    if not models:
        raise ConfigError(f"{folder} holds no DeepSpeed checkpoint (*_model_states.pt)")
    if any("mp_rank_00_" not in path.name for path in (*by_rank, *models)):
        raise ConfigError(f"{folder} was split over model-parallel ranks; only data-parallel ZeRO can be imported")
    if not by_rank:
        return _of_stage_0(folder, load(models[0]))
    states = [load(path)["optimizer_state_dict"] for path in by_rank]
    groups: list[Mapping[str, torch.Size]] = load(models[0])["param_shapes"]
    if len(states) != (ranks := _ranks(states[0]["partition_count"])):
        raise ConfigError(f"{folder} has {len(states)} of {ranks} optimizer files")
    updates = _updates(_adam(states[0]))
    kinds = ("model",) if updates is None else ("model", *MOMENTS)
    return _saved({kind: _joined(states, groups, kind) for kind in kinds}, updates)


def _of_stage_0(folder: Path, state: Mapping[str, Any]) -> Saved:
    """A run without ZeRO: whole tensors. Its moments are numbered, which gives names only in one parameter group."""
    weights, adam = _once(state.get("module") or {}), state.get("optimizer") or {}
    if any(weight.dtype is not torch.float32 for weight in weights.values()):
        raise ConfigError(f"{folder} is of ZeRO 0 in another precision than fp32: its weights are already rounded")
    tensors, updates = {"model": weights}, _updates(adam)
    if updates is not None and len(adam["param_groups"]) == 1:
        each = dict(zip(weights, (adam["state"][number] for number in sorted(adam["state"])), strict=True))
        return _saved(tensors | {kind: {name: own[kind] for name, own in each.items()} for kind in MOMENTS}, updates)
    return _saved(tensors, None)


def _once(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Without the second name of a matrix that two modules share, which AdamW has one state for."""
    first = {weight.data_ptr(): name for name, weight in reversed(list(weights.items()))}
    return {name: weight for name, weight in weights.items() if first[weight.data_ptr()] == name}


def _saved(tensors: Mapping[str, Mapping[str, torch.Tensor]], updates: int | None) -> Saved:
    """Kind -> name -> tensor, as an import takes it."""
    named = {kind: NamedTensors(each, "fp32 weight" if kind == "model" else kind) for kind, each in tensors.items()}
    return Saved(tensors=named, updates=updates or 0)


def _latest(directory: Path) -> str:
    """The tag in `latest`."""
    try:
        tag = (directory / "latest").read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{directory / 'latest'} cannot be read ({error}): name the checkpoint with --tag") from error
    if Path(tag).name != tag:
        raise ConfigError(f"{directory / 'latest'} names {tag!r}, which is not a directory beside it")
    return tag


def _adam(state: Mapping[str, Any]) -> Any:  # noqa: ANN401  a list of another form with elastic_checkpoint
    """The state of torch's optimizer in one rank's, by where ZeRO 1 and 2, or 3, keep it."""
    return state.get("base_optimizer_state") or state.get("optimizer_state_dict")


def _updates(adam: Any) -> int | None:  # noqa: ANN401
    """Updates that AdamW's moments have seen; None without moments: no update yet, another optimizer or file format."""
    each = list(adam["state"].values()) if isinstance(adam, Mapping) and "state" in adam else []
    if not each or not all({"step", *MOMENTS} <= own.keys() for own in each):
        return None
    counts = {int(own["step"]) for own in each}
    if len(counts) != 1:
        raise ConfigError(
            f"AdamW's moments were updated {sorted(counts)} times; only one count for all can be imported"
        )
    return counts.pop()


def _flats(state: Mapping[str, Any], kind: str) -> list[torch.Tensor]:
    """One rank's part of each parameter group, or of each sub-group of ZeRO-3."""
    if kind == "model":
        return state.get("fp32_flat_groups") or state["single_partition_of_fp32_groups"]
    each = _adam(state)["state"]
    return [each[number][kind].flatten() for number in sorted(each)]


def _joined(
    states: Sequence[Mapping[str, Any]], groups: Sequence[Mapping[str, torch.Size]], kind: str
) -> dict[str, torch.Tensor]:
    """Every tensor of a kind, out of all ranks' parts."""
    flats = [_flats(state, kind) for state in states]
    if "fp32_flat_groups" in states[0]:
        each = itertools.chain.from_iterable(group.items() for group in groups)
        return dict(_interleaved(each, [torch.cat([part.flatten() for part in own]) for own in flats]))
    found: dict[str, torch.Tensor] = {}
    for number, group in enumerate(groups):
        flat = torch.cat([own[number] for own in flats])
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
    harmless: list[Any] = [*((_Empty, name) for name in FOREIGN), (_no_member, "builtins.getattr")]
    try:
        with torch.serialization.safe_globals(harmless):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # whatever a hostile or broken file leads to: it is not read
        raise ConfigError(f"{path} cannot be read as data: {str(error).splitlines()[:1]}") from error


def _data_rank(path: Path) -> int:
    match = re.search(r"zero_pp_rank_(\d+)_", path.name)
    return int(match[1]) if match else -1


def _ranks(partition_count: int | list[int]) -> int:
    """Data-parallel ranks; ZeRO 1 and 2 count them once for each parameter group."""
    return max(partition_count) if isinstance(partition_count, list) else partition_count
