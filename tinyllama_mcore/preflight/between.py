"""What joins the machines: clocks, the addresses of their names, a shared directory, and how fast they sum.

Each look here is one half of a talk: all ranks make it at once. Neighbours: `machines`, and `checks` for the rows.
"""

from __future__ import annotations

import time
import uuid
from typing import Any

from tinyllama_mcore.config.schema import LayoutConfig
from tinyllama_mcore.parallel import launch, meeting
from tinyllama_mcore.planning import links
from tinyllama_mcore.planning.gpus import GPUS, Gpu
from tinyllama_mcore.preflight.check import OK, PROBLEM, WARNING, Asked, Finding, Here, Seen, finding

ROUNDS = 3
"""Questions for the time; the quickest answer counts."""
SKEW_S, MOST_SKEW_S = 1.0, 10.0
"""Clocks that differ more are a warning, and a problem: torchrun's rendezvous takes a host for lost whose last word is
15 s old, by the clock of the host that reads it (torch 2.13, dynamic_rendezvous, `_RendezvousState`)."""
VISIBLE_S = 5.0
"""Seconds within which a file has to be seen by other hosts: network file systems remember what was not there."""
CPU_BYTES, GPU_BYTES = 4 * 2**20, 256 * 2**20
"""Summed over all ranks to see how fast that is."""
SUMS = 3
SLOW_SHARE = 0.5
"""Share of what the planner expects below which a network is a problem."""


def _others(here: Here) -> list[int]:
    """The first rank of each host but the first host."""
    first: dict[str, int] = {}
    for rank, host in here.hosts.items():
        first.setdefault(host, rank)
    return [rank for rank in first.values() if rank]


def clock(here: Here) -> dict[str, Any] | None:
    """Of each other host, seconds that its clock is ahead of the first rank's, and by how much that may be wrong."""
    patience = here.asked.patience_s / 2
    if here.rank == 0:
        return {here.hosts[rank]: list(min(_ahead(here, rank, i) for i in range(ROUNDS))) for rank in _others(here)}
    if here.rank in _others(here):
        for i in range(ROUNDS):
            here.meeting.hear(f"clock/{here.rank}/{i}/asked", patience)
            here.meeting.tell(f"clock/{here.rank}/{i}/said", time.time())
    return None


def _ahead(here: Here, rank: int, i: int) -> tuple[float, float]:
    """(may be wrong by, ahead by): the other's time beside the middle of the talk, as NTP has it."""
    begin = time.time()
    here.meeting.tell(f"clock/{rank}/{i}/asked", True)
    said = here.meeting.hear(f"clock/{rank}/{i}/said", here.asked.patience_s / 2)
    end = time.time()
    return (end - begin) / 2, said - (begin + end) / 2


def judge_clock(seen: list[Seen], asked: Asked) -> Finding:
    """None is far from the first host's."""
    (first,) = seen
    if not first.fact:
        return Finding(level=OK, words="one host")
    sure = {host: max(0.0, abs(ahead) - wrong) for host, (wrong, ahead) in first.fact.items()}
    bad = [
        f"{host}: its clock is {abs(ahead):.1f} s {'ahead of' if ahead > 0 else 'behind'} that of {first.host}"
        for host, (_, ahead) in first.fact.items()
        if sure[host] > SKEW_S
    ]
    if not bad:
        return Finding(
            level=OK, words=f"within {max(abs(ahead) + wrong for wrong, ahead in first.fact.values()):.3f} s"
        )
    return Finding(level=PROBLEM if max(sure.values()) > MOST_SKEW_S else WARNING, words="\n".join(bad))


def address(here: Here) -> dict[str, Any] | None:
    """Where gloo listens on this host."""
    if not here.is_first_of_host:
        return None
    return {"interface": meeting.network_interface(), "addresses": meeting.own_addresses()}


def judge_address(seen: list[Seen], asked: Asked) -> Finding:
    """Other hosts can reach it: gloo falls back to the loopback where a host's own name means nothing.

    Of two ranks one connects to the other, so that a single host whose address is wrong does no harm yet (torch 2.13;
    docs/evidence/failures.md, two hosts).
    """
    if len(seen) == 1:
        return Finding(level=OK, words="one host")
    bad = [
        (
            each,
            f"the host's own name means {', '.join(each.fact['addresses']) or 'nothing'}, where no other host reaches "
            "gloo: mend /etc/hosts, or export GLOO_SOCKET_IFNAME=INTERFACE",
        )
        for each in seen
        if not each.fact["interface"] and all(one.startswith("127.") or one == "::1" for one in each.fact["addresses"])
    ]
    where = (
        f"{each.host} {each.fact['interface'] or each.fact['addresses'][0]}" for each in seen if any(each.fact.values())
    )
    return finding(bad, ", ".join(where), PROBLEM if len(bad) > 1 else WARNING)


def shared(here: Here) -> bool | None:
    """Whether a host sees what the first rank writes to --save; None for who does not look."""
    save = here.asked.save
    if save is None or (here.rank and here.rank not in _others(here)):
        return None
    if here.rank:
        path, patience = (
            save / here.meeting.hear("shared/name", here.asked.patience_s / 2),
            time.monotonic() + VISIBLE_S,
        )
        while not (found := path.exists()) and time.monotonic() < patience:
            time.sleep(0.1)
        here.meeting.tell_of_this("shared/looked", True)
        return found
    path = save / f".preflight-{uuid.uuid4().hex}"
    path.write_text("seen by all\n")
    try:
        here.meeting.tell("shared/name", path.name)
        list(here.meeting.hear_all("shared/looked", _others(here), here.asked.patience_s / 2))
    finally:
        path.unlink()
    return True


def judge_shared(seen: list[Seen], asked: Asked) -> Finding:
    """All hosts see one directory."""
    if not seen:
        return Finding(level=OK, words="not looked at: no --save given")
    words = f"what {seen[0].host} writes to {asked.save} is not seen here: it has to be one directory for all hosts"
    return finding(((each, words) for each in seen if not each.fact), f"{len(seen)} host(s) see one {asked.save}")


def all_reduce(here: Here) -> dict[str, Any] | None:
    """Seconds to sum over all ranks, over gloo or NCCL, in a process group that is made as a run makes it."""
    place = here.meeting.place
    if place.world_size == 1:
        return None
    import torch

    launch.start_process_group(place, here.asked.patience_s / 60)
    device = torch.device("cuda", launch.gpu(place)) if launch.has_gpu() else torch.device("cpu")
    size = GPU_BYTES if device.type == "cuda" else CPU_BYTES
    numbers, times = torch.zeros(size // 4, device=device), []
    for _ in range(1 + SUMS):  # the first one connects
        torch.distributed.barrier()
        begin = time.perf_counter()
        torch.distributed.all_reduce(numbers)
        numbers[0].item()  # waits for a GPU
        times.append(time.perf_counter() - begin)
    torch.distributed.destroy_process_group()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    total = torch.cuda.mem_get_info(device)[1] if name else 0
    return {"bytes": size, "seconds": min(times[1:]), "gpu": name, "memory": total, "ranks": place.world_size}


def row_of(name: str, memory: int) -> Gpu | None:
    """The planner's row for a GPU that torch names so, by the nearest memory; None where it has none."""
    rows = [row for row in GPUS.values() if row.name.split("-")[0] in name.lower()]
    return min(rows, key=lambda row: abs(row.memory - memory), default=None)


def judge_all_reduce(seen: list[Seen], asked: Asked) -> Finding:
    """About as fast as the planner takes it to be."""
    if not seen:
        return Finding(level=OK, words="one process: nothing is sent")
    fact = max((each.fact for each in seen), key=lambda fact: fact["seconds"])
    ranks, size, seconds = fact["ranks"], fact["bytes"], fact["seconds"]
    rate = 2 * (ranks - 1) / ranks * size / seconds
    here = f"{rate / 1e9:.3g} GB/s sent by each rank in {size >> 20} MiB over {'NCCL' if fact['gpu'] else 'gloo'}"
    row = asked.gpu or row_of(fact["gpu"], fact["memory"])
    if row is None:
        return Finding(level=OK, words=f"{here}; no row of the planner to compare with (--gpu)")
    planned = links.all_reduce(size, links.shards(LayoutConfig(world_size=ranks), row, ranks))
    words = f"{here}, {planned / seconds:.0%} of what the planner expects of {row.name}"
    return Finding(level=PROBLEM if planned / seconds < SLOW_SHARE else OK, words=words)
