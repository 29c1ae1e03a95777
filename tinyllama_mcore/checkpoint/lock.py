"""One job at a time writes to a directory of checkpoints: two would prune, and number, each other's.

Rank 0 holds a lock on SAVE/.lock until it leaves the run. The kernel lets go of it when the process ends, however that
happens, so nothing has to be cleaned up after a crash; what the file says is for people. It is a lock of POSIX
(`fcntl`): NFS has those too, and no child process keeps one. Readers take none.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tinyllama_mcore.config.errors import ConfigError
from tinyllama_mcore.parallel.first_rank import on_first_rank

FILE = ".lock"
PATIENCE_S = 30.0
"""Seconds that a start waits for the lock: a job that was killed or asked to leave may still be on its way out."""
_HELD = frozenset({errno.EACCES, errno.EAGAIN})
"""What a file system says of a lock that another process holds; anything else is that it has none."""


@contextmanager
def held(directory: Path | None) -> Iterator[None]:
    """Make `directory`, if there is one, this job's for the length of a block. Collective; the first rank has the lock.

    Raises:
        ConfigError: on every rank alike, where another job holds it for all of `PATIENCE_S`.
    """
    if directory is None:
        yield
        return
    descriptor = on_first_rank(lambda: _locked(directory))
    try:
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _locked(directory: Path) -> int:
    """The lock's open file, which holds it until it is closed. ConfigError where the lock cannot be had."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(directory / FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise ConfigError(f"--save {directory} cannot be written ({error}); name a writable directory") from error
    end = time.monotonic() + PATIENCE_S
    problem = _attempt(descriptor)
    if problem in _HELD:
        print(f"waiting      for {_holder(descriptor)}, which saves to {directory}", file=sys.stderr, flush=True)
    while problem in _HELD and time.monotonic() < end:
        time.sleep(0.2)
        problem = _attempt(descriptor)
    if problem in _HELD:
        holder = _holder(descriptor)
        os.close(descriptor)
        raise ConfigError(
            f"--save {directory} is in use by {holder}: two jobs would remove each other's checkpoints. Name another "
            "directory, or wait until that job has ended"
        )
    if problem:
        print(
            f"note: the file system of {directory} has no locks: do not start a second job with this --save", flush=True
        )
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
    return descriptor


def _attempt(descriptor: int) -> int:
    """Try to lock; 0 where it is ours, else the error's number."""
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno or errno.ENOLCK
    return 0


def _holder(descriptor: int) -> str:
    """Who wrote the file last."""
    return os.pread(descriptor, 200, 0).decode(errors="replace").strip() or "another job"
