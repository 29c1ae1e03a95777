"""Finds the files that a job reads: all that its paths, directories and globs name, each once; and says which it skips.

A file beside the data that is not data (a cache, an editor's copy, another tool's log) would add documents twice, or
wrong ones. A directory behind a link that was skipped silently would lose some. Neighbours: `sources` lists what is
behind URLs, `saved_dataset` knows directories of `datasets`, `readers` reads, `preprocess` reports what was skipped.
"""

from __future__ import annotations

import fnmatch
import functools
import glob
import os
import stat
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import NoReturn

from tinyllama_mcore.config.errors import ConfigError
from tinyllama_mcore.preprocessing import saved_dataset, sources
from tinyllama_mcore.preprocessing.readers import FORMATS, KINDS, MAY_BE_EMPTY, kind
from tinyllama_mcore.preprocessing.sources import RawFile, RemoteFile

ENDINGS = tuple(FORMATS)
SIDE_FILES = {
    **dict.fromkeys(
        (saved_dataset.STATE, saved_dataset.INFO, saved_dataset.SPLITS, "dataset_infos.json"),
        "what Hugging Face's datasets says of a dataset",
    ),
    "*_document.json": "the receipt of a dataset",
    "*_document_*-of-*.json": "the receipt of a dataset",
    "cache-*.arrow": "a cache of Hugging Face's datasets, whose rows are in the data files too",
    "*.quarantine.jsonl": "bad rows that an earlier job set aside",
}
"""Names that end as data does -> what such a file is."""
HIDDEN = (".", "_")
"""Names in directories that begin so are not data: the rule of Hadoop, Spark and pyarrow."""
HIDDEN_REASON = "its name begins with . or _"
NAMES_SHOWN = 3
"""Most names that a message shows of files skipped for one reason."""


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """The files of a job."""

    files: tuple[RawFile, ...]
    """Sorted by path, and in a saved dataset as it says; no two are the same file, by whatever name."""
    skipped: tuple[str, ...]
    """What was found and is not read: one line for each reason."""


def find(patterns: Iterable[str], dataset_split: str | None = None) -> Inputs:
    """Every file that paths, directories (searched recursively, through links), globs and URLs name, once, in order.

    Args:
        patterns: of one machine, or URLs that fsspec opens.
        dataset_split: the split of each DatasetDict that is read.

    Raises:
        ConfigError: a pattern without a match; a file that is named itself and is not data, has an unknown ending or
            cannot be read; a compressed file of 0 bytes; a DatasetDict without its split.
    """
    search = _Search(dataset_split=dataset_split)
    for pattern in patterns:
        names = list(search.matching(pattern))
        if not names:
            passed = "; ".join(search.lines())
            raise ConfigError(
                f"--input {pattern}: no such file, and no match that ends in {', '.join(ENDINGS)}"
                + (f" ({passed})" if passed else "")
            )
        search.names.update(names)
    if dataset_split is not None and not search.left_out:
        raise ConfigError(
            f"--dataset-split {dataset_split}: no --input is a DatasetDict (a directory with {saved_dataset.SPLITS}); "
            "give the --preset whose split it is, or leave the flag out"
        )
    return Inputs(files=search.distinct(), skipped=tuple(search.lines()))


@dataclass(kw_only=True)
class _Search:
    """What has been found so far."""

    dataset_split: str | None
    names: set[RawFile] = field(default_factory=set)
    reasons: defaultdict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    """Reason -> names that were skipped for it."""
    left_out: dict[str, list[str]] = field(default_factory=dict)
    """DatasetDict -> its directories of other splits."""
    places: dict[RawFile, str] = field(default_factory=dict)
    """Shard of a saved dataset -> the path by which it is sorted."""

    def matching(self, pattern: str) -> Iterator[RawFile]:
        """What a pattern names: files, and the data files in directories."""
        pattern = pattern.removeprefix("file://")
        if sources.is_url(pattern):
            for remote in sources.matches(pattern, ENDINGS):
                if isinstance(remote, RemoteFile):
                    yield _judged(remote, remote.name)
                else:
                    yield from self._of_one_kind(
                        file
                        for folder, files in sources.folders(remote)
                        if not self._is_hidden(folder.removeprefix(remote.rstrip("/")), f"{folder}/")
                        for file in self._data_in(folder, files, files.__getitem__)
                    )
            return
        found = [Path(pattern)] if os.path.lexists(pattern) else [Path(p) for p in glob.glob(pattern, recursive=True)]
        for path in found:
            if path.is_dir():
                yield from self._of_one_kind(self._in_folder(path))
            else:
                yield _judged(path, path.name)

    def _of_one_kind(self, files: Iterable[RawFile]) -> Iterator[RawFile]:
        """Those of a directory that are of the first kind that it holds."""
        found = list(files)
        first = min((kind(file.name) for file in found), key=KINDS.index, default="")
        for file in found:
            if kind(file.name) == first:
                yield file
            else:
                self._skip("beside files of another format it is read only where it is named itself", str(file))

    def _in_folder(self, root: Path) -> Iterator[RawFile]:
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
                hidden = [name for name in folders if self._is_hidden(name, f"{folder}/{name}/")]
                folders[:] = sorted(set(folders).difference(hidden))
                waiting += [Path(folder, name) for name in folders if Path(folder, name).is_symlink()]
                yield from self._data_in(folder, names, functools.partial(Path, folder))

    def _is_hidden(self, below: str, told: str) -> bool:
        """Whether a directory is not data, by the parts of its path below the one that was named."""
        hidden = any(part.startswith(HIDDEN) for part in below.split("/"))
        if hidden:
            self._skip(HIDDEN_REASON, told)
        return hidden

    def _data_in(self, folder: str, names: Collection[str], file_of: Callable[[str], RawFile]) -> Iterator[RawFile]:
        """The data files of one directory; outer directories come before their own."""
        if other := next((name for out in self.left_out.values() for name in out if _is_in(folder, name)), ""):
            self._skip("another split than --dataset-split", f"{other}/")
            return
        left_out = saved_dataset.splits_left_out(folder, names, self.dataset_split)
        if left_out is not None:
            self.left_out[folder] = left_out
        shards = saved_dataset.shards(folder, names)
        for number, name in enumerate(shards):
            self.places[file_of(name)] = f"{folder}/{number:08}"
        for name in names:
            if not name.endswith(ENDINGS):
                reason = f"its name does not end in {', '.join(ENDINGS)}"
            elif name.startswith(HIDDEN):
                reason = HIDDEN_REASON
            elif what := _side(name):
                reason = what
            else:
                reason = f"{saved_dataset.STATE} beside it names other files" if shards and name not in shards else ""
            if reason:
                self._skip(reason, f"{folder}/{name}")
            else:
                yield file_of(name)

    def _skip(self, reason: str, name: str) -> None:
        self.reasons[reason].append(name)

    def distinct(self) -> tuple[RawFile, ...]:
        """One name of each file: no link where there is another, and the first of those."""
        kept: dict[object, RawFile] = {}
        for file in sorted(
            self.names, key=lambda file: (isinstance(file, Path) and file.is_symlink(), self._place(file))
        ):
            first = kept.setdefault(_identity(file), file)
            if first != file:
                self._skip("the same file as another one", f"{file} (as {first})")
        return tuple(sorted(kept.values(), key=self._place))

    def _place(self, file: RawFile) -> tuple[bool, PurePath]:
        """What files are sorted by: paths before URLs, each by its parts, so that a copy has the same order."""
        return isinstance(file, RemoteFile), PurePath(self.places.get(file, str(file)))

    def lines(self) -> Iterator[str]:
        """A line for each reason."""
        for reason, names in self.reasons.items():
            shown = sorted(set(names))
            more = f" and {len(shown) - NAMES_SHOWN:,} more" if len(shown) > NAMES_SHOWN else ""
            yield f"skipped {', '.join(shown[:NAMES_SHOWN])}{more}: {reason}"


def _is_in(folder: str, other: str) -> bool:
    return folder == other or folder.startswith(f"{other}/")


def _judged(file: RawFile, name: str) -> RawFile:
    """A file that is named itself. ConfigError where it is none that is read."""
    if side := _side(name):
        raise ConfigError(
            f"--input {file}: is {side}; leave it out, or give its directory, in which such files are skipped "
            "(rename it if it is data)"
        )
    if not name.endswith(ENDINGS):
        raise ConfigError(f"--input {file}: the name must end in {', '.join(ENDINGS)}")
    return file


def _side(name: str) -> str:
    """What a file of this name is, if it is a known file beside data; "" if not."""
    return next((what for pattern, what in SIDE_FILES.items() if fnmatch.fnmatchcase(name, pattern)), "")


def _identity(file: RawFile) -> object:
    """The same for all names of a file or directory: device and inode, or the URL. ConfigError for what is neither."""
    if isinstance(file, RemoteFile):
        _refuse_empty(file, file.bytes)
        return file.url
    try:
        found = file.stat()
    except OSError as error:
        _refuse(OSError(error.errno, error.strerror, str(file)))
    if not stat.S_ISDIR(found.st_mode):
        if not stat.S_ISREG(found.st_mode):
            raise ConfigError(f"--input {file}: is not a regular file (a pipe or a device?); save its content as one")
        _refuse_empty(file, found.st_size)
    return found.st_dev, found.st_ino


def _refuse_empty(file: RawFile, size: int) -> None:
    if size == 0 and not file.name.endswith(MAY_BE_EMPTY):
        raise ConfigError(
            f"--input {file}: has 0 bytes, and a whole file of this format is never empty: was its download cut "
            f"short? Fetch it again, or leave it out (only {', '.join(MAY_BE_EMPTY)} may be empty)"
        )


def _refuse(error: OSError) -> NoReturn:
    link = " (a link to nothing)" if error.filename and os.path.islink(error.filename) else ""
    raise ConfigError(f"--input {error.filename}: cannot be read ({error.strerror}){link}") from None
