"""A file that is whole or as it was before: written beside its place, then renamed; two directories that trade names.

Neighbours: receipts, shards, the checkpoint's pointer and the note of a run's outputs are written by this.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Callable
from pathlib import Path


def write_text(path: Path, text: str, *, before_rename: Callable[[Path], None] | None = None) -> None:
    """Put `text` in the file at `path`, in UTF-8; a killed process leaves `PATH.partial` at most.

    Args:
        path: in a directory that is there.
        text: the whole content.
        before_rename: called with the file beside, e.g. to flush it to the disk.
    """
    beside = path.with_name(f"{path.name}.partial")
    beside.write_text(text, encoding="utf-8")
    if before_rename is not None:
        before_rename(beside)
    beside.replace(path)


_AT_FDCWD, _RENAME_EXCHANGE = -100, 2
"""Of Linux: paths as they are given, and both names stay in use (renameat2(2), from Linux 3.15 and glibc 2.28 on)."""
_NO_EXCHANGE = frozenset({errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP})
"""What a file system (NFS) or a kernel says that exchanges nothing."""


def exchange(one: Path, other: Path) -> bool:
    """Let two directories trade names in one step; False where this system has no such step, and nothing has changed.

    Raises:
        OSError: one of them is not there, or may not be renamed.
    """
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    if rename(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in _NO_EXCHANGE:
        return False
    raise OSError(number, os.strerror(number), str(one), None, str(other))
