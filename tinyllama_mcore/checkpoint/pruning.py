"""How a checkpoint takes the place of another of its iteration, how it is taken back, and how older ones go.

Nothing that this program did not make is removed, and a removal that fails costs no checkpoint. A directory gets an
ending before it is removed, so that no name ever stands for half a checkpoint. Neighbours: `layout` says whose a name
is, `writer` calls.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from tinyllama_mcore.checkpoint import layout
from tinyllama_mcore.config import atomic


def put_in_place(beside: Path, final: Path) -> None:
    """Give the checkpoint `beside` its name; one that has this name is renamed `.replaced`, and removed later.

    At every moment a checkpoint of this iteration can be found, where there was one (`layout.settle`). OSError where
    it cannot be renamed.
    """
    if layout.exists(final) and not layout.is_ours(final):
        layout.set_aside(final)
    if not layout.exists(final):
        beside.rename(final)
        return
    stale = final.with_suffix(layout.REPLACED)
    if layout.exists(stale):
        stale.rename(layout.free(final, layout.REMOVED))
    if atomic.exchange(beside, final):
        beside.rename(stale)
        return
    final.rename(stale)
    try:
        beside.rename(final)
    except OSError:
        if not layout.exists(final):
            stale.rename(final)
            raise
        final.rename(stale)  # a reader that came just now has put the older one back
        beside.rename(final)


def take_back(final: Path) -> None:
    """Remove a checkpoint whose flush failed; the one that it replaced stands there again. Raises nothing.

    The tracker names the newest that is left, or goes: it may have been written already.
    """
    directory = final.parent
    try:
        if layout.is_ours(final):
            remove(final)
        layout.settle(directory)
        layout.point(directory, max(layout.iterations(directory), default=None))
    except OSError as error:
        print(f"warning: {final} could not be removed: {error}", file=sys.stderr, flush=True)


def remove(folder: Path) -> None:
    """Remove a directory of ours. OSError where that fails; what is left of it is no checkpoint then."""
    if layout.REMOVED not in folder.name:
        folder = folder.rename(layout.free(folder.with_suffix(""), layout.REMOVED))
    shutil.rmtree(folder)


def prune(directory: Path, keep_latest: int, needed: int) -> None:
    """Remove finished checkpoints but the newest `keep_latest`, and what a killed save left.

    Raises nothing: what cannot be removed is told in one line on stderr, and tried again at the next save.

    Args:
        directory: of checkpoints, of which nobody else writes any.
        keep_latest: newest checkpoints to keep; 0 keeps all.
        needed: the newest checkpoint up to this iteration is kept too: a rollback would take it.
    """
    failed = []
    for folder in [*layout.unfinished(directory), *_older(directory, keep_latest, needed)]:
        try:
            remove(folder)
        except OSError as error:
            failed.append(f"{folder}: {error}")
    if failed:
        more = f", and {len(failed) - 1} more" if len(failed) > 1 else ""
        print(
            f"warning: could not remove the superseded {failed[0]}{more}. The run goes on; the next save tries again",
            file=sys.stderr,
            flush=True,
        )


def _older(directory: Path, keep_latest: int, needed: int) -> list[Path]:
    """Finished checkpoints of ours that nobody needs any more, oldest first. Links are the user's."""
    finished = layout.iterations(directory)
    kept = {*finished[-keep_latest:], *[each for each in finished if each <= needed][-1:]}  # [-0:] is all of them
    folders = (layout.folder(directory, iteration) for iteration in finished if iteration not in kept)
    return [folder for folder in folders if layout.is_ours(folder)]
