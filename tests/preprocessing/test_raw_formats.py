"""What people have besides JSON lines and Parquet: texts, arrays of JSON, archives, saved datasets; written by others.

A dataset made from each has, byte for byte, the `.bin` and `.idx` of the same documents as `.jsonl`.
"""

from __future__ import annotations

import io
import json
import re
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pyarrow.feather
import pytest
import zstandard

from tests.preprocessing.test_preprocess import job_of
from tests.preprocessing.test_readers import read
from tests.raw_files import json_lines, tar_of, write_rows
from tinyllama_mcore.config.errors import ConfigError
from tinyllama_mcore.preprocessing import archives, documents, inputs, json_rows, piece, preprocess, readers, shard

BOM = b"\xef\xbb\xbf"


def _folder_of_texts(home: Path, texts: list[str]) -> Path:
    for folder in range(3):
        (home / f"raw/{folder}").mkdir(parents=True)
    for number, text in enumerate(texts):
        path = home / f"raw/{number * 3 // len(texts)}/{number:03}.txt"
        path.write_bytes(BOM * (number == 1) + text.encode())
    return home / "raw"


def _by_pandas(home: Path, texts: list[str]) -> Path:
    import pandas

    pandas.DataFrame({"id": range(len(texts)), "text": texts}).to_json(home / "d.json", orient="records", indent=1)
    return home / "d.json"


def _array(home: Path, texts: list[str]) -> Path:
    rows = [{"text": text, "meta": {"a": [1, {"b": "]}"}], "c": None}} for text in texts]
    (home / "d.json.zst").write_bytes(zstandard.ZstdCompressor().compress(json.dumps(rows).encode()))
    return home / "d.json.zst"


def _lines_called_json(home: Path, texts: list[str]) -> Path:
    (home / "d.json").write_bytes(BOM + json_lines(texts))
    return home / "d.json"


def _feather(home: Path, texts: list[str]) -> Path:
    pyarrow.feather.write_feather(pyarrow.table({"text": texts}), str(home / "d.arrow"), chunksize=7)
    return home / "d.arrow"


def _saved_dataset(home: Path, texts: list[str]) -> Path:
    import datasets

    datasets.Dataset.from_dict({"id": list(range(len(texts))), "text": texts}).save_to_disk(home / "raw", num_shards=3)
    pyarrow.feather.write_feather(
        pyarrow.table({"text": ["of an older save"]}), str(home / "raw/data-00000-of-00001.arrow")
    )
    return home / "raw"


def _saved_splits(home: Path, texts: list[str]) -> Path:
    import datasets

    def made(texts: list[str]) -> datasets.Dataset:
        return datasets.Dataset.from_dict({"text": texts})

    datasets.DatasetDict({"test": made(["never trained on"]), "train": made(texts)}).save_to_disk(home / "raw")
    return home / "raw"


def _by_tar(home: Path, texts: list[str]) -> Path:
    """GNU tar, of a directory, with a link, a hard link and what macOS leaves."""
    _folder_of_texts(home, texts)
    first = home / "raw/0/000.txt"
    (home / "raw/0/link.txt").symlink_to(first)
    (home / "raw/0/._000.txt").write_bytes(b"\x00\x05\x16\x07")
    (home / "raw/zz.txt").hardlink_to(first)
    subprocess.run(["tar", "--sort=name", "-czf", home / "d.tar.gz", "-C", home / "raw", "."], check=True)
    return home / "d.tar.gz"


def _web_dataset(home: Path, texts: list[str]) -> Path:
    """Shards of samples: an image and its text, fields beside it, or fields that hold the text."""
    (home / "raw").mkdir()
    for shard_number in range(2):
        members = []
        for number in range(shard_number, len(texts), 2):
            key, text = (
                f"{'long/' * 60 * (number == 6)}{number:06}",
                texts[(number - shard_number) // 2 + shard_number * (-(-len(texts) // 2))],
            )
            fields = {"meta": {"redpajama_set_name": "C4"}, **({} if number % 3 else {"text": text})}
            members += [(f"{key}.jpg", b"\xff\xd8"), (f"{key}.json", json.dumps(fields).encode())]
            members += [(f"{key}.txt", text.encode())] if number % 3 else []
        content = tar_of(members)
        (home / f"raw/{shard_number:05}.tar.zst").write_bytes(zstandard.ZstdCompressor().compress(content))
    return home / "raw"


WRITERS: dict[str, tuple[Callable[[Path, list[str]], Path], dict[str, object]]] = {
    "a folder of .txt": (_folder_of_texts, {}),
    ".json by pandas": (_by_pandas, {}),
    ".json.zst": (_array, {}),
    "lines in a .json": (_lines_called_json, {}),
    "Feather": (_feather, {}),
    "save_to_disk": (_saved_dataset, {}),
    "a split of save_to_disk": (_saved_splits, {"dataset_split": "train"}),
    "GNU tar": (_by_tar, {}),
    "WebDataset": (_web_dataset, {}),
}


def _bytes_of(prefix: str) -> list[bytes]:
    return [Path(f"{prefix}{suffix}").read_bytes() for suffix in (".bin", ".idx")]


@pytest.mark.parametrize("writer", WRITERS)
def test_the_bytes_are_those_of_json_lines(
    tmp_path: Path, tokenizer_model: Path, texts: list[str], writer: str
) -> None:
    """Whatever wrote the files, with one worker and three."""
    (tmp_path / "lines.jsonl").write_bytes(json_lines(texts))
    (expected,) = preprocess.run(job_of(tmp_path / "lines.jsonl", tmp_path / "expected", tokenizer_model))
    write, options = WRITERS[writer]
    path = write(tmp_path, texts)
    for workers in (1, 3):
        job = job_of(path, tmp_path / f"out{workers}", tokenizer_model, workers=workers, **options)
        (made,) = preprocess.run(job)
        assert _bytes_of(made.prefix) == _bytes_of(expected.prefix)
        assert made.receipt.counts.documents == len(texts)


def _blocks(text: str) -> list[str]:
    """The blocks of a text by another way: everything between lines of white space."""
    return [block for block in re.split(r"(?m)(?:^[ \t\r]*\n)+", text) if block.strip()]


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8, 13, 10_000])
def test_each_paragraph_is_in_one_piece(tmp_path: Path, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever a file is cut: in blank lines, in blocks, at their ends; with other ends of lines, or without one."""
    monkeypatch.setattr(readers, "PIECE_BYTES", size)
    for text in (
        "one\ntwo\n\n \t\nthree\n\n",
        "\n\na\n\nb\r\n\r\n\r\nc\r\nd\n  \n  e  \n",
        "alone",
        "\n",
        "",
        "a\n\n" * 9 + "b",
    ):
        for mark in (b"", BOM):
            (tmp_path / "d.txt").write_bytes(mark + text.encode())
            pieces = readers.pieces(tmp_path / "d.txt", "paragraph")
            found = [row["text"].decode() for piece in pieces for row in readers.rows(piece, "text")]  # type: ignore[index,call-overload,union-attr]
            assert found == [block.removesuffix("\n").removesuffix("\r") for block in _blocks(text)], (text, mark)


def test_paragraphs_are_documents(tmp_path: Path, tokenizer_model: Path, texts: list[str]) -> None:
    """The tool's own words; a .txt elsewhere, or the flag without one, is refused."""
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw/1.txt").write_text("\n\n\n".join(texts))
    (tmp_path / "raw/2.txt").write_text("")
    blocks = [block.removesuffix("\n") for block in _blocks("\n\n\n".join(texts))]
    (tmp_path / "lines.jsonl").write_bytes(json_lines(blocks))
    (expected,) = preprocess.run(job_of(tmp_path / "lines.jsonl", tmp_path / "expected", tokenizer_model))
    job = job_of(tmp_path / "raw", tmp_path / "out", tokenizer_model, txt_documents="paragraph", workers=2)
    assert _bytes_of(preprocess.run(job)[0].prefix) == _bytes_of(expected.prefix)
    (whole,) = preprocess.run(job_of(tmp_path / "raw", tmp_path / "whole", tokenizer_model))
    assert (whole.receipt.counts.documents, whole.receipt.counts.empty_documents) == (1, 1)
    with pytest.raises(ConfigError, match=r"--txt-documents paragraph: no --input is a \.txt; leave the flag out"):
        preprocess.run(job_of(tmp_path / "lines.jsonl", tmp_path / "o", tokenizer_model, txt_documents="paragraph"))


ELEMENTS = [
    {"text": 'quotes " and \\ and \\" and [{,}]', "more": [[], {}, [1, {"a": "]"}]]},
    {"text": 'one quote " ]} , [{'},
    {"text": "a backslash \\"},
    {"text": "é\u2028\n" * 20},
    {"text": ""},
    {},
    5,
    "text, alone",
    None,
    [{"text": "in an array"}],
]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 1 << 20])
def test_each_element_of_an_array_is_a_row(tmp_path: Path, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `json` finds them, however much is read at once."""
    monkeypatch.setattr(json_rows, "READ_BYTES", size)
    for elements in (ELEMENTS, []):
        for indent, ascii_only in ((None, True), (2, False)):
            content = json.dumps(elements, indent=indent, ensure_ascii=ascii_only).encode()
            (tmp_path / "d.json").write_bytes(BOM * ascii_only + b"\n " + content + b" \n\n")
            (piece,) = readers.pieces(tmp_path / "d.json")
            assert [json.loads(row) for row in readers.rows(piece, "text")] == elements  # type: ignore[arg-type]


def test_bad_rows_of_an_array_and_of_an_archive_are_set_aside(tmp_path: Path, tokenizer_model: Path) -> None:
    """As all rows: the first ends the job and is named; with a rate they are counted by kind and kept."""
    elements = [b'{"text": "good"}', b"{}", b'{"text": "\xff"}', b'{"text": 5}', b"{'text'}", b'{"text": "\\ud800"}']
    (tmp_path / "d.json").write_bytes(b"[" + b", ".join(elements) + b", ]")
    members = [(f"{number}.json", element) for number, element in enumerate(elements[:-1])]
    members += [("a/b.txt", b"\xff"), ("both.txt", b"good"), ("both.json", b"[]"), ("last.txt", b"good")]
    (tmp_path / "d.tar").write_bytes(tar_of(members))
    told = {"missing key": 1, "invalid UTF-8": 1, "wrong type": 1, "broken JSON": 1}
    expected = {
        "d.json": ({**told, "broken JSON": 2, "lone surrogate": 1}, r"d\.json, row 2: no key \"text\", it has none"),
        "d.tar": ({**told, "invalid UTF-8": 2, "wrong type": 2}, r"d\.tar, row 2: member 1: no key \"text\""),
    }
    for name, (counts, message) in expected.items():
        with pytest.raises(ConfigError, match=message):
            preprocess.run(job_of(tmp_path / name, tmp_path / "none", tokenizer_model))
        job = job_of(tmp_path / name, tmp_path / f"out-{name}", tokenizer_model, bad_row_rate=0.9)
        (made,) = preprocess.run(job)
        assert made.receipt.counts.quarantined == counts
        kept = [json.loads(line) for line in Path(f"{made.prefix}.quarantine.jsonl").read_text().splitlines()]
        assert len(kept) == sum(counts.values())
    assert "member a/b: " in kept[4]["why"]


def test_a_texts_fields_say_which_set_it_is_of(tmp_path: Path) -> None:
    """A sample is a row: `text` is its .txt, whatever the .json says, and the rest is the .json's."""
    fields = {"text": "not this", "title": "t", "meta": {"redpajama_set_name": "Book"}}
    members = [("a.txt", b"this"), ("a.json", json.dumps(fields).encode()), ("a.txt", b"another")]
    (tmp_path / "d.tar").write_bytes(tar_of(members))
    assert read(tmp_path / "d.tar") == [documents.Document("this", "Book"), documents.Document("another", "")]
    with pytest.raises(documents.BadRow, match=r'row 2: member a: no key "title", it has text'):
        read(tmp_path / "d.tar", "title")


def test_an_archive_that_lost_its_end_is_never_a_smaller_one(tmp_path: Path) -> None:
    """Wherever it was cut, at the end of a member too, where tarfile itself sees nothing."""
    whole = tar_of((f"{number}.txt", b"x" * 300 * number) for number in range(6))
    path = tmp_path / "d.tar"
    end = len(whole.rstrip(b"\0")) // tarfile.BLOCKSIZE * tarfile.BLOCKSIZE + tarfile.BLOCKSIZE
    for size in [*range(128, end + 1, 128), len(whole) - 1]:
        path.write_bytes(whole[:size])
        with pytest.raises(ConfigError, match=r"d\.tar: cannot be read to its end, near byte"):
            read(path)
    path.write_bytes(whole[: end + tarfile.BLOCKSIZE])  # only padding is lost
    assert len(read(path)) == 6


def test_archives_that_are_not_read_say_why(tmp_path: Path) -> None:
    """Broken inside, two in one file, files of many rows, no texts, no archive at all."""
    good = tar_of([("1.txt", b"a" * 600), ("2.txt", b"b")])
    broken = bytearray(good)
    negative = tarfile.TarInfo("1.txt")
    negative.size = -1024
    broken[3 * tarfile.BLOCKSIZE + 10] ^= 0xFF  # in the header of the second member
    for content, message in (
        (bytes(broken), "no header of a member: bad checksum"),
        (good * 2, "something follows the end of the archive: archives put together by cat"),
        (
            tar_of([("1.txt", b"a"), ("x/rows.jsonl", b"{}")]),
            r"member x/rows\.jsonl is a file of many rows; .* unpack it",
        ),
        (tar_of([("1.jpg", b"a"), ("2.cls", b"b")]), r"no member ends in \.txt or \.json; it holds 1\.jpg, 2\.cls"),
        (b"version https://git-lfs.github.com/spec/v1\n" * 20, "no header of a member"),
        (negative.tobuf(tarfile.GNU_FORMAT) + good, "not a whole tar archive"),
    ):
        (tmp_path / "d.tar").write_bytes(content)
        with pytest.raises(ConfigError, match=rf"d\.tar: .*{message}"):
            read(tmp_path / "d.tar")


def test_a_cut_array_or_stream_is_never_a_smaller_one(tmp_path: Path) -> None:
    """An array at every byte; a stream between two batches too, where pyarrow itself sees nothing."""
    whole = json.dumps([{"text": 'a "b" ]'}, {"text": "c"}]).encode()
    for size in range(1, len(whole)):
        (tmp_path / "d.json").write_bytes(whole[:size])
        with pytest.raises(ConfigError, match=r"d\.json: .* it ends inside its array of rows"):
            read(tmp_path / "d.json")
    (tmp_path / "d.json").write_bytes(whole + b'\n[{"text": "d"}]')
    with pytest.raises(ConfigError, match=r"d\.json: .* follows its array of rows"):
        read(tmp_path / "d.json")
    table = pyarrow.table({"text": ["a"] * 20})
    made, ends = io.BytesIO(), []
    with pyarrow.ipc.new_stream(made, table.schema) as stream:
        for batch in table.to_batches(max_chunksize=5):
            stream.write_batch(batch)
            ends.append(made.tell())
    for end in ends:
        (tmp_path / "d.arrow").write_bytes(made.getvalue()[:end])
        with pytest.raises(ConfigError, match=r"d\.arrow: .* the Arrow stream has no mark of its end"):
            read(tmp_path / "d.arrow")


def test_a_saved_dataset_is_read_as_it_says(tmp_path: Path) -> None:
    """In the order of state.json; a lost shard, chosen rows, splits that are not named or not there are refused."""
    train = tmp_path / "saved/train"
    train.mkdir(parents=True)
    for name in ("b.arrow", "a.arrow", "c.arrow"):
        write_rows(train / name, [{"text": name}])
    state = {"_data_files": [{"filename": "b.arrow"}, {"filename": "a.arrow"}]}
    (train / "state.json").write_text(json.dumps(state))
    (train / "dataset_info.json").write_text("{}")
    found = inputs.find([str(train)])
    assert [path.name for path in found.files] == ["b.arrow", "a.arrow"]
    assert f"skipped {train}/c.arrow: state.json beside it names other files" in found.skipped
    with pytest.raises(ConfigError, match=r"train: no --input is a DatasetDict .* or leave the flag out"):
        inputs.find([str(train)], "train")
    (tmp_path / "saved/dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    for split, message in (
        (None, "with the splits train, test; which of them is read has to be said: --dataset-split train"),
        ("dev", "with the splits train, test; --dataset-split dev is none of them: --dataset-split train"),
    ):
        with pytest.raises(ConfigError, match=f"saved: is a DatasetDict {message}"):
            inputs.find([str(tmp_path)], split)
    assert inputs.find([str(tmp_path)], "train").files == found.files
    for change, message in (
        ({"_data_files": [{"filename": "../d.arrow"}]}, r"state\.json names \.\./d\.arrow, which is not there"),
        ({**state, "_indices_data_files": [{"filename": "i.arrow"}]}, r"call flatten_indices\(\) and save it anew"),
        ([], r"state\.json: names no _data_files"),
    ):
        (train / "state.json").write_text(json.dumps(change))
        with pytest.raises(ConfigError, match=message):
            inputs.find([str(train)])


def test_a_directory_is_of_one_kind(tmp_path: Path) -> None:
    """Rows, else archives, else .json, else .txt: what lies beside them is told, and read where it is named itself."""
    for name in ("1.jsonl", "2.tar", "3.json", "sub/4.txt", "LICENSE.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write_rows(tmp_path / name, [{"text": name}])
    for first, others in (("1.jsonl", 4), ("2.tar", 3), ("3.json", 2)):
        found = inputs.find([str(tmp_path)])
        assert [path.name for path in found.files] == [first]
        (told,) = found.skipped
        assert "beside files of another format it is read only where it is named itself" in told
        assert told.count(str(tmp_path)) + ("and 1 more" in told) == others
        (tmp_path / first).unlink()
    assert [path.name for path in inputs.find([str(tmp_path)]).files] == ["LICENSE.txt", "4.txt"]
    write_rows(tmp_path / "1.jsonl", [{"text": "a"}])
    found = inputs.find([str(tmp_path), str(tmp_path / "sub/*.txt")])
    assert [path.name for path in found.files] == ["1.jsonl", "4.txt"]


def test_a_resumed_job_makes_no_shard_twice(
    tmp_path: Path, tokenizer_model: Path, texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after some; with another --txt-documents the texts are read anew."""
    for number, text in enumerate(texts[:4]):
        (tmp_path / f"raw{number}").mkdir()
        suffix = (".txt", ".json", ".tar", ".arrow")[number]
        path = tmp_path / f"raw{number}/d{suffix}"
        path.write_text(text) if suffix == ".txt" else write_rows(path, [{"text": text}])
    write, left = shard._write, [0]

    def counted(*arguments: object) -> object:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return write(*arguments)  # type: ignore[arg-type]

    job = job_of(Path(f"{tmp_path}/raw*"), tmp_path / "out", tokenizer_model, resume=True)
    monkeypatch.setattr(shard, "_write", counted)
    monkeypatch.setattr(piece, "BATCH_PIECES", 1)
    for allowed in (1, 2):
        left[0] = allowed
        with pytest.raises(KeyboardInterrupt):
            preprocess.run(job)
    left[0] = 99
    with monkeypatch.context() as patch:
        patch.setattr(shard, "discard", lambda folder: None)
        (made,) = preprocess.run(job)
    assert left[0] == 99 - 1
    (tmp_path / "lines.jsonl").write_bytes(json_lines(texts[:4]))
    (expected,) = preprocess.run(job_of(tmp_path / "lines.jsonl", tmp_path / "expected", tokenizer_model))
    assert _bytes_of(made.prefix) == _bytes_of(expected.prefix)
    left[0] = 99
    blocks = job_of(Path(f"{tmp_path}/raw*"), tmp_path / "out", tokenizer_model, resume=True, txt_documents="paragraph")
    assert preprocess.run(blocks)[0].receipt.counts.documents > 4
    assert archives.ENDINGS == (".txt", ".json")
