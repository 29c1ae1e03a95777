"""One run, or several beside each other, as one HTML file that needs nothing else: no network, no library.

The policy in its head lets one style sheet and one script work, by their checksums: what a file of metrics might
smuggle in is no script to a browser. Neighbours: `charts` gives the figures, `tables` the tables, `template/` holds
the page, its style and its script.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable, Sequence
from html import escape
from importlib import resources

from tinyllama_mcore.reporting import charts, tables
from tinyllama_mcore.reporting.happenings import counted, happenings
from tinyllama_mcore.reporting.metrics_file import Metrics, names_of


def render(runs: Sequence[Metrics]) -> str:
    """The page of at least one run."""
    names = names_of(runs)
    style, script = _template("page.css"), _template("page.js")
    parts = {
        "policy": f"default-src 'none'; style-src {_checksum(style)}; script-src {_checksum(script)}; img-src data:; "
        "base-uri 'none'; form-action 'none'",
        "title": escape(", ".join(names)),
        "style": style,
        "script": script,
        "data": json.dumps(charts.figures(runs, names), separators=(",", ":")).replace("<", "\\u003c"),
        "notes": "".join(f"<p>{escape(note)}</p>" for note in _notes(runs, names)),
        "summary": tables.summary(runs, names),
        "compared": f"<h2>Configuration that differs</h2>{tables.compared(runs, names)}" if len(runs) > 1 else "",
        "wall": _each(runs, names, tables.wall),
        "stragglers": _where(runs, "Slowest ranks", lambda run: run.stragglers, names, tables.stragglers),
        "norms": _where(runs, "Gradient norm by group", lambda run: run.group_norms, names, tables.norms),
        "events": _each(runs, names, tables.events),
        "restarts": _each(runs, names, tables.restarts),
        "environment": _each(runs, names, tables.environment),
        "configuration": _each(runs, names, tables.configuration),
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], _template("page.html"))


def _notes(runs: Sequence[Metrics], names: Sequence[str]) -> list[str]:
    """What a reader has to know of how this was made."""
    told = [f"{name}: {run.damage}." for run, name in zip(runs, names, strict=True) if run.damage]
    for run, name in zip(runs, names, strict=True):
        told.append(f"{name}: {', '.join(counted(happenings(run))) or 'the file tells of no events'}.")
    stretch = charts.longest_stretch(runs)
    if stretch > 1:
        told.append(
            f"A point of a chart stands for up to {stretch:,} iterations: the line is their mean, the band reaches "
            "from the least to the largest of them, so that no spike is lost."
        )
    told.append(f"A smoothed line is a mean that forgets over a {charts.SPAN}th of the run.")
    return told


def _each(runs: Sequence[Metrics], names: Sequence[str], make: Callable[[Metrics, str], str]) -> str:
    """A part of the page for each run, under its name where there are several."""
    head = "<h3>{}</h3>" if len(runs) > 1 else ""
    return "".join(head.format(escape(name)) + make(run, name) for run, name in zip(runs, names, strict=True))


def _where(
    runs: Sequence[Metrics],
    title: str,
    has: Callable[[Metrics], object],
    names: Sequence[str],
    make: Callable[[Metrics, str], str],
) -> str:
    """The same with a title, where any run has it."""
    return f"<h2>{title}</h2>{_each(runs, names, make)}" if any(map(has, runs)) else ""


def _template(name: str) -> str:
    return resources.files("tinyllama_mcore.reporting").joinpath("template", name).read_text(encoding="utf-8")


def _checksum(text: str) -> str:
    """How a Content-Security-Policy names an inline script or style."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
