"""What a check is: each rank looks, the first rank judges what all have seen. Neighbour: `checks` is the table."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinyllama_mcore.parallel.meeting import Meeting
from tinyllama_mcore.planning.gpus import Gpu

OK, WARNING, PROBLEM = "ok", "warning", "problem"
"""What a judge finds; a warning does not keep a run from training well."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What the user wants to be checked."""

    save: Path | None
    """Where checkpoints will go."""
    data: tuple[tuple[str, str], ...]
    """Of each dataset, the flag that names it and its prefix."""
    gpu: Gpu | None
    """The planner's row to compare the network with; None: that of the GPU that is found."""
    free_gib: float
    """Space that `save` needs, in GiB."""
    patience_s: float
    """Seconds that a check may take on a rank, and that ranks wait for each other."""


@dataclass(frozen=True, kw_only=True)
class Here:
    """This rank, and what it looks at."""

    asked: Asked
    meeting: Meeting
    hosts: Mapping[int, str]
    """Name of each rank's host, rank 0 first."""

    @property
    def rank(self) -> int:
        """This process's number in the job."""
        return self.meeting.place.rank

    @property
    def is_first_of_host(self) -> bool:
        """Whether this rank looks at what a host has only once."""
        return next(rank for rank, host in self.hosts.items() if host == self.hosts[self.rank]) == self.rank


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What one rank has seen: `fact`, as JSON has it, or the `error` that kept it from seeing."""

    rank: int
    host: str
    fact: Any = None
    error: str | None = None


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What a check found."""

    level: str
    words: str
    """What is so, or what is wrong and where; one line each."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """One row of the table."""

    name: str
    look: Callable[[Here], Any]
    """What a rank sees, as JSON takes it; None: nothing of its own to see. OSError, RuntimeError and ConfigError are
    errors of what is looked at."""
    judge: Callable[[list[Seen], Asked], Finding]
    """Of what all ranks have seen that had something to see; no errors are among it."""


def finding(bad: Iterable[tuple[Seen, str]], good: str, level: str = PROBLEM) -> Finding:
    """What is wrong, each with the rank that has seen it, or what is so where nothing is."""
    lines = by_host(bad)
    return Finding(level=level, words="\n".join(lines)) if lines else Finding(level=OK, words=good)


def by_host(bad: Iterable[tuple[Seen, str]]) -> list[str]:
    """A line for each thing that is wrong on a host, with its ranks: "ranks 8-15 (node7): ..."."""
    ranks: dict[tuple[str, str], list[int]] = {}
    for seen, words in bad:
        ranks.setdefault((seen.host, words), []).append(seen.rank)
    return [f"{numbers(each)} ({host}): {words}" for (host, words), each in ranks.items()]


def numbers(ranks: Sequence[int]) -> str:
    """Ranks as people write them: "rank 3", "ranks 0-3", "ranks 0, 2, 5"."""
    if len(ranks) == 1:
        return f"rank {ranks[0]}"
    whole = list(ranks) == list(range(ranks[0], ranks[-1] + 1))
    return f"ranks {ranks[0]}-{ranks[-1]}" if whole else f"ranks {', '.join(map(str, ranks))}"
