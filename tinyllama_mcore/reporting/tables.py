"""The tables of a page, as HTML: every text from a file is escaped here, and nowhere else is HTML made of one.

Neighbours: `page` puts them together; `happenings` and `goodput` say what stands in them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from tinyllama_mcore.config import records
from tinyllama_mcore.reporting.goodput import PARTS, TRAINING, goodput, wall_time
from tinyllama_mcore.reporting.happenings import KINDS, NOT_COMPARED, changed, happenings
from tinyllama_mcore.reporting.metrics_file import Line, Metrics, config_of, number

MOST_ROWS = 200
"""Rows of a run's events; of more, the first and the last half are listed."""
LONG = 20
"""Rows from which on a table scrolls in a box of its own."""
LAST = 10
"""Iterations that last values are averaged over."""
UNKNOWN = "-"


def table(head: Sequence[str], rows: Iterable[Sequence[object]], *, caption: str) -> str:
    """A table of texts, in a box that scrolls by itself where it is wider than the page."""
    cells = "".join(f'<th scope="col">{escape(text)}</th>' for text in head)
    body = [
        f'<tr><th scope="row">{escape(str(row[0]))}</th>'
        + "".join(f"<td>{_breakable(str(cell))}</td>" for cell in row[1:])
        + "</tr>"
        for row in rows
    ]
    kind = "box long" if len(body) > LONG else "box"
    return (
        f'<div class="{kind}" tabindex="0" role="region" aria-label="{escape(caption)}"><table>'
        f"<thead><tr>{cells}</tr></thead><tbody>{''.join(body)}</tbody></table></div>"
    )


def _breakable(text: str) -> str:
    """The text as HTML; long names may be broken where words of them meet."""
    return escape(text).replace("_", "_<wbr>")


def summary(runs: Sequence[Metrics], names: Sequence[str]) -> str:
    """How each run stands."""
    rows = {name: [facts[name] for facts in map(_facts, runs)] for name in _facts(runs[0])}
    known = ([name, *cells] for name, cells in rows.items() if any(cell != UNKNOWN for cell in cells))
    return table(["", *names], known, caption="How each run stands")


def _facts(run: Metrics) -> dict[str, str]:
    columns, config = run.columns, _last_config(run)
    losses = columns["lm_loss"][np.isfinite(columns["lm_loss"])]
    ends = (config.get("batch") or {}).get("train_iters") if isinstance(config.get("batch"), Mapping) else None
    validations = [number(event, "loss") for event in run.of("validation")]
    share = goodput(run)
    return {
        "iterations": f"{columns['iteration'][-1]:,.0f}{f' of {ends:,}' if isinstance(ends, int) else ''}",
        "tokens": f"{columns['consumed_tokens'][-1]:,.0f}",
        f"training loss, mean of the last {LAST}": f"{losses[-LAST:].mean():.4f}" if len(losses) else UNKNOWN,
        "last validation loss": f"{validations[-1]:.4f}" if validations else UNKNOWN,
        "lowest validation loss": f"{np.nanmin(validations):.4f}" if np.isfinite(validations).any() else UNKNOWN,
        "skipped updates": f"{len(run.skip_reasons):,}",
        "tokens/s of one process, median": _median(columns["tokens_per_s_per_gpu"], "{:,.0f}"),
        "MFU, median": _median(columns["mfu"], "{:.1%}"),
        "seconds an iteration, median": _median(columns["iteration_time_s"], "{:.3f}"),
        "waited for data": _share_waited(run),
        "peak memory": _largest(columns["peak_memory_gib"], "{:.2f} GiB"),
        "goodput": UNKNOWN if share is None else f"{share:.1%}",
    }


def _last_config(run: Metrics) -> Mapping[str, Any]:
    starts = run.of("start")
    return config_of(starts[-1]) if starts else {}


def _median(values: np.ndarray, form: str) -> str:
    known = values[np.isfinite(values)]
    return form.format(np.median(known)) if len(known) else UNKNOWN


def _largest(values: np.ndarray, form: str) -> str:
    known = values[np.isfinite(values)]
    return form.format(known.max()) if len(known) else UNKNOWN


def _share_waited(run: Metrics) -> str:
    waited, took = run.columns["data_wait_s"], run.columns["iteration_time_s"]
    known = np.isfinite(waited) & np.isfinite(took)
    return f"{waited[known].sum() / took[known].sum():.1%} of iterations" if took[known].sum() > 0 else UNKNOWN


def events(run: Metrics, name: str) -> str:
    """What happened to a run, and when."""
    found = happenings(run)
    rows: list[tuple[object, ...]] = [(f"{h.iteration:,}", KINDS[h.kind], h.text) for h in found]
    note = ""
    if len(rows) > MOST_ROWS:
        half = MOST_ROWS // 2
        note = f"<p>The first and the last {half} of {len(rows):,} events.</p>"
        rows = [*rows[:half], (UNKNOWN, f"{len(rows) - 2 * half:,} more", UNKNOWN), *rows[-half:]]
    if not rows:
        return "<p>The file tells of none.</p>"
    return note + table(["iteration", "event", "what"], rows, caption=f"Events of {name}")


def wall(run: Metrics, name: str) -> str:
    """Where the time went, as a bar and a table."""
    parts = wall_time(run)
    whole = sum(parts.values()) if parts else 0.0
    if not parts or whole <= 0:
        return "<p>The file does not say when the run began: an earlier version wrote it.</p>"
    bar, at = [], 0.0
    for place, (part, seconds) in enumerate(parts.items()):
        width = 100 * seconds / whole
        title = f"<title>{part} {width:.1f} %</title>"
        bar.append(f'<rect class="part{place}" x="{at:.3f}%" y="0" width="{width:.3f}%" height="100%">{title}</rect>')
        at += width
    label = f"{escape(name)}: {100 * parts[TRAINING] / whole:.1f} % of the wall time in iterations that count"
    rows = [
        (part, f"{100 * seconds / whole:.1f} %", _duration(seconds), PARTS[part])
        for part, seconds in parts.items()
        if seconds > 0
    ]
    keys = "".join(
        f'<li><svg class="key"><rect class="part{place}" width="100%" height="100%"/></svg>{part}</li>'
        for place, part in enumerate(parts)
        if parts[part] > 0
    )
    return (
        f'<svg class="wall" role="img" aria-label="{label}">{"".join(bar)}</svg><ul class="keys">{keys}</ul>'
        + table(["", "share", "time", "what it is"], rows, caption=f"Wall time of {name}")
    )


def norms(run: Metrics, name: str) -> str:
    """Gradient norms by group: the last ones, and how they have been."""
    if not run.group_norms:
        return "<p>The run was not asked for them.</p>"
    iterations = list(run.group_norms)
    rows = []
    for group, last in run.group_norms[iterations[-1]].items():
        found = np.array([float(run.group_norms[i].get(group, np.nan)) for i in iterations])
        known = np.isfinite(found)
        at = iterations[int(np.nanargmax(np.where(known, found, -np.inf)))]
        rows.append((group, f"{float(last):.4g}", _median(found, "{:.4g}"), _largest(found, "{:.4g}"), f"{at:,}"))
    head = ["", f"at iteration {iterations[-1]:,}", "median", "largest", "at iteration"]
    return table(head, rows, caption=f"Gradient norm by group of {name}")


def stragglers(run: Metrics, name: str) -> str:
    """Each rank that was the slowest of an interval of the log, or waited longest for data, and how often."""
    if not run.stragglers:
        return "<p>The run was not asked for them.</p>"
    found = list(run.stragglers.values())
    hosts = {int(s["rank"]): s["host"] for s in found} | {int(s["data_rank"]): s["data_host"] for s in found}
    rows = []
    for rank, host in sorted(hosts.items()):
        slow = np.array([s["over_median"] for s in found if s["rank"] == rank], dtype=float)
        waits = np.array([1e3 * s["data_wait_s"] for s in found if s["data_rank"] == rank], dtype=float)
        times = [f"{len(those):,} of {len(found):,}" for those in (slow, waits)]
        over = _median(slow, "{:.1%}"), _largest(slow, "{:.1%}")
        rows.append((f"{rank} ({host})", times[0], *over, times[1], _median(waits, "{:.2f} ms")))
    head = ["rank", "slowest", "over the median: median", "largest", "waited longest for data", "an iteration, median"]
    return table(head, rows, caption=f"Slowest ranks of {name}")


def _duration(seconds: float) -> str:
    hours, rest = divmod(round(seconds), 3600)
    return f"{seconds:.1f} s" if seconds < 60 else f"{hours}:{rest // 60:02}:{rest % 60:02}"


def compared(runs: Sequence[Metrics], names: Sequence[str]) -> str:
    """Every value of the configuration that is not the same in all runs, as of their last start."""
    configs = [_last_config(run) for run in runs]
    if not all(configs):
        return "<p>Not every file has its configuration: an earlier version wrote it.</p>"
    first = configs[0]
    differing: dict[str, list[object]] = {}
    for place, config in enumerate(configs):
        for field, (before, now) in records.differences(first, config).items():
            if field not in NOT_COMPARED:
                differing.setdefault(field, [before] * len(runs))[place] = now
    if not differing:
        return "<p>The runs have one configuration.</p>"
    rows = ([field, *map(_shown, values)] for field, values in differing.items())
    return table(["", *names], rows, caption="Configuration that differs")


def restarts(run: Metrics, name: str) -> str:
    """What each start did otherwise than the one before it."""
    starts = run.of("start")
    rows = [
        (f"{number(start, 'iteration'):,.0f}", field, _shown(was), _shown(now))
        for start, before in zip(starts, [None, *starts], strict=False)
        for field, (was, now) in changed(start, before).items()
    ]
    if not rows:
        return "<p>No start has another configuration than the one before it.</p>"
    return table(["start at", "", "before", "from here on"], rows, caption=f"What changed at starts of {name}")


def environment(run: Metrics, name: str) -> str:
    """Where each start ran; a start like the one before it has no column."""
    starts = run.of("start")
    columns: list[Line] = []
    for start in starts:
        if not columns or _environment(start) != _environment(columns[-1]):
            columns.append(start)
    if not columns:
        return "<p>The file does not say: an earlier version wrote it.</p>"
    rows = (
        [key, *(_shown(_environment(start).get(key)) for start in columns)]
        for key in dict.fromkeys(key for start in columns for key in _environment(start))
    )
    head = ["", *(f"from iteration {number(start, 'iteration'):,.0f}" for start in columns)]
    return table(head, rows, caption=f"Environment of {name}")


def _environment(start: Line) -> dict[str, object]:
    found = start.get("environment")
    processes = {"processes": start.get("world_size"), "parameters": start.get("parameters")}
    return {**processes, **(found if isinstance(found, Mapping) else {})}


def configuration(run: Metrics, name: str) -> str:
    """Every value of the last start's configuration."""
    rows = [(field, _shown(value)) for field, value in _leaves(_last_config(run))]
    return table(["", ""], rows, caption=f"Configuration of {name}") if rows else "<p>The file has none.</p>"


def _leaves(config: Mapping[str, Any]) -> Iterator[tuple[str, object]]:
    for field, (_, value) in records.differences({}, config).items():
        yield field, value


def _shown(value: object) -> str:
    """As JSON has it, but a plain string without its quotes."""
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return UNKNOWN if value is None else value if isinstance(value, str) else json.dumps(value)
