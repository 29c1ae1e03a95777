"""How fast data goes through, beside other people's ways on the same files: the figures of docs/evidence/data.md.

    tinyllama-benchmark-data corpus --text FILE
    tinyllama-benchmark-data throughput --tokenizer-model tokenizer.model --workers 2
    tinyllama-benchmark-data throughput --tokenizer-model tokenizer.json
    tinyllama-benchmark-data linear --tokenizer-model tokenizer.model
    tinyllama-benchmark-data kills --tokenizer-model tokenizer.model

The ways of others are their algorithms, row by row: Megatron-LM's `preprocess_data.py` (SentencePiece a document, lists
to the parent, which writes them), TinyLlama's `prepare_*.py`, and `encode_batch` of Hugging Face's tokenizers.
"""

from __future__ import annotations

import argparse
import ast
import functools
import gzip
import hashlib
import itertools
import json
import multiprocessing
import os
import random
import resource
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import zstandard

from tinyllama_mcore.config.cli import exit_code
from tinyllama_mcore.config.errors import ConfigError
from tinyllama_mcore.config.paths import unwritable
from tinyllama_mcore.data import indexed, receipt, tokenizer_files
from tinyllama_mcore.data.tokenizer import SentencePieceTokenizer, Tokenizer
from tinyllama_mcore.preprocessing import inputs

Way = Callable[[list[str], str, int, Path], int]
"""Files, tokenizer, processes and a scratch directory to the number of tokens written."""
FILES = 8
"""Files of each kind that a corpus is spread over."""


def refuse_taken(output: Path, *, overwrite: bool) -> None:
    """ConfigError where a corpus, or anything by its names, is there and may not be written over."""
    if problem := unwritable(output):
        raise ConfigError(f"--directory {output} cannot be written ({problem})")
    there = [output / kind for kind in ("text", "code") if (output / kind).exists()]
    if there and not overwrite:
        raise ConfigError(f"--directory {output}: {there[0]} exists; name a new directory, or give --overwrite")


def corpus(output: Path, texts: Sequence[Path], megabytes: int) -> None:
    """Write so much text (.jsonl.zst) and so much Python source (.parquet) of this machine, each text once."""
    import pyarrow
    import pyarrow.parquet

    roots = [sysconfig.get_paths()["stdlib"], sysconfig.get_paths()["purelib"], "/usr/share/doc"]
    found = sorted({path for root in roots for path in Path(root).rglob("*") if path.is_file()}, key=_shuffled)
    sources = [path for path in found if path.suffix == ".py"]
    prose = [path for path in found if path.suffix in (".md", ".rst", ".txt")]
    packed = [path for path in found if path.suffix == ".gz" and path.is_relative_to("/usr/share/doc")]
    articles = (part for path in texts for part in path.read_text().split("\n \n = ") if part)
    written = {
        "text": _up_to(megabytes * 10**6, itertools.chain(articles, _read(prose), _docstrings(sources), _read(packed))),
        "code": _up_to(megabytes * 10**6, _read(sources)),
    }
    for kind, rows in written.items():
        home = output / kind
        home.mkdir(parents=True, exist_ok=True)
        for number in range(FILES):
            share = rows[number::FILES]
            if kind == "code":
                table = pyarrow.table({"content": share})
                pyarrow.parquet.write_table(table, home / f"{number}.parquet", row_group_size=256)
            else:
                lines = "".join(json.dumps({"text": row, "meta": {}}) + "\n" for row in share)
                compressed = zstandard.ZstdCompressor().compress(lines.encode())
                (home / f"{number}.jsonl.zst").write_bytes(compressed)
        print(f"{kind}: {len(rows):,} documents, {sum(len(row.encode()) for row in rows) / 1e6:.1f} MB in {home}")


def _shuffled(path: Path) -> bytes:
    return hashlib.sha256(path.name.encode()).digest()


def _read(paths: Sequence[Path]) -> Iterator[str]:
    for path in paths:
        content = path.read_bytes()
        yield (gzip.decompress(content) if path.suffix == ".gz" else content).decode("utf-8", errors="ignore")


def _docstrings(paths: Sequence[Path]) -> Iterator[str]:
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
    for source in _read(paths):
        try:
            nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, documented)]
        except (SyntaxError, ValueError, RecursionError):
            continue
        yield "\n\n".join(filter(None, map(ast.get_docstring, nodes)))


def _up_to(size: int, texts: Iterator[str]) -> list[str]:
    """Different texts until they add up to `size` bytes."""
    kept: dict[str, None] = {}
    for text in texts:
        if size <= 0:
            break
        if text and text not in kept:
            kept[text] = None
            size -= len(text.encode())
    return list(kept)


def throughput(raw: Path, model: str, workers: int) -> None:
    """Every way end to end from raw files to tokens on disk, start of the processes and of libraries included."""
    ways: dict[str, Way] = {
        "ours": _ours,
        "Megatron-LM": _megatron,
        "Hugging Face": functools.partial(_file_by_file, _hugging_face_file),
    }
    if isinstance(tokenizer_files.load(model), SentencePieceTokenizer):
        ways["TinyLlama"] = functools.partial(_file_by_file, _tinyllama_file)
    for kind in ("text", "code"):
        files = [str(path) for path in inputs.find([str(raw / kind)]).files]
        rates, by_cpu = {}, {}
        with tempfile.TemporaryDirectory(dir=raw) as scratch:
            for name, way in ways.items():
                start, used = time.perf_counter(), _cpu_seconds()
                tokens = way(files, model, workers, Path(scratch))
                rates[name], by_cpu[name] = tokens / (time.perf_counter() - start), tokens / (_cpu_seconds() - used)
                told = f"{rates[name] / 1e6:.2f} M/s, {by_cpu[name] / 1e6:.2f} M a CPU second"
                print(f"{kind}, {workers} workers, {name}: {tokens:,} tokens, {told}", flush=True)
        best, best_by_cpu = (max(r for name, r in found.items() if name != "ours") for found in (rates, by_cpu))
        times = f"{rates['ours'] / best:.1f} times the best of the others, {by_cpu['ours'] / best_by_cpu:.1f} by CPU"
        print(f"{kind}, {workers} workers: ours is {times}")
        if workers == 1:
            _raw_rate(kind, files, model, by_cpu["ours"])


def _cpu_seconds() -> float:
    """CPU time of this process and its ended children: what a busy machine does not change."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def _ours(files: list[str], model: str, workers: int, scratch: Path) -> int:
    out = scratch / "ours"
    subprocess.run(_command(model, workers, out, files), check=True, capture_output=True)
    slip = receipt.read(f"{out}_text_document")
    assert slip is not None
    started = slip.counts.tokens / slip.counts.seconds
    print(f"ours, from reading to writing, without the start: {started / 1e6:.2f} M tokens/s a worker")
    return slip.counts.tokens


def _command(model: str, workers: int, out: Path, inputs: Sequence[str]) -> list[str]:
    tool = [sys.executable, "-m", "tinyllama_mcore", "preprocess", "--append-eod"]
    flags = ["--workers", f"{workers}", "--tokenizer-model", model, "--output-prefix", str(out)]
    return [*tool, *flags, "--input", *inputs]


def _raw_rate(kind: str, files: list[str], model: str, ours: float) -> None:
    """The tokenizer library alone, by its own words, on texts in memory, in one thread, from a cold start."""
    texts = [text.encode() for text in _texts(files)]
    for name, call in (("batches", _gigatoken_batches), ("one by one", _gigatoken_one_by_one)):
        start = time.process_time()
        encode = call(model)
        loaded = time.process_time()
        tokens = sum(encode(texts[first : first + 512]) for first in range(0, len(texts), 512))
        end = time.process_time()
        print(
            f"{kind}: gigatoken alone, {name}: {tokens / (end - loaded) / 1e6:.2f} M a CPU second, "
            f"{tokens / (end - start) / 1e6:.2f} with its start; ours end to end is "
            f"{ours * (end - start) / tokens:.0%} of the latter"
        )


def _gigatoken_batches(model: str) -> Callable[[list[bytes]], int]:
    loaded = _gigatoken(model)
    loaded.encode_batch([b"x"], parallel=False)  # imports what its answers are made of
    return lambda texts: len(loaded.encode_batch(texts, parallel=False).layout.content)


def _gigatoken_one_by_one(model: str) -> Callable[[list[bytes]], int]:
    loaded = _gigatoken(model)
    return lambda texts: sum(len(loaded.encode(text)) for text in texts)


def _gigatoken(model: str) -> Any:  # noqa: ANN401
    import gigatoken

    file = tokenizer_files.find(Path(model))
    return gigatoken.Tokenizer(file) if file.suffix == ".json" else gigatoken.Tokenizer.from_sentencepiece(file)


def _texts(files: Sequence[str]) -> Iterator[str]:
    """The texts of files, as TinyLlama's scripts and Megatron-LM's tool read them: a line or a row at a time."""
    for file in files:
        if file.endswith(".parquet"):
            import pyarrow.parquet

            yield from pyarrow.parquet.read_table(file, columns=["content"])["content"].to_pylist()
        else:
            with zstandard.open(file, "rt", encoding="utf-8") as lines:
                yield from (json.loads(line)["text"] for line in lines)


@functools.lru_cache(maxsize=1)
def _one(model: str) -> Callable[[str], list[int]]:
    """A document's ids by the library that decides, as Megatron-LM and TinyLlama ask for them."""
    tokenizer = tokenizer_files.load(model)
    if isinstance(tokenizer, SentencePieceTokenizer):
        import sentencepiece

        return sentencepiece.SentencePieceProcessor(model_file=model).encode
    loaded = _library(tokenizer)
    return lambda text: loaded.encode(text, add_special_tokens=False).ids


@functools.lru_cache(maxsize=1)
def _end(model: str) -> tuple[int, np.dtype]:
    """The id that ends a document, and the dtype of a pair."""
    known = tokenizer_files.load(model).vocabulary
    return known.eod, indexed.token_dtype(known.vocab_size)


def _library(tokenizer: Tokenizer) -> Any:  # noqa: ANN401
    """Hugging Face's tokenizer of a tokenizer.json, special tokens read as text."""
    import tokenizers

    loaded = tokenizers.Tokenizer.from_file(tokenizer.path)
    loaded.encode_special_tokens = True
    return loaded


@functools.lru_cache(maxsize=1)
def _tokenizers(model: str) -> Callable[[list[str]], list[list[int]]]:
    """Hugging Face's tokenizers with the same model, without what would turn text into control tokens."""
    known = tokenizer_files.load(model)
    if isinstance(known, SentencePieceTokenizer):
        import tokenizers

        from tinyllama_mcore.hf import sentencepiece_model, tokenizer

        described = tokenizer.tokenizer_json(sentencepiece_model.read(Path(model)))
        loaded = tokenizers.Tokenizer.from_str(json.dumps({**described, "added_tokens": [], "post_processor": None}))
    else:
        loaded = _library(known)
    return lambda texts: [found.ids for found in loaded.encode_batch_fast(texts, add_special_tokens=False)]


def _megatron_row(model: str, text: str) -> list[int]:
    return [*_one(model)(text), _end(model)[0]]


def _megatron(files: list[str], model: str, workers: int, scratch: Path) -> int:
    """Its parent takes a list a document and writes it; importing Megatron-core, ten seconds, is left out."""
    with (
        multiprocessing.get_context("spawn").Pool(workers) as pool,
        indexed.PairWriter(scratch / "megatron", _end(model)[1]) as pair,
    ):
        for ids in pool.imap(functools.partial(_megatron_row, model), _texts(files), 32):
            pair.add(np.array(ids), np.array([len(ids)]))
    return indexed.read(scratch / "megatron").tokens


def _tinyllama_file(model: str, scratch: Path, file: str) -> int:
    return _write_ids(file, model, scratch, map(_one(model), _texts([file])))


def _hugging_face_file(model: str, scratch: Path, file: str) -> int:
    texts = list(_texts([file]))
    batches = (_tokenizers(model)(texts[first : first + 256]) for first in range(0, len(texts), 256))
    return _write_ids(file, model, scratch, (ids for batch in batches for ids in batch))


def _write_ids(file: str, model: str, scratch: Path, encoded: Iterator[list[int]]) -> int:
    tokens, (end, dtype) = 0, _end(model)
    with open(scratch / f"{Path(file).name}.bin", "wb") as out:
        for ids in encoded:
            out.write(np.array([*ids, end], dtype=dtype).data)
            tokens += len(ids) + 1
    return tokens


def _file_by_file(
    work: Callable[[str, Path, str], int], files: list[str], model: str, workers: int, scratch: Path
) -> int:
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        return sum(pool.map(functools.partial(work, model, scratch), files, 1))


def linear(home: Path, model: str) -> None:
    """Time and memory of one document of 25 to 200 MB: prose, and letters and digits without a space."""
    draw = random.Random(0)
    prose = " ".join(draw.choices(Path(__file__).read_text().split(), k=1_000_000))
    solid = "".join(draw.choices("abcdefghijklmnopqrstuvwxyzABCDEFGH0123456789+/", k=5_000_000))
    for kind, text in (("prose", prose), ("no spaces", solid)):
        for megabytes in (25, 50, 100, 200):
            whole = (text * (megabytes * 1_000_000 // len(text) + 1))[: megabytes * 1_000_000]
            before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
            with tempfile.TemporaryDirectory(dir=home) as scratch:
                raw = Path(scratch, "one.jsonl")
                raw.write_text(json.dumps({"text": whole}) + "\n")
                start = time.perf_counter()
                tokens = _ours([str(raw)], model, 1, Path(scratch))
                took = time.perf_counter() - start
            most = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
            grew = f"{most / 2**20:.2f} GiB" if most > before else "no more than before"
            print(f"{kind}, {megabytes} MB: {tokens:,} tokens in {took:.1f} s, {grew}", flush=True)


def kills(raw: Path, model: str, count: int = 20) -> None:
    """Kill a job and all its workers at random moments, resuming each time; compare with an uninterrupted one."""
    draw = random.Random(0)
    inputs = [str(raw / "text"), str(raw / "code")]
    with tempfile.TemporaryDirectory(dir=raw) as scratch:
        killed = [*_command(model, 2, Path(scratch, "killed"), inputs), "--resume"]
        start = time.perf_counter()
        subprocess.run(_command(model, 2, Path(scratch, "whole"), inputs), check=True, capture_output=True)
        takes = time.perf_counter() - start
        left = []
        for _ in range(count):
            job = subprocess.Popen(killed, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, process_group=0)
            try:
                job.wait(timeout=draw.uniform(0.3, 0.5 * takes))
            except subprocess.TimeoutExpired:
                os.killpg(job.pid, signal.SIGKILL)
                job.wait()
            left.append(len(list(Path(f"{scratch}/killed_text_document.parts").glob("*.json"))))
        subprocess.run(killed, check=True, capture_output=True)
        equal = [
            Path(f"{scratch}/whole_text_document.{suffix}").read_bytes()
            == Path(f"{scratch}/killed_text_document.{suffix}").read_bytes()
            for suffix in ("bin", "idx")
        ]
    print(f"killed {count} times, shards finished after each: {left}; .bin and .idx identical: {equal}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one of them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("what", choices=("corpus", "throughput", "linear", "kills"))
    parser.add_argument(
        "--directory", type=Path, default=Path("runs/bench"), help="the corpus and scratch files (default: runs/bench)"
    )
    parser.add_argument(
        "--text",
        type=Path,
        nargs="*",
        action="extend",
        default=[],
        help="corpus: files to begin its text with (default: none)",
    )
    parser.add_argument("--megabytes", type=int, default=40, help="corpus: of text, and of source (default: 40)")
    parser.add_argument("--tokenizer-model", help="as of preprocess_data.py; needed by all but corpus (default: none)")
    parser.add_argument("--workers", type=int, default=1, help="throughput: processes (default: 1)")
    parser.add_argument(
        "--overwrite", action="store_true", help="corpus: overwrite one that is there (default: refuse)"
    )
    given = parser.parse_args(argv)
    if given.tokenizer_model is None and given.what != "corpus":
        parser.error(f"{given.what} needs --tokenizer-model")
    return exit_code(lambda: benchmark(given))


def benchmark(given: argparse.Namespace) -> None:
    """What the flags ask for."""
    if given.what == "corpus":
        refuse_taken(given.directory, overwrite=given.overwrite)
    given.directory.mkdir(parents=True, exist_ok=True)
    runs: dict[str, Callable[[], None]] = {
        "corpus": lambda: corpus(given.directory, given.text, given.megabytes),
        "throughput": lambda: throughput(given.directory, given.tokenizer_model, given.workers),
        "linear": lambda: linear(given.directory, given.tokenizer_model),
        "kills": lambda: kills(given.directory, given.tokenizer_model),
    }
    runs[given.what]()
