"""What each machine is like by itself: versions, memory, disk, data, GPUs; and whether all are alike.

Neighbours: `between` looks at what joins them, `checks` has the rows.
"""

from __future__ import annotations

import hashlib
import os
import platform
import tempfile
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import tinyllama_mcore
from tinyllama_mcore.data import indexed, receipt
from tinyllama_mcore.parallel import launch
from tinyllama_mcore.preflight.check import OK, WARNING, Asked, Finding, Here, Seen, finding

LIBRARIES = ("torch", "deepspeed", "megatron-core", "numpy")
"""Distributions whose versions have to be equal on all ranks."""
MIB, GIB = 2**20, 2**30
WRITTEN = 64
"""MiB that the check of a disk writes and flushes."""
RANK_GIB = 2
"""Memory of the host that a rank needs at the least: its libraries, and its part of the weights while they are made."""
FREE_SHARE = 0.9
"""Share of a GPU's memory that has to be free: less is another process's."""
CGROUP = Path("/sys/fs/cgroup")


def versions(here: Here) -> dict[str, str]:
    """Of Python, of `LIBRARIES`, and a checksum of this package's own files."""
    package = Path(tinyllama_mcore.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        digest.update(f"{path.relative_to(package)}\0".encode() + path.read_bytes())
    return {
        "python": platform.python_version(),
        **{name: _version(name) for name in LIBRARIES},
        "tinyllama_mcore": f"{tinyllama_mcore.__version__} (files {digest.hexdigest()[:8]})",
    }


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"


def judge_versions(seen: list[Seen], asked: Asked) -> Finding:
    """All have the first rank's."""
    first = seen[0].fact
    bad = (
        (each, f"{name} {version}, where rank 0 has {first[name]}")
        for each in seen
        for name, version in each.fact.items()
        if version != first[name]
    )
    return finding(bad, ", ".join(f"{name} {version}" for name, version in first.items()))


def memory(here: Here) -> dict[str, int] | None:
    """Bytes of the host that are left, within the limit of a container; and how many ranks share them."""
    if not here.is_first_of_host:
        return None
    import psutil

    left = psutil.virtual_memory().available
    try:
        limit, used = ((CGROUP / name).read_text().strip() for name in ("memory.max", "memory.current"))
        left = left if limit == "max" else min(left, int(limit) - int(used))
    except OSError:  # no control group of its own
        pass
    return {"left": left, "ranks": sum(host == here.hosts[here.rank] for host in here.hosts.values())}


def judge_memory(seen: list[Seen], asked: Asked) -> Finding:
    """Each rank has `RANK_GIB`."""
    bad = (
        (each, f"{each.fact['left'] / GIB:.1f} GiB left for {each.fact['ranks']} ranks: {RANK_GIB} GiB each are usual")
        for each in seen
        if each.fact["left"] < RANK_GIB * GIB * each.fact["ranks"]
    )
    least = min(each.fact["left"] for each in seen) / GIB
    return finding(bad, f"{least:.1f} GiB left on the fullest host", WARNING)


def disk(here: Here) -> dict[str, float] | None:
    """Free bytes at --save, and seconds to write and flush `WRITTEN` MiB there."""
    save = here.asked.save
    if save is None or not here.is_first_of_host:
        return None
    save.mkdir(parents=True, exist_ok=True)
    block = os.urandom(MIB)
    begin = time.perf_counter()
    with tempfile.TemporaryFile(dir=save, prefix=".preflight-") as file:
        for _ in range(WRITTEN):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
        seconds = time.perf_counter() - begin
    space = os.statvfs(save)
    return {"free": space.f_bavail * space.f_frsize, "seconds": seconds}


def judge_disk(seen: list[Seen], asked: Asked) -> Finding:
    """There is room for what will be saved."""
    if not seen:
        return Finding(level=OK, words="not looked at: no --save given")
    bad = (
        (each, f"{each.fact['free'] / GIB:.1f} GiB free at {asked.save}: {asked.free_gib:g} are asked for (--free-gib)")
        for each in seen
        if each.fact["free"] < asked.free_gib * GIB
    )
    least = min(each.fact["free"] for each in seen) / GIB
    slowest = WRITTEN / max(each.fact["seconds"] for each in seen)
    return finding(bad, f"{least:.1f} GiB free at {asked.save}; {slowest:,.0f} MiB/s written and flushed")


def data(here: Here) -> dict[str, list[str]] | None:
    """Of each dataset: checksums of its index and of a sample of its tokens. A pair is held against its receipt."""
    if not here.asked.data or not here.is_first_of_host:
        return None
    return {prefix: list(_checksums(flag, prefix)) for flag, prefix in here.asked.data}


def _checksums(flag: str, prefix: str) -> Iterator[str]:
    written = receipt.read(prefix, flag)
    pair = indexed.read(prefix, flag) if written is None else receipt.check(prefix, written.vocabulary, flag)
    yield from (pair.fingerprint, pair.token_sample)


def judge_data(seen: list[Seen], asked: Asked) -> Finding:
    """All hosts have the first one's."""
    if not seen:
        return Finding(level=OK, words="not looked at: no --data-path given")
    bad = (
        (each, f"{prefix}: {kind} differ from those on {seen[0].host}")
        for each in seen
        for prefix, sums in each.fact.items()
        for kind, mine, first in zip(("documents", "tokens"), sums, seen[0].fact[prefix], strict=True)
        if mine != first
    )
    return finding(bad, f"{len(asked.data)} dataset(s), equal on {len(seen)} host(s)")


def gpu(here: Here) -> dict[str, Any]:
    """This rank's GPU: its name, memory, and whether it multiplies rightly. An empty name where there is none."""
    if not launch.has_gpu():
        return {"name": ""}
    import torch

    device = torch.device("cuda", launch.gpu(here.meeting.place))
    free, total = torch.cuda.mem_get_info(device)
    ones = torch.ones(1024, 1024, dtype=torch.bfloat16, device=device)
    right = bool(((ones @ ones) == 1024).all())
    return {"name": torch.cuda.get_device_name(device), "free": free, "total": total, "right": right}


def judge_gpu(seen: list[Seen], asked: Asked) -> Finding:
    """All have the same, free, and sound."""
    first = seen[0].fact["name"]
    bad: list[tuple[Seen, str]] = []
    for each in seen:
        fact = each.fact
        if fact["name"] != first:
            bad.append((each, f"{fact['name'] or 'no GPU'}, where rank 0 has {first or 'none'}"))
        if fact["name"] and fact["free"] < FREE_SHARE * fact["total"]:
            bad.append(
                (each, f"{fact['free'] / GIB:.1f} of {fact['total'] / GIB:.1f} GiB free: another process has the rest")
            )
        if fact["name"] and not fact["right"]:
            bad.append((each, "a product of ones is wrong: the GPU is not sound"))
    return finding(bad, f"{len(seen)} x {first}, free and sound" if first else "none: runs train on the CPU")
