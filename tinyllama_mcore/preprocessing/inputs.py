"""Which files a job reads: all that its paths, folders and globs name, each once, and what was passed over, and why.

A file that lies beside data and is none (a cache, an editor's copy, another tool's log) would double documents or let
strange ones in; a folder behind a link, passed over in silence, would lose them. Neighbours: `readers` reads the files,
`preprocess` tells what was passed over.
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

from tinyllama_mcore.config.schema import ConfigError
from tinyllama_mcore.preprocessing.readers import FORMATS, MAY_BE_EMPTY

SIDE_FILES = {
    "cache-*.arrow": "a cache of Hugging Face's datasets, whose rows are in the data files too",
    "*.quarantine.jsonl": "bad rows that an earlier job set aside",
}
"""Names that end as data does -> what such a file is."""
HIDDEN = (".", "_")
"""Names in folders that begin so are no data: the rule of Hadoop, Spark and pyarrow, which others keep to."""
NAMES_SHOWN = 3
"""Names shown of the files that were passed over for one reason."""


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """The files of a job."""

    files: tuple[Path, ...]
    """Sorted by path; no two are the same file, by whatever name."""
    passed_over: tuple[str, ...]
    """What was found and is not read: one line a reason."""


def find(patterns: Iterable[str]) -> Inputs:
    """Every file that the paths, folders (searched to the bottom, through links) and globs name, once, sorted by path.

    Raises:
        ConfigError: a pattern without a match; a file that is named outright and is no data, has an unknown ending or
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
    return Inputs(files=search.distinct(), passed_over=tuple(search.lines()))


@dataclass(kw_only=True)
class _Search:
    """What has been found so far."""

    names: set[Path] = field(default_factory=set)
    reasons: defaultdict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    """Why something was passed over -> what."""

    def under(self, path: Path) -> list[Path]:
        """A file that is named outright, or what is data in a folder."""
        if path.is_dir():
            return list(self._in_folder(path))
        if side := _side(path.name):
            raise ConfigError(
                f"--input {path}: is {side}; leave it out, or give its folder, where such files are passed over "
                "(rename it if it is data)"
            )
        if not path.name.endswith(tuple(FORMATS)):
            raise ConfigError(f"--input {path}: the name must end in {', '.join(FORMATS)}")
        return [path]

    def _in_folder(self, root: Path) -> Iterator[Path]:
        """Its own folders first, then those behind links, each once: a link may lead back to where it lies."""
        waiting, seen = [root], set()
        while waiting:
            start, *waiting = waiting
            for folder, folders, names in os.walk(start, onerror=_refuse):
                identity = _identity(Path(folder))
                if identity in seen:
                    self._pass_over("the same folder as another one", folder)
                    folders.clear()
                    continue
                seen.add(identity)
                hidden = [name for name in folders if name.startswith(HIDDEN)]
                for name in hidden:
                    self._pass_over("its name begins with . or _", f"{folder}/{name}/")
                folders[:] = sorted(set(folders).difference(hidden))
                waiting += [Path(folder, name) for name in folders if Path(folder, name).is_symlink()]
                yield from self._data_in(folder, names)

    def _data_in(self, folder: str, names: Iterable[str]) -> Iterator[Path]:
        for name in names:
            reason = "its name begins with . or _" if name.startswith(HIDDEN) else _side(name)
            if not name.endswith(tuple(FORMATS)):
                reason = f"its name does not end in {', '.join(FORMATS)}"
            if reason:
                self._pass_over(reason, f"{folder}/{name}")
            else:
                yield Path(folder, name)

    def _pass_over(self, reason: str, name: str) -> None:
        self.reasons[reason].append(name)

    def distinct(self) -> tuple[Path, ...]:
        """One name of each file: no link where there is another, and the first of those."""
        kept: dict[tuple[int, int], Path] = {}
        for path in sorted(self.names, key=lambda path: (path.is_symlink(), path)):
            first = kept.setdefault(_identity(path), path)
            if first != path:
                self._pass_over("the same file as another one", f"{path} (as {first})")
        return tuple(sorted(kept.values()))

    def lines(self) -> Iterator[str]:
        """One for each reason."""
        for reason, names in self.reasons.items():
            shown = sorted(set(names))
            more = f" and {len(shown) - NAMES_SHOWN:,} more" if len(shown) > NAMES_SHOWN else ""
            yield f"passed over {', '.join(shown[:NAMES_SHOWN])}{more}: {reason}"


def _side(name: str) -> str:
    """What a file of this name is, if it lies beside data and is none."""
    return next((what for pattern, what in SIDE_FILES.items() if fnmatch.fnmatchcase(name, pattern)), "")


def _identity(path: Path) -> tuple[int, int]:
    """What is the same for all names of a file or folder. ConfigError for what cannot be read as one."""
    try:
        found = path.stat()
    except OSError as error:
        _refuse(OSError(error.errno, error.strerror, str(path)))
    if not stat.S_ISDIR(found.st_mode):
        if not stat.S_ISREG(found.st_mode):
            raise ConfigError(f"--input {path}: is no regular file; write what it gives to one")
        if found.st_size == 0 and not path.name.endswith(MAY_BE_EMPTY):
            raise ConfigError(
                f"--input {path}: has 0 bytes, and such a file has some even where it holds no rows: a download that "
                f"stopped? Fetch it again, or leave it out (only {', '.join(MAY_BE_EMPTY)} may be empty)"
            )
    return found.st_dev, found.st_ino


def _refuse(error: OSError) -> NoReturn:
    link = " (a link to nothing)" if error.filename and os.path.islink(error.filename) else ""
    raise ConfigError(f"--input {error.filename}: cannot be read ({error.strerror}){link}") from None
