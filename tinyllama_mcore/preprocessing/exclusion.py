"""Whether --exclude-set left out what it names: a set that no row is of, or rows that name none, are told and refused.

A filter that finds nothing to drop looks like one that has done its work; the code that it should keep out is then
trained on. Neighbours: `shard` counts the sets, `preprocess` and `merge` ask here.
"""

from __future__ import annotations

import difflib

from tinyllama_mcore.config.schema import ConfigError
from tinyllama_mcore.data.counts import Counts
from tinyllama_mcore.preprocessing.readers import META, SET_FIELD

FLAG = "--allow-unmatched-exclude-set"
SETS_SHOWN = 20


def unmatched(counts: Counts) -> str:
    """What --exclude-set named and no row is of, with the sets that there are; empty where each one was found."""
    names = [name for name, dropped in counts.dropped.items() if not dropped]
    if not names or not counts.sets:  # receipts of earlier versions have not counted them
        return ""
    rows, found = sum(counts.sets.values()), {name: count for name, count in counts.sets.items() if name}
    if not found:
        return (
            f"--exclude-set {' '.join(names)}: none of {rows:,} rows says which set it is of, so none was dropped; "
            f"{META}.{SET_FIELD} is looked for as an object, a struct or map of Parquet, JSON in a string, or a column"
        )
    most = sorted(found, key=lambda name: (-found[name], name))[:SETS_SHOWN]
    shown = [f"{name} ({found[name]:,})" for name in most]
    shown += [f"{len(found) - len(most):,} more"] if len(found) > len(most) else []
    alike = {name: close[0] for name in names if (close := difflib.get_close_matches(name, found, n=1))}
    guesses = "".join(f" (did you mean {close}, not {name}?)" for name, close in alike.items())
    told = f"none of {rows:,} rows is of it; there are rows of {', '.join(shown)}{guesses}"
    return f"--exclude-set {' '.join(names)}: {told}"


def refuse_unmatched(counts: Counts) -> None:
    """ConfigError where a named set never occurs."""
    if told := unmatched(counts):
        raise ConfigError(f"{told}; name a set that occurs, or keep these rows with {FLAG}")
