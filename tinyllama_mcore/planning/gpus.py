"""The GPUs that a plan can be made for: a table of what their data sheets promise.

Neighbours: `memory` says what a layout needs of them, `throughput` how much of them it gets.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from tinyllama_mcore.config import records, strict_json
from tinyllama_mcore.config.errors import ConfigError
from tinyllama_mcore.config.strict_json import did_you_mean
from tinyllama_mcore.model.flops import A100, H100_SXM

GIB = 2**30
NODE = 8
"""GPUs that NVLink joins: the size of an HGX or DGX node."""
RESERVE_SHARE, RESERVE_BYTES = 0.06, 2 * GIB
"""Left free of each GPU: fragments of torch's allocator, and what it does not count (CUDA context, NCCL's buffers)."""


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """One device and its share of a node's links."""

    name: str
    memory: float
    """Bytes that torch reports as the total."""
    bf16_flops: float
    """FLOP/s of dense bf16 products, without sparsity."""
    fp32_flops: float
    """FLOP/s of fp32 products without TF32, which torch leaves off."""
    hbm: float
    """Bytes/s of its own memory."""
    nvlink: float
    """Bytes/s to the other GPUs of its node, in one direction."""
    network: float
    """Bytes/s to other nodes: one InfiniBand adapter a GPU, in one direction."""
    float8: bool = False
    """Whether it multiplies in float8, at twice the rate of bf16."""
    host: float = 1.0
    """Times as fast as the hosts that `throughput` was fitted to."""

    @property
    def usable(self) -> float:
        """Bytes that a plan may fill."""
        return self.memory * (1 - RESERVE_SHARE) - RESERVE_BYTES


# NVIDIA's data sheets of the SXM modules (NVLink's figure there is both directions: halved here) and of the DGX A100
# (HDR, 200 Gbit/s a GPU) and DGX H100 and H200 (NDR, 400). Memory is what torch tells in its messages.
GPUS: dict[str, Gpu] = {
    gpu.name: gpu
    for gpu in (
        Gpu(
            name="a100-40gb",
            memory=39.5 * GIB,
            bf16_flops=A100,
            fp32_flops=19.5e12,
            hbm=1.555e12,
            nvlink=300e9,
            network=25e9,
        ),
        Gpu(
            name="a100-80gb",
            memory=79.1 * GIB,
            bf16_flops=A100,
            fp32_flops=19.5e12,
            hbm=2.039e12,
            nvlink=300e9,
            network=25e9,
        ),
        Gpu(
            name="h100-80gb",
            memory=79.1 * GIB,
            bf16_flops=H100_SXM,
            fp32_flops=67e12,
            hbm=3.35e12,
            nvlink=450e9,
            network=50e9,
            float8=True,
        ),
        Gpu(
            name="h200-141gb",
            memory=139.8 * GIB,
            bf16_flops=H100_SXM,
            fp32_flops=67e12,
            hbm=4.8e12,
            nvlink=450e9,
            network=50e9,
            float8=True,
        ),
    )
}


def find(name: str) -> Gpu:
    """The GPU of that name, the only one whose name begins so (`h100`), or the one that a JSON file holds.

    Raises:
        ConfigError: none, more than one, or the file is wrong.
    """
    if name.endswith(".json"):
        return _read(name)
    wanted = name.lower()
    found = [gpu for known, gpu in GPUS.items() if known.startswith(wanted)]
    if wanted and len(found) == 1:
        return found[0]
    if wanted and found:
        raise ConfigError(f"--gpu {name} is ambiguous: {' or '.join(gpu.name for gpu in found)}")
    raise ConfigError(f"--gpu {name} is not in the table{did_you_mean(wanted, GPUS)}")


def _read(path: str) -> Gpu:
    """A row as `plan_layout.py --measure` writes it, or a person."""
    gpu = records.from_plain(Gpu, strict_json.read(path), path)
    for field in fields(Gpu):
        value = getattr(gpu, field.name)
        if not isinstance(value, (str, bool)) and value <= 0:
            raise ConfigError(f"{path}: {field.name} must be above 0, got {value}")
    return gpu
