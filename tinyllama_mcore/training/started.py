"""What is known at a run's start, for those who look at it later: fields of the metrics file's "start" line.

Neighbours: `json_lines` writes them; a checkpoint's manifest keeps the same configuration.
"""

from __future__ import annotations

import platform
import socket
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

import tinyllama_mcore
from tinyllama_mcore.checkpoint.manifest import Checkpoint
from tinyllama_mcore.checkpoint.saver import PACKAGES
from tinyllama_mcore.config import records
from tinyllama_mcore.config.parameters import count_parameters
from tinyllama_mcore.config.schema import RunConfig
from tinyllama_mcore.parallel import launch

RUN = {"torch": ("2.11", "2.13"), "deepspeed": ("0.19",), "megatron-core": ("0.16", "0.19")}
"""Minor versions that this trainer was run with, of libraries whose private names it uses; setup.py has the bounds."""


def untried(versions: Mapping[str, str | None]) -> Iterator[str]:
    """What to tell of versions that this trainer was not run with."""
    for name, run in RUN.items():
        version = versions[name]
        if version is not None and ".".join(version.split(".")[:2]) not in run:
            yield f"{name} {version} was not run with this trainer; run were {', '.join(run)}"


def fields(run: RunConfig, checkpoint: Checkpoint | None) -> dict[str, Any]:
    """The fields of a start: of which run, where, from which checkpoint, and what differs from that one's run.

    "start_s" are the seconds since this process was started, "changed" is name -> [there, here]; a run that begins
    has none.
    """
    config = records.to_plain(run)
    return {
        "start_s": launch.process_age(),
        "resumed_from": None if checkpoint is None else str(checkpoint.folder),
        "world_size": run.layout.world_size,
        "parameters": count_parameters(run.model),
        "environment": environment(),
        "changed": {} if checkpoint is None else records.differences(checkpoint.manifest.run, config),
        "config": config,
    }


def environment() -> dict[str, str | None]:
    """The first rank's host, its device, and the versions of what computes; None for what is not there."""
    on_gpu = torch.cuda.is_available()
    return {
        "host": socket.gethostname(),
        "device": torch.cuda.get_device_name() if on_gpu else platform.processor() or platform.machine(),
        "python": platform.python_version(),
        "cuda": torch.version.cuda if on_gpu else None,
        "tinyllama_mcore": tinyllama_mcore.__version__,
        **{name: _version(name) for name in PACKAGES},
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:  # put on the path by hand
        return None
