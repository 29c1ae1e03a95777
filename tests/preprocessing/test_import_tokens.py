"""Token files of datatrove and of TinyLlama's packed_dataset come over whole, and what is wrong with them is named.

The files are made by the published formats, and by datatrove itself where it is installed; `PYTHONPATH` may name a
directory that pip installed it into.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
from tokenizers import Tokenizer as HuggingFaceLibrary

from tests import small_tokenizers
from tests.foreign_tokens import BOS, EOD, flat, write_chunks, write_ds
from tinyllama_mcore.commands import import_tokens as command
from tinyllama_mcore.config.errors import ConfigError
from tinyllama_mcore.data import indexed, receipt, tokenizer_files
from tinyllama_mcore.preprocessing import token_files
from tinyllama_mcore.preprocessing.import_tokens import ImportJob, run
from tinyllama_mcore.reporting.validation import validate


@pytest.fixture
def documents(reference: sentencepiece.SentencePieceProcessor, texts: list[str]) -> list[list[int]]:
    """Documents as ids, without separators."""
    return reference.encode(texts, out_type=int)


def with_eod(documents: list[list[int]]) -> list[list[int]]:
    """Each with EOD at its end."""
    return [[*document, EOD] for document in documents]


def held(prefix: Path) -> list[list[int]]:
    """The documents of a pair."""
    pair = indexed.read(prefix)
    reader = indexed.TokenReader(pair)
    return [reader.read(number).tolist() for number in range(pair.sequences)]


@pytest.fixture
def importing(tokenizer_model: Path, tmp_path: Path) -> Callable[..., list[list[int]]]:
    """Import into `tmp_path/out`, validate, and give the documents of the pair."""

    def imported(*paths: Path | str, **flags: object) -> list[list[int]]:
        names = tuple(map(str, paths))
        job = ImportJob(input=names, output_prefix=str(tmp_path / "out"), tokenizer_model=str(tokenizer_model), **flags)
        made = run(job)
        verdict = validate(str(tmp_path / "out"), tokenizer_files.load(tokenizer_model))
        assert verdict.has_receipt and verdict.faults == ()
        assert made.receipt == receipt.read(tmp_path / "out")
        return held(tmp_path / "out")

    return imported


@pytest.mark.parametrize("block", [7, 1 << 21])
@pytest.mark.parametrize("width", [2, 4])
def test_datatrove(
    block: int,
    width: int,
    documents: list[list[int]],
    importing: Callable[..., list[list[int]]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Files in the order of their names, documents by the index; empty ones are left out, wherever a block ends."""
    monkeypatch.setattr(token_files, "BLOCK_TOKENS", block)
    few = [document[:50] for document in documents]
    write_ds(tmp_path / "b.ds", [[], *with_eod(few[20:])], width)
    write_ds(tmp_path / "a.ds", [*with_eod(few[:20]), [], [EOD], []], width)
    for nothing in ("c.ds", "c.ds.index"):
        (tmp_path / nothing).touch()
    assert importing(tmp_path) == with_eod(few)


@pytest.mark.parametrize("block", [7, 1 << 21])
def test_documents_without_eod(
    block: int,
    documents: list[list[int]],
    tokenizer_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """They are refused, and ended with EOD if asked for; BOS at their beginning goes. The command says how many."""
    monkeypatch.setattr(token_files, "BLOCK_TOKENS", block)
    few = [document[:50] for document in documents]
    path = write_ds(tmp_path / "a.ds", [few[0], *([BOS, *document] for document in few[1:-1]), [*few[-1], EOD]])
    write_ds(tmp_path / "b.ds", [few[0]])
    flags = f"--input {path} {tmp_path}/b.ds --output-prefix {tmp_path}/out --tokenizer-model {tokenizer_model}".split()
    assert command.main(flags) == 2
    assert "documents that do not end with EOD (id 2); give --append-eod" in capsys.readouterr().err
    assert command.main([*flags, "--append-eod"]) == 0
    told = capsys.readouterr().out
    assert f"{len(few) - 2} BOS and EOD tokens left out" in told and f"{len(few)} EOD tokens put" in told
    assert "its metadata name the tokenizer a/tokenizer: is it --tokenizer-model?" in told
    assert held(tmp_path / "out") == with_eod([*few, few[0]])


@pytest.mark.parametrize("block", [7, 1 << 21])
def test_chunks_of_tinyllama(
    block: int,
    documents: list[list[int]],
    importing: Callable[..., list[list[int]]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Documents go on from chunk to chunk of a process, filler goes, and other processes' chunks are others' documents.

    Fillers are those of prepare_slimpajama.py (BOS) and prepare_redpajama.py (EOD); a process of ten comes after two.
    """
    monkeypatch.setattr(token_files, "BLOCK_TOKENS", block)
    few = [document[:50] for document in documents]
    write_chunks(tmp_path / "data", "train_slimpajama_2", flat(with_eod(few[:15])), 64, filler=BOS)
    write_chunks(tmp_path / "data", "train_slimpajama_10", flat(with_eod(few[15:])), 64, filler=EOD)
    assert importing(tmp_path / "data") == with_eod(few[15:]) + with_eod(few[:15])
    slip = receipt.read(tmp_path / "out")
    assert slip.counts.separators == slip.counts.documents == len(few)
    assert slip.counts.libraries == {"TinyLlama's packed_dataset": slip.counts.tokens}
    assert Path(slip.inputs[0].path).name == "train_slimpajama_10_0000000000.bin"


def test_chunks_whose_end_was_lost(
    documents: list[list[int]], tokenizer_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As TinyLlama's repository has written them since November 2023: the last document is cut, and ends there."""
    few = [document[:50] for document in documents]
    stored = flat(with_eod(few))
    write_chunks(tmp_path / "data", "train_slimpajama_0", stored, 64, filler=None)
    flags = f"--input {tmp_path}/data --output-prefix {tmp_path}/out --tokenizer-model {tokenizer_model}".split()
    assert command.main(flags) == 0
    assert "1 documents cut off where their last chunk ends; EOD is put there" in capsys.readouterr().out
    assert len(stored) % 64
    assert flat(held(tmp_path / "out")) == [*stored[: len(stored) // 64 * 64], EOD]


def test_chunks_that_begin_documents_with_bos(
    documents: list[list[int]], importing: Callable[..., list[list[int]]], tmp_path: Path
) -> None:
    """Data with BOS and without EOS: the documents are told apart by it, and end with EOD afterwards."""
    few = [document[:50] for document in documents]
    write_chunks(tmp_path / "data", "train_slimpajama_0", flat([BOS, *document] for document in few), 64)
    assert importing(tmp_path / "data") == with_eod(few)


def _break(change: str, path: Path, chunks: list[Path]) -> Path:
    """Do one thing that is wrong to a `.ds` or to chunks; gives what to import."""
    if change == "no index":
        Path(f"{path}.index").unlink()
    elif change == "index of another":
        np.array([5, 9], dtype=np.uint64).tofile(f"{path}.index")
    elif change == "index falls":
        ends = np.fromfile(f"{path}.index", dtype=np.uint64)
        ends[3] = ends[4] + 1
        ends.tofile(f"{path}.index")
    elif change == "metadata":
        Path(f"{path}.metadata").write_text("a/tokenizer|4\n7\n7 T")
    elif change == "loss":
        Path(f"{path}.loss").write_bytes(b"1")
    elif change == "cut short":
        path.write_bytes(path.read_bytes()[:-2])
    else:
        return _break_chunks(change, chunks)
    return path


def _break_chunks(change: str, chunks: list[Path]) -> Path:
    first = chunks[0]
    if change == "chunk missing":
        chunks[1].unlink()
    elif change == "chunk cut short":
        first.write_bytes(first.read_bytes()[:-2])
    elif change == "another magic":
        first.write_bytes(b"MMIDIDX" + first.read_bytes()[7:])
    elif change == "version":
        first.write_bytes(b"LITPKDS" + struct.pack("<QBQ", 2, 8, 64) + first.read_bytes()[24:])
    elif change == "two datasets":
        first.with_name("validation_slimpajama_0_0000000000.bin").write_bytes(first.read_bytes())
    elif change == "both kinds":
        (first.parent / "a.ds").write_bytes(b"")
    elif change == "a pair":
        first.rename(first.with_name("text_document.bin"))
    elif change == "no separators":
        for chunk in chunks:
            chunk.write_bytes(chunk.read_bytes()[:24] + np.full(64, 300, dtype=np.uint16).tobytes())
    return first.parent


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("no index", "a.ds.index is missing, empty or cut short"),
        ("index of another", "bytes where a.ds.index promises 9 tokens of 2 or 4 bytes each"),
        ("index falls", "a.ds.index says that document 4 ends before the one in front of it"),
        ("metadata", "a.ds.metadata says 4 bytes a token and 7 tokens, the files have 2 and"),
        ("loss", "a.ds.loss leaves tokens out of the loss"),
        ("cut short", "it is truncated or belongs to another index"),
        ("chunk missing", "train_slimpajama_0_0000000001.bin: is missing"),
        ("chunk cut short", "has 150 bytes where its header promises 152"),
        ("another magic", "bad magic"),
        ("version", "its header says version 2, dtype code 8"),
        ("two datasets", "holds chunks of train_slimpajama, validation_slimpajama; give one dataset at a time"),
        ("both kinds", "holds files of TinyLlama's packed_dataset and of datatrove; give one kind at a time"),
        ("a pair", "a .bin with an .idx beside it is taken by --data-path as it is"),
        ("no separators", "holds neither EOD (id 2) nor BOS (id 1)"),
    ],
)
def test_what_is_wrong_is_named(
    change: str,
    words: str,
    documents: list[list[int]],
    tokenizer_model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Exit code 2 with one message, and nothing is left."""
    path = write_ds(tmp_path / "a.ds", with_eod(documents))
    chunks = write_chunks(tmp_path / "data", "train_slimpajama_0", flat(with_eod(documents[:5])), 64)
    given = _break(change, path, chunks)
    flags = f"--input {given} --output-prefix {tmp_path}/new/out --tokenizer-model {tokenizer_model}".split()
    assert command.main(flags) == 2
    assert words in capsys.readouterr().err
    assert not list(tmp_path.glob("new/*"))


def test_ids_of_another_tokenizer(
    documents: list[list[int]], tokenizer_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An id that the tokenizer has not is named with its file; the pair that was there stays."""
    path = write_ds(tmp_path / "a.ds", with_eod(documents))
    flags = f"--input {path} --output-prefix {tmp_path}/out --tokenizer-model {tokenizer_model}".split()
    assert command.main(flags) == 0
    write_ds(path, with_eod([*documents, [600]]))
    before = (tmp_path / "out.bin").read_bytes()
    assert command.main([*flags, "--overwrite"]) == 2
    assert "a.ds: holds token id 600, but" in capsys.readouterr().err
    assert (tmp_path / "out.bin").read_bytes() == before


def test_links_into_a_cache(
    documents: list[list[int]], importing: Callable[..., list[list[int]]], tmp_path: Path
) -> None:
    """Hugging Face's cache has links under the names and files under checksums; two names of a file are one."""
    blob = write_ds(tmp_path / "a.ds", with_eod(documents))
    links = tmp_path / "snapshot"
    links.mkdir()
    for ending in ("", ".index", ".metadata"):
        Path(f"{blob}{ending}").rename(tmp_path / f"blob{ending}")
        (links / f"a.ds{ending}").symlink_to(tmp_path / f"blob{ending}")
    assert importing(links, links / "a.ds", f"{tmp_path}/snap*/../snapshot/*.ds") == with_eod(documents)


def test_what_datatrove_itself_wrote(texts: list[str], tmp_path: Path) -> None:
    """Its DocumentTokenizer with a tokenizer.json as Llama-3's, and a task of its that had no documents."""
    tokens = pytest.importorskip("datatrove.pipeline.tokens.tokenizer")
    from datatrove.data import Document

    home = small_tokenizers.make("llama3", tmp_path / "llama3")
    library = HuggingFaceLibrary.from_file(str(home / "tokenizer.json"))
    eod = library.token_to_id(small_tokenizers.END["llama3"])
    step = tokens.DocumentTokenizer(
        str(tmp_path / "tokenized"), str(home / "tokenizer.json"), eos_token=small_tokenizers.END["llama3"], seed=1
    )
    list(step([Document(text=text, id=str(number)) for number, text in enumerate(texts)], rank=3) or ())
    list(step([], rank=4) or ())
    written = {path.name for path in (tmp_path / "tokenized").glob("*.ds")}
    assert written == {"00003_00000_doc_shuffled.ds", "00004_unshuffled.ds"}
    flags = f"--input {tmp_path}/tokenized --output-prefix {tmp_path}/out --tokenizer-model {home}".split()
    assert command.main(flags) == 0
    expected = sorted([*library.encode(text, add_special_tokens=False).ids, eod] for text in texts)
    assert sorted(held(tmp_path / "out")) == expected
    assert json.loads((tmp_path / "out.json").read_text())["counts"]["bos"] == 0


@pytest.mark.parametrize(
    ("there", "given", "says"),
    [
        ("d.jsonl", "d.jsonl", "d.jsonl is raw text, which tinyllama-preprocess (tools/preprocess_data.py) takes"),
        ("d.bin d.idx", "d.idx", "d.idx is of a .bin/.idx dataset, which --data-path {}/d takes as it is"),
        ("d.ds d.ds.index", "d.ds.index", "d.ds.index belongs to d.ds: give --input {}/d.ds"),
        ("00.ds", "0O.ds", "no such file; did you mean {}/00.ds?"),
        ("a.npy b.npy", "*.npy", "is a.npy, b.npy"),
        ("a.npy b.npy c.npy d.npy", "", "holds a.npy, b.npy, c.npy, ..."),
        ("", "", "holds no file"),
        ("below/00.ds", "", "below is a directory, and those below are not searched: give --input {}/below"),
        ("", "none.ds", "no such file"),
        ("", "s3://bucket/d.ds", "is a URL, and token files are read from this machine: fetch them"),
        ("link.ds", "link.ds", "is no file, but a directory or a link to nothing"),
    ],
)
def test_files_of_another_kind(there: str, given: str, says: str, tmp_path: Path, tokenizer_model: Path) -> None:
    """What is there, what is read, and the nearest that is."""
    home = tmp_path / "tokens"
    home.mkdir()
    for name in there.split():
        (home / name).parent.mkdir(exist_ok=True)
        (home / name).symlink_to("nothing") if name.startswith("link") else (home / name).write_text("x")
    name = given if "://" in given else str(home / given) if given else str(home)
    job = ImportJob(input=(name,), output_prefix=str(tmp_path / "out"), tokenizer_model=str(tokenizer_model))
    with pytest.raises(ConfigError) as caught:
        run(job)
    assert str(caught.value) == f"--input {name}: {says.format(home)}; {token_files.EXPECTED}"
