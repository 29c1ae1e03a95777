"""What happened to a run, in order: restarts, layout changes, blends, skipped updates, rollbacks, saves, validations.

Neighbours: `metrics_file` reads, `charts` marks them, `tables` lists them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from tinyllama_mcore.config import records
from tinyllama_mcore.reporting.metrics_file import Line, Metrics, config_of, number

KINDS = {
    "start": "start",
    "restart": "restart",
    "layout": "restart in another layout",
    "blend": "planned blend",
    "skip": "skipped update",
    "rollback": "rollback",
    "save": "save",
    "validation": "validation",
}
"""Kind -> what it is called."""
OF_A_LAYOUT = ("layout.", "sharding.")
"""How names of the configuration begin that say how ranks share the work."""
NOT_COMPARED = ("notes", "checkpoint.load")
"""Sentences, and a path that is told as the checkpoint gone on from."""


@dataclass(frozen=True, kw_only=True)
class Happening:
    """One of them."""

    iteration: int
    kind: str
    """Key of KINDS."""
    text: str
    """In words, with its figures."""


def happenings(run: Metrics) -> list[Happening]:
    """All of a run, by iteration; of one iteration as they were written."""
    starts = run.of("start")
    found = [_start(start, before) for start, before in zip(starts, [None, *starts], strict=False)]
    found += [Happening(iteration=i, kind="skip", text=reason) for i, reason in run.skip_reasons.items()]
    found += [Happening(iteration=int(e["iteration"]), kind="rollback", text=_rollback(e)) for e in run.of("rollback")]
    found += [Happening(iteration=int(e["iteration"]), kind="blend", text=_blend(e)) for e in run.of("blend")]
    found += [Happening(iteration=int(e["iteration"]), kind="save", text=_save(e)) for e in run.of("save")]
    found += [Happening(iteration=int(e["iteration"]), kind="validation", text=_loss(e)) for e in run.of("validation")]
    return sorted(found, key=lambda happening: happening.iteration)


def changed(start: Line, before: Line | None = None) -> dict[str, tuple[object, object]]:
    """Name -> (before, now) of what a start does otherwise than the start before it, or its checkpoint's run."""
    pairs = start.get("changed")
    if before is not None and config_of(before) and config_of(start):
        pairs = records.differences(config_of(before), config_of(start))
    if not isinstance(pairs, dict):
        return {}
    both = {name: pair for name, pair in pairs.items() if isinstance(pair, list) and len(pair) == 2}
    return {name: (pair[0], pair[1]) for name, pair in both.items() if name not in NOT_COMPARED}


def _start(start: Line, before: Line | None) -> Happening:
    lost, what = number(start, "lost_iterations"), []
    if start.get("resumed_from") is not None:
        what.append(f"from {start['resumed_from']}")
    world = start.get("world_size")
    what.append(f"{world} process{'es' * (world != 1)}, up after {number(start, 'start_s'):.1f} s")
    if lost > 0:
        what.append(f"{lost:,.0f} iterations were lost ({number(start, 'lost_s'):.1f} s)")
    names = list(changed(start, before))
    if names:
        what.append(f"changed: {', '.join(names)}")
    first = before is None and start.get("resumed_from") is None
    in_another = any(name.startswith(OF_A_LAYOUT) for name in names)
    kind = "start" if first else "layout" if in_another else "restart"
    return Happening(iteration=int(start["iteration"]), kind=kind, text="; ".join(what))


def _rollback(event: Line) -> str:
    samples = f"samples {number(event, 'first_sample'):,.0f} to {number(event, 'end_sample') - 1:,.0f} are skipped"
    return f"from iteration {number(event, 'back_from'):,.0f}: {event.get('reason')}; {samples}"


def _blend(event: Line) -> str:
    shares = event.get("shares")
    shares = shares if isinstance(shares, dict) else {}
    drawn = ", ".join(f"{number(shares, prefix):.4f} from {prefix}" for prefix in shares)
    return f"begins with sample {number(event, 'first_sample'):,.0f}: {drawn}"


def _save(event: Line) -> str:
    where = ", written in the background" if event.get("in_background") else ""
    return f"training waited {number(event, 'seconds'):.2f} s{where}"


def _loss(event: Line) -> str:
    loss, seconds = number(event, "loss"), number(event, "seconds")
    perplexity = number(event, "perplexity")
    words = "infinite" if math.isinf(perplexity) else f"{perplexity:.2f}"
    return f"loss {loss:.4f}, perplexity {words}, {seconds:.2f} s"


def counted(found: list[Happening]) -> Iterator[str]:
    """How many there are of each kind, in words."""
    for kind, word in KINDS.items():
        count = sum(happening.kind == kind for happening in found)
        if count:
            yield f"{count:,} {word}{'s' if count > 1 and kind != 'layout' else ''}"
