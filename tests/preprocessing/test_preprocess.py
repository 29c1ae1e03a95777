"""The whole tool: what it writes, that it does not depend on the workers, and how it ends when it cannot go on."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import sentencepiece
import zstandard

from tests.raw_files import Run, json_lines
from tinyllama_mcore.commands import preprocess_data as preprocess_tool
from tinyllama_mcore.config.errors import ConfigError
from tinyllama_mcore.data import indexed, receipt
from tinyllama_mcore.data.counts import Counts
from tinyllama_mcore.data.tokenizer import SentencePieceTokenizer
from tinyllama_mcore.preprocessing import inputs, piece, preprocess, readers, shard, text_splitter
from tinyllama_mcore.reporting import validation


def documents_of(prefix: str | Path) -> list[list[int]]:
    """What Megatron itself reads from a pair."""
    from megatron.core.datasets.indexed_dataset import IndexedDataset

    dataset = IndexedDataset(str(prefix))
    return [dataset[i].tolist() for i in range(len(dataset))]


@pytest.fixture
def mixture(tmp_path: Path, texts: list[str]) -> Path:
    """A directory with all four formats, dropped sets and empty documents among them."""
    home = tmp_path / "raw"
    home.mkdir()
    (home / "1.jsonl").write_bytes(
        json_lines(texts[:10], "RedPajamaC4") + json_lines(["dropped"] * 3, "RedPajamaGithub")
    )
    (home / "2.jsonl.gz").write_bytes(gzip.compress(json_lines(["", *texts[10:20], ""])))
    (home / "3.jsonl.zst").write_bytes(zstandard.ZstdCompressor().compress(json_lines(texts[20:30], "RedPajamaBook")))
    pyarrow.parquet.write_table(pyarrow.table({"content": texts[30:]}), home / "4.parquet")
    return home


def test_the_pair_and_its_receipt(
    mixture: Path, preprocess_data: Run, texts: list[str], reference: sentencepiece.SentencePieceProcessor
) -> None:
    """SentencePiece's ids in the order of the input, each document ended by one EOD and nothing else (known bug 2)."""
    flags = ("--output_prefix", mixture / "out", "--append_eod", "--exclude-set", "RedPajamaGithub", "RedPajamaBook")
    done = preprocess_data("--input", mixture, *flags)
    assert done.returncode == 0, done.stderr
    kept = texts[:20] + texts[30:]
    prefix = f"{mixture}/out_text_document"
    assert documents_of(prefix) == [[*reference.encode(text), 2] for text in kept]
    tokens = np.fromfile(f"{prefix}.bin", dtype=np.uint16)
    assert np.count_nonzero(tokens == 2) == len(kept) and 1 not in tokens and 0 not in tokens
    slip = receipt.read(prefix)
    assert slip is not None
    seen = slip.counts
    assert (seen.documents, seen.tokens, seen.empty_documents, seen.rows) == (30, len(tokens), 2, 45)
    assert (seen.eod, seen.bos, seen.unk, seen.separator_pairs) == (30, 0, 0, 0)
    assert seen.dropped == {"RedPajamaBook": 10, "RedPajamaGithub": 3}
    assert (slip.vocab_size, slip.eod, seen.largest_token_id) == (600, 2, tokens.max())
    assert (slip.bin_bytes, seen.text_bytes) == (2 * len(tokens), sum(len(text.encode()) for text in kept))
    lengths = [len(reference.encode(text)) + 1 for text in kept]
    assert seen.lengths == Counter(str(1 << length.bit_length() - 1) for length in lengths)
    assert [Path(file.path).name for file in slip.inputs] == ["1.jsonl", "2.jsonl.gz", "3.jsonl.zst", "4.parquet"]
    raw = [Path(file.path).read_bytes() for file in slip.inputs]
    assert [file.sha256 for file in slip.inputs] == [hashlib.sha256(content).hexdigest() for content in raw]
    assert f"30 documents, {len(tokens):,} tokens" in done.stdout
    assert "dropped 3 documents of RedPajamaGithub" in done.stdout
    assert f"--data-path {prefix}" in done.stdout


def test_bytes_do_not_depend_on_the_workers(mixture: Path, tmp_path: Path, preprocess_data: Run) -> None:
    """One process and three write the same two files, whatever the order in which the inputs are named."""
    inputs = {"1": [mixture], "3": sorted(mixture.iterdir(), reverse=True)}
    for workers, paths in inputs.items():
        done = preprocess_data("--input", *paths, "--output-prefix", tmp_path / workers, "--workers", workers)
        assert done.returncode == 0, done.stderr
    for suffix in ("bin", "idx"):
        one, three = ((tmp_path / f"{workers}_text_document.{suffix}").read_bytes() for workers in inputs)
        assert one == three


def test_without_append_eod_nothing_is_added(tmp_path: Path, tokenizer_model: Path) -> None:
    """As with Megatron-LM's tool, EOD is a choice; each key has a pair of its own."""
    (tmp_path / "d.jsonl").write_text('{"text": "one", "title": "two"}\n')
    job = preprocess.PreprocessJob(
        inputs=(str(tmp_path / "d.jsonl"),),
        output_prefix=str(tmp_path / "out"),
        tokenizer_model=str(tokenizer_model),
        append_eod=False,
        json_keys=("text", "title"),
    )
    written = preprocess.run(job)
    assert [Path(pair.prefix).name for pair in written] == ["out_text_document", "out_title_document"]
    decode = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer_model)).decode
    assert [decode(documents_of(pair.prefix)) for pair in written] == [["one"], ["two"]]


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize("row", [b'{"text": "\\ud800"}\n', b'{"text"\n', b'{"body": "x"}\n'])
def test_a_bad_row_ends_the_job(
    tmp_path: Path, preprocess_data: Run, texts: list[str], row: bytes, workers: str
) -> None:
    """Exit code 2, one line that names file and row, no traceback, no hang, and no half of a pair."""
    (tmp_path / "d.jsonl").write_bytes(json_lines(texts) + row + json_lines(texts))
    done = preprocess_data("--input", tmp_path / "d.jsonl", "--output-prefix", tmp_path / "out", "--workers", workers)
    assert done.returncode == 2
    assert f"preprocess_data: --input {tmp_path}/d.jsonl, row {len(texts) + 1}: " in done.stderr
    assert "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["d.jsonl"]


def test_what_cannot_work_is_refused(tmp_path: Path, preprocess_data: Run) -> None:
    """A missing input, a missing tokenizer, an output that cannot be written, nothing left to write."""
    (tmp_path / "d.jsonl").write_bytes(json_lines(["x"], "RedPajamaGithub"))
    there, out = ("--input", tmp_path / "d.jsonl"), ("--output-prefix", tmp_path / "out")
    for flags, message in (
        (("--input", tmp_path / "none", *out), "none: no such file"),
        ((*there, *out, "--tokenizer-model", tmp_path / "none"), "cannot be read (No such file"),
        ((*there, "--output-prefix", tmp_path / "d.jsonl/out"), "cannot be written (Not a directory)"),
        (
            (*there, *out, "--exclude-set", "RedPajamaGithub"),
            "no documents are left (0 empty, 1 dropped by",
        ),
        ((*there, *out, "--workers", "0"), "--workers: must be a whole number, at least 1; got '0'"),
        ((*there, *out, "--append-eos"), "unrecognized arguments: --append-eos"),
    ):
        done = preprocess_data(*flags)
        assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["d.jsonl"]


ROWS = {
    "broken JSON": b'{"text"\n',
    "missing key": b'{"body": "x"}\n',
    "wrong type": b'{"text": 5}\n',
    "invalid UTF-8": b'{"text": "\xff"}\n',
    "lone surrogate": b'{"text": "\\ud800"}\n',
}
"""One bad row of each kind."""


def small_pieces(monkeypatch: pytest.MonkeyPatch, size: int = 20_000) -> None:
    """Cut files into many pieces, each a shard."""
    monkeypatch.setattr(readers, "PIECE_BYTES", size)
    monkeypatch.setattr(piece, "BATCH_PIECES", 1)


def job_of(inputs: Path, prefix: Path, tokenizer_model: Path, **options: object) -> preprocess.PreprocessJob:
    """A job with EOD."""
    return preprocess.PreprocessJob(
        inputs=(str(inputs),),
        output_prefix=str(prefix),
        tokenizer_model=str(tokenizer_model),
        append_eod=True,
        **options,  # type: ignore[arg-type]
    )


def test_bad_rows_are_set_aside_up_to_a_rate(
    tmp_path: Path, tokenizer_model: Path, texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted by kind and kept with file and row, in whichever piece of it they are; past the rate they end the job."""
    small_pieces(monkeypatch)
    lines = [json_lines([text]) for text in texts]
    bad = {11: "broken JSON", 20: "missing key", 31: "wrong type", 32: "invalid UTF-8", 45: "lone surrogate"}
    for row, kind in bad.items():
        lines.insert(row - 1, ROWS[kind])
    (tmp_path / "d.jsonl").write_bytes(b"".join(lines))
    assert len(readers.pieces(tmp_path / "d.jsonl")) > 3
    out = tmp_path / "out"
    (written,) = preprocess.run(job_of(tmp_path / "d.jsonl", out, tokenizer_model, bad_row_rate=0.2))
    assert written.receipt.counts.quarantined == dict.fromkeys(bad.values(), 1)
    assert written.receipt.counts.documents == len(texts)
    kept = [json.loads(line) for line in Path(f"{written.prefix}.quarantine.jsonl").read_text().splitlines()]
    assert [(entry["file"], entry["row"], entry["kind"]) for entry in kept] == [
        (str(tmp_path / "d.jsonl"), row, kind) for row, kind in bad.items()
    ]
    assert kept[0]["content"] == ROWS["broken JSON"].decode()
    with pytest.raises(ConfigError, match=r"--bad-row-rate 0.1: 5 of 45 rows are bad \(1 broken JSON, .* row 45: "):
        preprocess.run(job_of(tmp_path / "d.jsonl", tmp_path / "other", tokenizer_model, bad_row_rate=0.1))
    with pytest.raises(ConfigError, match=r"d\.jsonl, row 11: Expecting"):
        preprocess.run(job_of(tmp_path / "d.jsonl", tmp_path / "other", tokenizer_model))


def test_a_resumed_job_writes_the_same_bytes(
    mixture: Path, tmp_path: Path, tokenizer_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after any number of shards, which it does not make again; a file that was changed since is read again."""
    small_pieces(monkeypatch)
    (whole,) = preprocess.run(job_of(mixture, tmp_path / "whole", tokenizer_model))
    expected = [Path(f"{whole.prefix}{suffix}").read_bytes() for suffix in (".bin", ".idx")]
    write, left = shard._write, [0]

    def counted(*arguments: object) -> Counts:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return write(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(shard, "_write", counted)
    resumed = job_of(mixture, tmp_path / "resumed", tokenizer_model, resume=True)
    for allowed in (1, 2, 0):
        left[0] = allowed
        with pytest.raises(KeyboardInterrupt):
            preprocess.run(resumed)
    left[0] = 99
    (written,) = preprocess.run(resumed)
    pieces = sum(len(readers.pieces(path)) for path in inputs.find([str(mixture)]).files)
    assert 99 - left[0] == pieces - 3
    assert [Path(f"{written.prefix}{suffix}").read_bytes() for suffix in (".bin", ".idx")] == expected
    assert not Path(f"{written.prefix}.parts").exists()
    left[0] = 1
    with pytest.raises(KeyboardInterrupt):
        preprocess.run(resumed)
    (mixture / "1.jsonl").write_bytes(json_lines(["another text"]))
    left[0] = 99
    (changed,) = preprocess.run(resumed)
    decode = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer_model)).decode
    assert decode(documents_of(changed.prefix)[0]) == "another text"


def test_a_job_killed_while_it_cleans_up_is_resumed(
    mixture: Path, tmp_path: Path, tokenizer_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of its shards are gone, and none of the rest may pass for whole."""
    job = job_of(mixture, tmp_path / "out", tokenizer_model, resume=True)

    def killed(folder: Path, **_: object) -> None:
        for file in sorted(folder.glob("*.bin")):
            file.unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(shutil, "rmtree", killed)
        preprocess.run(job)
    (written,) = preprocess.run(job)
    (whole,) = preprocess.run(job_of(mixture, tmp_path / "whole", tokenizer_model))
    assert Path(f"{written.prefix}.bin").read_bytes() == Path(f"{whole.prefix}.bin").read_bytes()
    assert not Path(f"{written.prefix}.parts").exists()


def test_one_long_document(tmp_path: Path, tokenizer_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A document of many parts and batches is one document, with one EOD."""
    monkeypatch.setattr(text_splitter, "PART_CHARACTERS", 1000)
    texts = ["short", Path(__file__).read_text() * 3, "short"]
    (tmp_path / "d.jsonl").write_bytes(json_lines(texts))
    (written,) = preprocess.run(job_of(tmp_path / "d.jsonl", tmp_path / "out", tokenizer_model))
    encode = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer_model)).encode
    assert documents_of(written.prefix) == [[*encode(text), 2] for text in texts]
    assert written.receipt.counts.documents == sum(written.receipt.counts.lengths.values()) == 3


def children(pid: int) -> list[int]:
    """Worker processes of a running tool."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.fixture
def busy(tmp_path: Path, tokenizer_model: Path, checkout: Path, texts: list[str]) -> subprocess.Popen[str]:
    """The tool at work with two workers, for some seconds to come."""
    for name in "abcd":
        (tmp_path / f"{name}.jsonl").write_bytes(json_lines(texts * 60))
    out = ("--output-prefix", tmp_path / "out", "--tokenizer-model", tokenizer_model, "--workers", "2")
    tool = [sys.executable, checkout / "tools/preprocess_data.py", "--input", tmp_path, *out]
    process = subprocess.Popen([str(word) for word in tool], stderr=subprocess.PIPE, text=True)
    while len(children(process.pid)) < 2 or not (tmp_path / "out_text_document.bin.partial").exists():
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.01)
    return process


@pytest.mark.skipif(sys.platform != "linux", reason="finds the workers in /proc")
def test_a_workers_death_ends_the_job(busy: subprocess.Popen[str], tmp_path: Path) -> None:
    """Exit code 1 and a reason; it does not wait for ever, and leaves no half of a pair."""
    os.kill(children(busy.pid)[0], signal.SIGKILL)
    _, stderr = busy.communicate()
    assert busy.returncode == 1
    assert "one of 2 workers was killed before it had finished" in stderr and "Traceback" not in stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{name}.jsonl" for name in "abcd"]


@pytest.mark.skipif(sys.platform != "linux", reason="finds the workers in /proc")
def test_a_killed_job_leaves_no_pair_and_no_process(busy: subprocess.Popen[str], tmp_path: Path) -> None:
    """After kill -9 there is neither .bin nor .idx to be taken for a dataset, and the workers go too."""
    workers = children(busy.pid)
    busy.kill()
    busy.communicate()
    assert not list(tmp_path.glob("*.bin")) + list(tmp_path.glob("*.idx"))
    deadline = time.monotonic() + 60
    while any(Path(f"/proc/{worker}").exists() for worker in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    alive = [worker for worker in workers if Path(f"/proc/{worker}").exists()]
    for worker in alive:
        with contextlib.suppress(ProcessLookupError):
            os.kill(worker, signal.SIGKILL)
    assert not alive


def test_the_receipt_is_of_the_pair_beside_it(tmp_path: Path, tokenizer_model: Path, texts: list[str]) -> None:
    """Another tokenizer, an id too large, another .bin: refused with the figures. No receipt: taken as it is."""
    (tmp_path / "d.jsonl").write_bytes(json_lines(texts[:3]))
    job = preprocess.PreprocessJob(
        inputs=(str(tmp_path),),
        output_prefix=str(tmp_path / "out"),
        tokenizer_model=str(tokenizer_model),
        append_eod=True,
    )
    (written,) = preprocess.run(job)
    prefix, vocabulary = written.prefix, written.receipt.vocabulary
    assert receipt.check(prefix, vocabulary).sequences == 3
    assert receipt.vocabulary_of([prefix], None) == vocabulary
    assert receipt.vocabulary_of([], str(tokenizer_model)) == vocabulary

    fields = json.loads(receipt.path_of(prefix).read_text())
    counts = fields["counts"]
    for change, message in (
        ({"vocab_size": 32_000}, "made with a tokenizer of 32000 pieces.* this run's has 600 pieces"),
        ({"tokenizer_sha256": "0" * 64}, "sha256 000000000000, but this run's has .* sha256 " + vocabulary.sha256[:12]),
        (
            {"counts": {**counts, "largest_token_id": 600}},
            r"holds token id 600, but the vocabulary has 600 ids \(0 to 599\)",
        ),
        ({"bin_bytes": 2}, r"out_text_document\.bin has \d+ bytes where .*\.json says 2"),
        ({"fingerprint": "0" * 64}, r"is not the index that its receipt .*\.json describes \(its checksum is"),
        ({"counts": {**counts, "eod": 900}}, r"there are too many separators: 900 BOS and EOD tokens \("),
        ({"counts": {**counts, "separator_pairs": 9}}, "for 3 documents, 9 of them right after another one;"),
        ({"documents_": 2}, "is not a receipt of tinyllama-preprocess"),
    ):
        receipt.path_of(prefix).write_text(json.dumps({**fields, **change}))
        with pytest.raises(ConfigError, match=message):
            receipt.check(prefix, vocabulary)
    receipt.path_of(prefix).unlink()
    assert receipt.check(prefix, vocabulary).tokens == indexed.check(prefix, 600).tokens
    with pytest.raises(ConfigError, match="--tokenizer-model is needed: no receipt beside"):
        receipt.vocabulary_of([prefix], None)


@pytest.fixture(scope="session")
def stripping_model(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> Path:
    """A tokenizer with SentencePiece's own defaults, which strip white space."""
    model = io.BytesIO()
    lines = (line for text in texts[:10] for line in text.split("\n"))
    options = {"vocab_size": 600, "model_type": "bpe", "byte_fallback": True, "minloglevel": 2}
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=lines, model_writer=model, **options)
    path = tmp_path_factory.mktemp("stripping") / "tokenizer.model"
    path.write_bytes(model.getvalue())
    return path


BLANK = ("", "   ", " \n\n\t ", "\u00a0\u3000", "\u200b")
"""Texts; all but the last are nothing but space to SentencePiece's default rules."""


@pytest.mark.parametrize("append_eod", [True, False])
@pytest.mark.parametrize("all_blank", [False, True])
def test_a_text_without_tokens_is_no_document(
    tmp_path: Path, stripping_model: Path, texts: list[str], append_eod: bool, all_blank: bool
) -> None:
    """With EOD and without: left out and counted, at both ends of a batch and alone; nothing is over-represented."""
    encode = sentencepiece.SentencePieceProcessor(model_file=str(stripping_model)).encode
    rows = [row for text in texts[:5] for row in (*BLANK, text)] + list(BLANK)
    (tmp_path / "1.jsonl").write_bytes(json_lines([text for text in BLANK if not encode(text)] if all_blank else rows))
    (tmp_path / "2.jsonl").write_bytes(json_lines([texts[5]]))
    job = replace(job_of(tmp_path, tmp_path / "out", stripping_model), append_eod=append_eod)
    (written,) = preprocess.run(job)
    kept = [text for text in [*([] if all_blank else rows), texts[5]] if encode(text)]
    assert documents_of(written.prefix) == [[*encode(text), *[2] * append_eod] for text in kept]
    seen = written.receipt.counts
    assert (seen.documents, seen.empty_documents) == (len(kept), seen.rows - len(kept))
    assert seen.text_bytes == sum(len(text.encode()) for text in kept)
    assert seen.documents == sum(seen.lengths.values())
    assert validation.validate(written.prefix, SentencePieceTokenizer(stripping_model)).faults == ()
    assert f"skipped {seen.empty_documents:,} empty documents" in preprocess_tool.summary(written)


def test_nothing_but_texts_without_tokens_is_refused(tmp_path: Path, stripping_model: Path) -> None:
    """There is no dataset in it."""
    (tmp_path / "d.jsonl").write_bytes(json_lines(["", "  "]))
    with pytest.raises(ConfigError, match=r"no documents are left \(2 empty"):
        preprocess.run(job_of(tmp_path, tmp_path / "out", stripping_model))


def test_documents_that_nothing_ends_are_told(tmp_path: Path, preprocess_data: Run) -> None:
    """Without --append-eod, in one line; with it, nothing is said."""
    (tmp_path / "d.jsonl").write_bytes(json_lines(["one", "two"]))
    (tmp_path / "copy.jsonl").write_bytes((tmp_path / "d.jsonl").read_bytes())
    for flags, expected in (((), 1), (("--append-eod", "--overwrite"), 0)):
        done = preprocess_data("--input", tmp_path, "--output-prefix", tmp_path / "out", *flags)
        assert done.returncode == 0, done.stderr
        assert (
            done.stderr.count("preprocess_data: without --append-eod no token marks the end of a document") == expected
        )
        assert f"d.jsonl holds the same bytes as {tmp_path}/copy.jsonl: its documents occur twice" in done.stderr
