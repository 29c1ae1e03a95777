"""One job at a time writes to a directory of checkpoints: two would prune, and number, each other's.

Rank 0 holds a lock on SAVE/.lock for as long as it lives. The kernel lets go of it when the process ends, however that
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
from pathlib import Path

import torch

from tinyllama_mcore.config.errors import ConfigError

FILE = ".lock"
PATIENCE_S = 30.0
"""Seconds that a start waits for the lock: a job that was killed or asked to leave may still be on its way out."""
_HELD = frozenset({errno.EACCES, errno.EAGAIN})
"""What a file system says of a lock that another process holds; anything else is that it has none."""


def take(directory: Path) -> None:
    """Make `directory` this job's until it ends. Collective; the first rank holds the lock.

    Raises:
        ConfigError: on every rank alike, where another job holds it for all of `PATIENCE_S`.
    """
    refusal: list[str | None] = [None]
    if torch.distributed.get_rank() == 0:
        refusal = [_wait_for(directory)]
    torch.distributed.broadcast_object_list(refusal, src=0)
    if refusal[0] is not None:
        raise ConfigError(refusal[0])


def _wait_for(directory: Path) -> str | None:
    """Take the lock and keep its file open for as long as this process lives; why it cannot be had, in words."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(directory / FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        return f"--save {directory} cannot be written ({error}); name a writable directory"
    end = time.monotonic() + PATIENCE_S
    problem = _attempt(descriptor)
    if problem in _HELD:
        print(f"waiting      for {_holder(descriptor)}, which saves to {directory}", file=sys.stderr, flush=True)
    while problem in _HELD and time.monotonic() < end:
        time.sleep(0.2)
        problem = _attempt(descriptor)
    if problem in _HELD:
        return (
            f"--save {directory} is in use by {_holder(descriptor)}: two jobs would remove each other's "
            "checkpoints. Name another directory, or wait until that job has ended"
        )
    if problem:
        print(
            f"note: the file system of {directory} has no locks: do not start a second job with this --save", flush=True
        )
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
    return None


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
