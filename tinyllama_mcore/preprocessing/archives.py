"""Reads the texts of a tar: members that end in `.txt` or `.json`, those of one name together, as WebDataset lays them.

tarfile (Python 3.11) takes an archive that is cut short, or broken after its first member, for one that has ended:
each header is looked at here. Neighbours: `readers` unpacks .gz and .zst, `documents` makes a text of a `Sample`.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from typing import BinaryIO

from tinyllama_mcore.preprocessing import plain_text
from tinyllama_mcore.preprocessing.documents import Sample
from tinyllama_mcore.preprocessing.piece import Piece

TEXT, FIELDS = ENDINGS = (".txt", ".json")
"""Endings of members that are read: a text, and an object of fields."""
OF_ROWS = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet", ".arrow", ".json.gz", ".json.zst")
"""Endings of members that hold many documents, and are not read."""
HIDDEN = (".", "_")
"""Names that begin so are not data, as in a directory."""
SORTED = "unpack it and sort: mkdir d && tar -xf ARCHIVE -C d && tar --sort=name -cf SORTED.tar -C d ."
"""What brings the members of one name together."""
READ_BYTES = 1 << 20
NAMES_SHOWN = 3


class _Member(tarfile.TarInfo):
    """A member whose header is whole."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _Member:
        if len(buf) < tarfile.BLOCKSIZE:
            raise EOFError("the archive has no mark of its end")
        try:
            return super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            if any(buf):  # a block of zeros is the mark of the end
                raise ValueError(f"no header of a member: {error}") from None
            raise


def samples(file: BinaryIO, piece: Piece, key: str) -> Iterator[Sample]:
    """The rows of an archive: each of consecutive members with one name but for their endings.

    Raises:
        EOFError: it is cut short.
        ValueError: it is broken, holds no texts, holds files of many rows, or members of one name stand apart.
    """
    waiting: dict[str, bytes] = {}
    name = ""
    alone: dict[str, set[int]] = {TEXT: set(), FIELDS: set()}  # hashes of names: an archive may have millions
    for member, ending, content in _members(file):
        if waiting and (member != name or ending in waiting):
            if len(waiting) == 1:
                alone[next(iter(waiting))].add(hash(name))
            yield Sample(name, waiting.get(TEXT), waiting.get(FIELDS))
            waiting = {}
        other = FIELDS if ending == TEXT else TEXT
        if not waiting and hash(member) in alone[other]:
            raise ValueError(
                f"{member}{ending} stands apart from {member}{other}: the members of one name are one row only where "
                f"they follow each other; {SORTED}"
            )
        name, waiting[ending] = member, content
    if waiting:
        yield Sample(name, waiting.get(TEXT), waiting.get(FIELDS))


def _members(file: BinaryIO) -> Iterator[tuple[str, str, bytes]]:
    """Name without ending, ending, content of every member that is read."""
    others: list[str] = []
    read = False
    try:
        with tarfile.open(
            fileobj=file, mode="r|", tarinfo=_Member, encoding="utf-8", errors="backslashreplace"
        ) as archive:
            while (member := archive.next()) is not None:
                archive.members = []  # type: ignore[attr-defined]  # or it keeps all of them
                if not member.isreg() or _is_hidden(member.name):
                    continue
                ending = next((each for each in ENDINGS if member.name.endswith(each)), "")
                if member.name.endswith(OF_ROWS):
                    raise ValueError(
                        f"member {member.name} is a file of many rows; of an archive only members that end in "
                        f"{' or '.join(ENDINGS)}, one document each, are read: unpack it, and give its directory"
                    )
                if not ending:
                    others = [*others, member.name][:NAMES_SHOWN]
                    continue
                content = archive.extractfile(member)
                assert content is not None  # it is a regular file
                read = True
                found = content.read()
                yield member.name.removesuffix(ending), ending, plain_text.text(found) if ending == TEXT else found
            _refuse_more(archive)
    except tarfile.TarError as error:
        raise ValueError(f"not a whole tar archive: {error}") from None
    if not read and others:
        raise ValueError(f"no member ends in {' or '.join(ENDINGS)}; it holds {', '.join(others)}")


def _is_hidden(name: str) -> bool:
    return any(part.startswith(HIDDEN) and part not in (".", "..") for part in name.split("/"))


def _refuse_more(archive: tarfile.TarFile) -> None:
    """After the mark of the end there are only zeros, in whole blocks. A compressed file is read to its checksum."""
    stream = archive.fileobj
    assert stream is not None
    while rest := stream.read(READ_BYTES):
        if any(rest):
            raise ValueError("something follows the end of the archive: archives put together by cat? Give them singly")
    if stream.tell() % tarfile.BLOCKSIZE:
        raise EOFError("the archive ends inside a block")
