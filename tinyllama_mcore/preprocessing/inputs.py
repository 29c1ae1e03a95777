"""Finds the files that a job reads: all that its paths, directories and globs name, each once; and says which it skips.

A file beside the data that is not data (a cache, an editor's copy, another tool's log) would add documents twice, or
wrong ones. A directory behind a link that was skipped silently would lose some. Neighbours: `readers` reads the files,
`preprocess` reports what was skipped.
"""

from __future__ import annotations

import fnmatch
import glob
import os
import stat
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from tinyllama_mcore.config.errors import ConfigError
from tinyllama_mcore.preprocessing.readers import FORMATS, MAY_BE_EMPTY

SIDE_FILES = {
    "cache-*.arrow": "a cache of Hugging Face's datasets, whose rows are in the data files too",
    "*.quarantine.jsonl": "bad rows that an earlier job set aside",
}
"""Names that end as data does -> what such a file is."""
HIDDEN = (".", "_")
"""Names in directories that begin so are not data: the rule of Hadoop, Spark and pyarrow."""
NAMES_SHOWN = 3
"""Most names that a message shows of files skipped for one reason."""


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """The files of a job."""

    files: tuple[Path, ...]
    """Sorted by path; no two are the same file, by whatever name."""
    skipped: tuple[str, ...]
    """What was found and is not read: one line for each reason."""


def find(patterns: Iterable[str]) -> Inputs:
    """Every file that paths, directories (searched recursively, through links) and globs name, once, sorted by path.

    Raises:
        ConfigError: a pattern without a match; a file that is named itself and is not data, has an unknown ending or
            cannot be read; a compressed file of 0 bytes.
    """
    search = _Search()
    for pattern in patterns:
        found = [Path(pattern)] if os.path.lexists(pattern) else [Path(p) for p in glob.glob(pattern, recursive=True)]
        names = [name for path in found for name in search.under(path)]
        if not names:
            passed = "; ".join(search.lines())
            raise ConfigError(
                f"--input {pattern}: no such file, and no match that ends in {', '.join(FORMATS)}"
                + (f" ({passed})" if passed else "")
            )
        search.names.update(names)
    return Inputs(files=search.distinct(), skipped=tuple(search.lines()))


@dataclass(kw_only=True)
class _Search:
    """What has been found so far."""

    names: set[Path] = field(default_factory=set)
    reasons: defaultdict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    """Reason -> names that were skipped for it."""

    def under(self, path: Path) -> list[Path]:
        """The file itself, or the data files in a directory."""
        if path.is_dir():
            return list(self._in_folder(path))
        if side := _side(path.name):
            raise ConfigError(
                f"--input {path}: is {side}; leave it out, or give its directory, in which such files are skipped "
                "(rename it if it is data)"
            )
        if not path.name.endswith(tuple(FORMATS)):
            raise ConfigError(f"--input {path}: the name must end in {', '.join(FORMATS)}")
        return [path]

    def _in_folder(self, root: Path) -> Iterator[Path]:
        """Its own directories first, then those behind links, each once: a link may lead back to its own directory."""
        waiting, seen = [root], set()
        while waiting:
            start, *waiting = waiting
            for folder, folders, names in os.walk(start, onerror=_refuse):
                identity = _identity(Path(folder))
                if identity in seen:
                    self._skip("the same directory as another one", folder)
                    folders.clear()
                    continue
                seen.add(identity)
                hidden = [name for name in folders if name.startswith(HIDDEN)]
                for name in hidden:
                    self._skip("its name begins with . or _", f"{folder}/{name}/")
                folders[:] = sorted(set(folders).difference(hidden))
                waiting += [Path(folder, name) for name in folders if Path(folder, name).is_symlink()]
                yield from self._data_in(folder, names)

    def _data_in(self, folder: str, names: Iterable[str]) -> Iterator[Path]:
        for name in names:
            reason = "its name begins with . or _" if name.startswith(HIDDEN) else _side(name)
            if not name.endswith(tuple(FORMATS)):
                reason = f"its name does not end in {', '.join(FORMATS)}"
            if reason:
                self._skip(reason, f"{folder}/{name}")
            else:
                yield Path(folder, name)

    def _skip(self, reason: str, name: str) -> None:
        self.reasons[reason].append(name)

    def distinct(self) -> tuple[Path, ...]:
        """One name of each file: no link where there is another, and the first of those."""
        kept: dict[tuple[int, int], Path] = {}
        for path in sorted(self.names, key=lambda path: (path.is_symlink(), path)):
            first = kept.setdefault(_identity(path), path)
            if first != path:
                self._skip("the same file as another one", f"{path} (as {first})")
        return tuple(sorted(kept.values()))

    def lines(self) -> Iterator[str]:
        """A line for each reason."""
        for reason, names in self.reasons.items():
            shown = sorted(set(names))
            more = f" and {len(shown) - NAMES_SHOWN:,} more" if len(shown) > NAMES_SHOWN else ""
            yield f"skipped {', '.join(shown[:NAMES_SHOWN])}{more}: {reason}"


def _side(name: str) -> str:
    """What a file of this name is, if it is a known file beside data; "" if not."""
    return next((what for pattern, what in SIDE_FILES.items() if fnmatch.fnmatchcase(name, pattern)), "")


def _identity(path: Path) -> tuple[int, int]:
    """Device and inode: the same for all names of a file or directory. ConfigError for what cannot be read as one."""
    try:
        found = path.stat()
    except OSError as error:
        _refuse(OSError(error.errno, error.strerror, str(path)))
    if not stat.S_ISDIR(found.st_mode):
        if not stat.S_ISREG(found.st_mode):
            raise ConfigError(f"--input {path}: is not a regular file (a pipe or a device?); save its content as one")
        if found.st_size == 0 and not path.name.endswith(MAY_BE_EMPTY):
            raise ConfigError(
                f"--input {path}: has 0 bytes, and a whole file of this format is never empty: was its download cut "
                f"short? Fetch it again, or leave it out (only {', '.join(MAY_BE_EMPTY)} may be empty)"
            )
    return found.st_dev, found.st_ino


def _refuse(error: OSError) -> NoReturn:
    link = " (a link to nothing)" if error.filename and os.path.islink(error.filename) else ""
    raise ConfigError(f"--input {error.filename}: cannot be read ({error.strerror}){link}") from None
