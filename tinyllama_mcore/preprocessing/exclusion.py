"""Refuses a job whose --exclude-set dropped nothing: a set has no rows, or no row says which set it belongs to.

A filter that finds nothing to drop looks like one that has done its work; the code that it should keep out is then
trained on. Neighbours: `shard` counts the sets, `preprocess` and `merge` ask here.
"""

from __future__ import annotations

import difflib

from tinyllama_mcore.config.errors import ConfigError
from tinyllama_mcore.data.counts import Counts
from tinyllama_mcore.preprocessing.documents import META, SET_FIELD

FLAG = "--allow-unmatched-exclude-set"
SETS_SHOWN = 20


def unmatched(counts: Counts) -> str:
    """Says which sets of --exclude-set have no rows, and which sets there are; empty where each one has rows."""
    names = [name for name, dropped in counts.dropped.items() if not dropped]
    if not names or not counts.sets:  # receipts of earlier versions have not counted them
        return ""
    rows, found = sum(counts.sets.values()), {name: count for name, count in counts.sets.items() if name}
    if not found:
        return (
            f"--exclude-set {' '.join(names)}: no row was dropped, because none of {rows:,} rows names its set in "
            f"{META}.{SET_FIELD} (in a JSON object, a Parquet struct or map, JSON in a string, or a column)"
        )
    most = sorted(found, key=lambda name: (-found[name], name))[:SETS_SHOWN]
    shown = [f"{name} ({found[name]:,})" for name in most]
    shown += [f"{len(found) - len(most):,} more"] if len(found) > len(most) else []
    alike = {name: close[0] for name in names if (close := difflib.get_close_matches(name, found, n=1))}
    guesses = "".join(f" (did you mean {close}, not {name}?)" for name, close in alike.items())
    which = "this set" if len(names) == 1 else "these sets"
    told = f"none of {rows:,} rows belongs to {which}; the sets with rows are {', '.join(shown)}{guesses}"
    return f"--exclude-set {' '.join(names)}: {told}"


def refuse_unmatched(counts: Counts) -> None:
    """ConfigError where a named set has no rows."""
    if told := unmatched(counts):
        raise ConfigError(f"{told}; name a set that has rows, or accept this with {FLAG}")
