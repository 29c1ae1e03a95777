"""One preflight: the checks in turn on all ranks, the table on the first, one exit code for all.

A check that does not end, or a rank that falls silent, is a finding as well; what comes after a silent rank is not
tried, as it would be waited for again. Neighbours: `checks` is the table, `parallel.meeting` carries the words.
"""

from __future__ import annotations

import queue
import socket
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tinyllama_mcore.config import packages
from tinyllama_mcore.config.errors import ConfigError, RunFailed
from tinyllama_mcore.parallel.launchers import Launch
from tinyllama_mcore.parallel.meeting import Meeting
from tinyllama_mcore.preflight.check import OK, PROBLEM, Asked, Check, Finding, Here, Seen, by_host, numbers

LONGER_S = 5.0
"""Seconds that the first rank waits for a rank's word beyond what the rank's own look may take."""
Say = Callable[[str], None]


def run(checks: Sequence[Check], asked: Asked, launch: Launch, say: Say) -> int:
    """Try every check. Collective; the first rank says what is found.

    Returns:
        0 where no check found a problem, else 1; on every rank alike.

    Raises:
        RunFailed: this rank could not meet the others, or has lost them.
    """
    meeting = Meeting(launch, asked.patience_s)
    meeting.tell_of_this("host", socket.gethostname())
    if launch.rank == 0:
        return _first(checks, asked, meeting, say)
    try:
        hosts = {int(rank): host for rank, host in meeting.hear("hosts", 2 * asked.patience_s).items()}
        for check in checks if len(hosts) == launch.world_size else ():
            meeting.tell_of_this(check.name, _look(check, Here(asked=asked, meeting=meeting, hosts=hosts)))
            if not meeting.hear(f"{check.name}/next", 2 * asked.patience_s + LONGER_S):
                break
        code = int(meeting.hear("code"))
        meeting.tell_of_this("left", True)
    except TimeoutError as error:
        raise RunFailed(f"rank {launch.rank} ({socket.gethostname()}) lost the first rank: {error}") from error
    return code


def _first(checks: Sequence[Check], asked: Asked, meeting: Meeting, say: Say) -> int:
    size = meeting.place.world_size
    hosts = dict(meeting.hear_all("host", range(size)))
    meeting.tell("hosts", hosts)
    worst = _met(hosts, size, meeting.address, say)
    for check in checks if len(hosts) == size else ():
        own = _look(check, Here(asked=asked, meeting=meeting, hosts=hosts))
        words = {0: own, **dict(meeting.hear_all(check.name, range(1, size), asked.patience_s + LONGER_S))}
        found = _judged(check, [Seen(rank=rank, host=hosts[rank], **each) for rank, each in words.items()], asked)
        silent = [f"rank {rank} ({hosts[rank]}): no answer" for rank in range(size) if rank not in words]
        if silent:
            found = Finding(level=PROBLEM, words="\n".join((*silent, "what follows was not tried")))
        worst |= _told(check.name, found, say)
        meeting.tell(f"{check.name}/next", not silent)
        if silent:
            break
    say("no problem found" if not worst else "problems found: a run may not start, end early or be slow")
    meeting.tell("code", int(worst))
    list(meeting.hear_all("left", [rank for rank in hosts if rank], LONGER_S))  # they read what is told here
    return int(worst)


def _met(hosts: Mapping[int, str], size: int, place: str, say: Say) -> bool:
    """The row of the meeting itself; whether ranks are missing."""
    by_host: dict[str, list[int]] = {}
    for rank, host in hosts.items():
        by_host.setdefault(host, []).append(rank)
    there = ", ".join(f"{host} ({numbers(ranks)})" for host, ranks in by_host.items())
    missing = [rank for rank in range(size) if rank not in hosts]
    if not missing:
        return _told("meeting", Finding(level=OK, words=f"{size} ranks at {place}: {there}"), say)
    words = f"{len(hosts)} of {size} ranks came to {place}: {there}; missing: {numbers(missing)}"
    return _told("meeting", Finding(level=PROBLEM, words=words), say)


def _told(name: str, found: Finding, say: Say) -> bool:
    """Say a finding as a row; whether it is a problem."""
    first, *others = found.words.splitlines()
    say(f"{found.level:8} {name:16} {first}")
    for line in others:
        say(f"{'':25} {line}")
    return found.level == PROBLEM


def _look(check: Check, here: Here) -> dict[str, Any]:
    """What this rank sees, or the error, as `Seen` takes it; a look that does not end is left behind in its thread."""
    done: queue.Queue[dict[str, Any]] = queue.Queue()

    def look() -> None:
        try:
            done.put({"fact": check.look(here)})
        except (OSError, RuntimeError, ConfigError) as error:
            done.put({"error": str(error).strip() or type(error).__name__})
        except ModuleNotFoundError as error:
            done.put({"error": packages.explained(error) or str(error)})

    threading.Thread(target=look, daemon=True).start()
    try:
        return done.get(timeout=here.asked.patience_s)
    except queue.Empty:
        return {"error": f"did not end within {here.asked.patience_s:g} s"}


def _judged(check: Check, seen: Sequence[Seen], asked: Asked) -> Finding:
    errors = by_host((each, each.error.splitlines()[0]) for each in seen if each.error is not None)
    if errors:
        return Finding(level=PROBLEM, words="\n".join(errors))
    return check.judge([each for each in seen if each.fact is not None], asked)
