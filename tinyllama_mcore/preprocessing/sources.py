"""Where raw files are: on this machine, or behind a URL that fsspec opens (`s3://`, `gs://`, `hf://`, `https://`...).

A file is a `Path` or a `RemoteFile`; here, and nowhere else, is a difference made between them when it is read.
fsspec is optional, and so is the package that it needs for a scheme. Neighbours: `inputs` finds files, `readers` reads.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urlsplit

from tinyllama_mcore.config import packages
from tinyllama_mcore.config.errors import ConfigError

URL = re.compile(r"[a-z][a-z0-9+.-]*://")
READ_BYTES = 8 << 20
"""Bytes that are asked of a store at once."""
VERSIONS = (
    *("etag", "content-md5", "digest", "md5hash", "generation", "blob_id", "xet_hash"),
    *("last-modified", "lastmodified", "last_modified", "mtime", "updated", "created"),
)
"""What stores say of a file that changes when it is written anew, in small letters."""
PACKAGES = {
    **dict.fromkeys(("http", "https"), "aiohttp"),
    **dict.fromkeys(("s3", "s3a"), "s3fs"),
    **dict.fromkeys(("gs", "gcs"), "gcsfs"),
    **dict.fromkeys(("az", "abfs", "abfss"), "adlfs"),
    "hf": "huggingface_hub",
}
"""Scheme -> the module that opens it for fsspec, a row of `config.packages`."""
WEB = ("http", "https")
"""Schemes that do not say what is a directory."""


@dataclass(frozen=True, kw_only=True)
class RemoteFile:
    """A file behind a URL, as it was listed."""

    url: str
    bytes: int
    version: str
    """A checksum of what the store says of it."""

    @property
    def name(self) -> str:
        """What stands after the last slash."""
        return self.url.rsplit("/", 1)[-1]

    def __str__(self) -> str:
        return self.url


RawFile = Path | RemoteFile


def is_url(text: str) -> bool:
    """Whether it is a URL and not a path."""
    return URL.match(text) is not None


def measured(file: RawFile) -> tuple[int, str]:
    """Size in bytes, and its version: what changes when it is written anew."""
    if isinstance(file, RemoteFile):
        return file.bytes, file.version
    stat = file.stat()
    return stat.st_size, str(stat.st_mtime_ns)


def opened(path: str) -> BinaryIO:
    """A file or URL, to be read from any place. OSError, or ConfigError where a package is missing."""
    if not is_url(path):
        return open(path, "rb")
    files, inner = _file_system(path)
    return io.BufferedReader(_Remote(_asked(files.open, inner, "rb", block_size=READ_BYTES)), 1 << 20)


class _Remote(io.RawIOBase):
    """A file of fsspec's whose errors are OSErrors, and whose end is where the store said that it is."""

    def __init__(self, file: Any) -> None:  # noqa: ANN401
        self._file = file

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        found = _asked(self._file.read, len(buffer))
        size = getattr(self._file, "size", None)
        if not found and size is not None and len(buffer) and self.tell() < size:
            raise EOFError(f"the store ended at byte {self.tell()} of {size}")
        buffer[: len(found)] = found
        return len(found)

    def seek(self, place: int, whence: int = io.SEEK_SET) -> int:
        return _asked(self._file.seek, place, whence)

    def tell(self) -> int:
        return self._file.tell()

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()


def matches(url: str, endings: tuple[str, ...]) -> Iterator[RemoteFile | str]:
    """What a URL or a glob of URLs names: files, and directories as their URLs.

    Raises:
        ConfigError: a package is missing, the store refuses, or the URL holds a password or a query.
    """
    _refuse_what_is_no_place(url)
    files, path = _file_system(url)
    try:
        if any(character in path for character in "*?["):
            found = _asked(files.glob, path, detail=True)
        else:
            found = {path: _asked(files.info, path)}
    except FileNotFoundError as error:
        if error.__cause__ is None or isinstance(error.__cause__, FileNotFoundError):
            return
        raise ConfigError(f"--input {url}: cannot be listed: {error.__cause__}") from None  # so it is over http
    except OSError as error:
        raise ConfigError(f"--input {url}: cannot be listed: {error}") from None
    for name, info in sorted(found.items()):
        whole = str(files.unstrip_protocol(name))
        is_page = url.startswith(WEB) and not name.endswith(endings)
        yield whole if info.get("type") == "directory" or is_page else _remote(files, whole, name, info)


def _refuse_what_is_no_place(url: str) -> None:
    """ConfigError for a URL that holds more than a place; what may be a secret is not repeated."""
    parts = urlsplit(url)
    if parts.password is not None or (parts.scheme in WEB and parts.username is not None):
        raise ConfigError(
            f"--input {parts.scheme}://...@...: a password in a URL would stand in the receipt; give it in "
            "fsspec's configuration or the environment variables of the store's package"
        )
    mark = next((mark for mark in "?#" if mark in url), "") if parts.scheme in WEB else ""
    if mark:
        raise ConfigError(
            f"--input {url.split(mark)[0]}{mark}...: what follows {mark} is no part of a file's place: a signature "
            "would stand in the receipt, and end before a long job does, and a pattern is spelled with * over "
            f"{parts.scheme}; fetch the file (curl -o FILE URL) and give it, or give the store's own URL "
            "(s3://, gs://, az://, hf://)"
        )


def folders(url: str) -> Iterator[tuple[str, Mapping[str, RemoteFile]]]:
    """The directories under a URL that hold files, outer ones first, with their files by name."""
    files, path = _file_system(url)
    found: dict[str, dict[str, RemoteFile]] = defaultdict(dict)
    try:
        for name, info in _asked(files.find, path, detail=True).items():
            if info.get("type") == "file":
                whole = str(files.unstrip_protocol(name))
                folder, _, last = whole.rpartition("/")
                found[folder][last] = _remote(files, whole, name, info)
    except OSError as error:
        raise ConfigError(f"--input {url}: cannot be listed: {error}") from None
    yield from sorted(found.items())


def _remote(files: Any, url: str, name: str, info: Mapping[str, Any]) -> RemoteFile:  # noqa: ANN401
    if info.get("size") is None:
        info = _asked(files.info, name)
    if info.get("size") is None:
        raise ConfigError(f"--input {url}: the store does not say how many bytes it has; fetch it, and give the file")
    told = {key.lower(): str(value) for key, value in info.items() if key.lower() in VERSIONS and value is not None}
    version = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:24]
    return RemoteFile(url=url, bytes=int(info["size"]), version=version)


def _file_system(url: str) -> tuple[Any, str]:
    """Fsspec's file system of a URL, and the path in it. ConfigError where there is none."""
    scheme = url.split("://")[0]
    if not packages.is_installed("fsspec"):
        raise ConfigError(f"--input {url}: {packages.missing('fsspec')}")
    import fsspec.core

    try:
        return fsspec.core.url_to_fs(url)
    except ImportError as error:
        module = PACKAGES.get(scheme)
        absent = str(error) if module is None or packages.is_installed(module) else packages.missing(module)
        raise ConfigError(f"--input {url}: {absent}") from None
    except ValueError as error:
        raise ConfigError(f"--input {url}: fsspec knows no {scheme}:// ({error})") from None


def _asked(call: Any, *arguments: Any, **options: Any) -> Any:  # noqa: ANN401
    """A call of fsspec's; OSError for what its packages raise, each in its own classes."""
    try:
        return call(*arguments, **options)
    except (OSError, ConfigError):
        raise
    except Exception as error:
        raise OSError(f"{type(error).__name__}: {error}") from None
