"""Real text and code as .jsonl, one document a file: from Debian's packages, or from directories of the user's own.

Debian's documentation stands for SlimPajama, sources that it ships for StarCoder. What is held out for validation are
whole documents. Neighbours: `__main__` runs the tools on the result.
"""

from __future__ import annotations

import gzip
import hashlib
import html
import json
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from tinyllama_mcore.config.errors import ConfigError

PART_BYTES = 16 << 20
"""Text after which another .jsonl is begun; a tokenizer is trained on the first one of each kind."""
HELD_OUT = 10
"""One document in so many is held out."""
LEAST, MOST = 200, 2 << 20
"""Bytes of a document; shorter and longer files are passed."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """A pinned Debian package (bookworm) whose files are documents."""

    kind: str
    """"text" or "code"."""
    package: str
    version: str
    endings: tuple[str, ...]
    """Of the files that are taken; .gz files are unpacked."""


SOURCES = (
    Source(kind="text", package="linux-doc-6.1", version="6.1.176-1", endings=(".rst.gz", ".rst", ".txt.gz", ".txt")),
    Source(kind="text", package="debian-handbook", version="11.20220922", endings=(".html",)),
    Source(kind="text", package="python3.11-doc", version="3.11.2-6+deb12u8", endings=(".html",)),
    Source(kind="text", package="perl-doc", version="5.36.0-7+deb12u3", endings=(".pod",)),
    Source(kind="text", package="git-doc", version="1:2.39.5-0+deb12u3", endings=(".txt",)),
    Source(kind="text", package="postgresql-doc-15", version="15.18-0+deb12u1", endings=(".html",)),
    Source(kind="text", package="openjdk-17-doc", version="17.0.19+10-1~deb12u2", endings=(".html",)),
    Source(kind="code", package="golang-1.19-src", version="1.19.8-2", endings=(".go",)),
    Source(kind="code", package="rust-src", version="1.63.0+dfsg1-2", endings=(".rs",)),
    Source(kind="code", package="python3-sympy", version="1.11.1-1", endings=(".py",)),
    Source(kind="code", package="python3-django", version="3:3.2.25-0+deb12u3", endings=(".py",)),
    Source(kind="code", package="libpython3.11-stdlib", version="3.11.2-6+deb12u8", endings=(".py",)),
)
OWN_ENDINGS = {
    "text": (".txt", ".md", ".rst", ".html", ".txt.gz", ".rst.gz"),
    "code": (".py", ".c", ".h", ".cc", ".cpp", ".cu", ".go", ".rs", ".js", ".ts", ".java", ".sh"),
}
"""Kind -> files that are documents in a directory of the user's own."""
PAGE_EDGE = re.compile(r"^(RFC \d+ .*\d{4}|.*\[Page \d+\])$\n?", re.MULTILINE)
"""First and last line of a page of an RFC."""
NOT_TEXT = re.compile(r"<(script|style|head|nav)\b.*?</\1>|<[^>]*>", re.DOTALL | re.IGNORECASE)
BLANK = re.compile(r"[ \t]*\n(?:[ \t]*\n){2,}")


def fetch(kind: str, directory: Path) -> Iterator[tuple[Path, tuple[str, ...]]]:
    """Download and unpack the pinned packages of a kind, once: the directory of each, with its endings.

    Raises:
        ConfigError: apt-get or dpkg-deb is not there, or a package cannot be had.
    """
    for source in (each for each in SOURCES if each.kind == kind):
        home = directory / source.package
        if not (home / ".unpacked").exists():
            home.mkdir(parents=True, exist_ok=True)
            _call(source, home, "apt-get", "download", "--quiet", f"{source.package}={source.version}")
            _call(source, home, "dpkg-deb", "-x", next(home.glob("*.deb")).name, ".")
            (home / ".unpacked").touch()
        yield home, source.endings


def _call(source: Source, directory: Path, *command: str) -> None:
    """Run a command of Debian's in a directory."""
    try:
        done = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False)
        problem = done.stderr.strip().splitlines()[-1:] if done.returncode else []
    except OSError as error:
        problem = [str(error)]
    if problem:
        raise ConfigError(
            f"{source.package} {source.version} cannot be had ({problem[0]}): run `apt-get update` on a Debian 12 with "
            "a network, or name directories of your own with --text DIR --code DIR"
        )


def write(kind: str, roots: Iterator[tuple[Path, tuple[str, ...]]], raw: Path) -> None:
    """Write the documents below `roots` to `raw`/KIND and the held-out ones to `raw`/KIND-held-out, each text once.

    Raises:
        ConfigError: one of the two would be empty.
    """
    seen: set[bytes] = set()
    parts = {held: _Parts(raw / f"{kind}{'-held-out' if held else ''}") for held in (False, True)}
    for text in (text for root, endings in roots for text in _documents(root, endings)):
        digest = hashlib.sha256(text.encode()).digest()
        if digest not in seen:
            seen.add(digest)
            parts[len(seen) % HELD_OUT == 0].add(text)
    for each in parts.values():
        if not each.close():
            raise ConfigError(
                f"there are too few documents for {each.directory.name}: {len(seen)} of kind {kind} between {LEAST} "
                f"and {MOST} bytes; name a directory with more of them with --{kind} DIR"
            )


class _Parts:
    """Writes documents to .jsonl files of a bounded size."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._files: list[TextIO] = []
        self._bytes = PART_BYTES
        directory.mkdir(parents=True, exist_ok=True)

    def add(self, text: str) -> None:
        """One more line."""
        if self._bytes >= PART_BYTES:
            name = self.directory / f"part-{len(self._files):03}.jsonl"
            self._files.append(open(name, "w", encoding="utf-8"))  # noqa: SIM115 - closed by close()
            self._bytes = 0
        self._bytes += self._files[-1].write(json.dumps({"text": text}) + "\n")

    def close(self) -> int:
        """Close them; how many there are."""
        for file in self._files:
            file.close()
        return len(self._files)


def _documents(root: Path, endings: tuple[str, ...]) -> Iterator[str]:
    """Cleaned files below `root`, in an order that mixes directories and depends on names only."""
    files = [path.relative_to(root).as_posix() for path in root.rglob("*") if path.name.endswith(endings)]
    for name in sorted(files, key=lambda name: hashlib.sha256(name.encode()).digest()):
        path = root / name
        if path.is_file() and not path.is_symlink():
            content = gzip.decompress(path.read_bytes()) if name.endswith(".gz") else path.read_bytes()
            if LEAST <= len(content) <= MOST and (text := clean(content, name)):
                yield text


def clean(content: bytes, name: str) -> str:
    """The text of a file without form feeds, page edges of RFCs and tags; empty where it is no UTF-8 or too short."""
    try:
        text = content.decode("utf-8").replace("\r\n", "\n")
    except UnicodeDecodeError:
        return ""
    if name.endswith(".html"):
        text = html.unescape(NOT_TEXT.sub("", text))
    text = BLANK.sub("\n\n", PAGE_EDGE.sub("", text.replace("\f", ""))).strip()
    return text if len(text) >= LEAST else ""


def text_bytes(raw: Path) -> int:
    """UTF-8 bytes of the documents in a directory of .jsonl files."""
    lines = (line for file in sorted(raw.glob("*.jsonl")) for line in file.open(encoding="utf-8"))
    return sum(len(json.loads(line)["text"].encode()) for line in lines)
