"""How fast a rank gets its batches, from warm and cold caches, and how soon a run can start (docs/evidence/data.md).

    tinyllama-benchmark-loader --directory runs/bench

Makes a blend of 1e9 tokens there, once (2 GB). Cold means that the system was told to forget the pages of its files.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from tinyllama_mcore.config.schema import BatchConfig, DataConfig
from tinyllama_mcore.data import indexed
from tinyllama_mcore.data.tokenizer import Vocabulary
from tinyllama_mcore.parallel import launch
from tinyllama_mcore.parallel.alone import job_of_one
from tinyllama_mcore.sampling.blend import BlendedSamples, open_blend
from tinyllama_mcore.sampling.loader import BatchSource

VOCABULARY = Vocabulary(vocab_size=32_000, eod=2, sha256="0" * 64)
TOKENS = {"text": 700_000_000, "code": 300_000_000}
MEAN_LENGTH = 1_000
"""Tokens of a document."""
SEQ_LENGTH, MICRO_BATCH, SAMPLES = 2048, 8, 2048
TRAINED = 85_000
"""Tokens/s that one H200 trains the 1.1B model on; the loader has to give 20 times as many."""


def blend_of(home: Path) -> DataConfig:
    """The blend; made where it is not there."""
    rng = np.random.default_rng(0)
    block = rng.integers(3, VOCABULARY.vocab_size, 1 << 24).astype(np.uint16)
    for name, tokens in TOKENS.items():
        if indexed.idx_path(home / name).is_file():
            continue
        with indexed.PairWriter(home / name, np.dtype(np.uint16)) as pair:
            while tokens > 0:
                lengths = rng.geometric(1 / MEAN_LENGTH, 10_000)
                pair.add(np.resize(block, lengths.sum()), lengths)
                tokens -= int(lengths.sum())
    total = sum(TOKENS.values())
    shares = tuple((tokens / total, str(home / name)) for name, tokens in TOKENS.items())
    return DataConfig(blend=shares, split=(1, 0, 0), cache_dir=str(home / "cache"))


def opened(data: DataConfig) -> BlendedSamples:
    """All of the blend, ready to be drawn."""
    samples = open_blend(data, split="train", seq_length=SEQ_LENGTH, seed=1234, vocabulary=VOCABULARY)
    assert samples is not None
    samples.prepare(0, sum(TOKENS.values()) // SEQ_LENGTH)
    return samples


def forget(home: Path) -> None:
    """Drop every page of the files from the system's cache."""
    for path in home.rglob("*"):
        if path.is_file():
            with open(path, "rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def by_loader(samples: BlendedSamples, first: int) -> None:
    """SAMPLES samples as a rank takes them."""
    batch = BatchConfig(
        seq_length=SEQ_LENGTH, micro_batch_size=MICRO_BATCH, global_batch_size=MICRO_BATCH, train_iters=1
    )
    with job_of_one() as mesh:
        for _ in BatchSource(samples, batch, mesh, document_end=None).iterations(first, SAMPLES // MICRO_BATCH):
            pass


def by_mapped_pages(samples: BlendedSamples, first: int) -> None:
    """The tokens of the same samples through a memory-mapped `.bin`, as Megatron's reader does by default."""
    pairs = [indexed.read(prefix) for prefix in samples.prefixes]
    files = [np.memmap(indexed.bin_path(pair.prefix), dtype=pair.dtype, mode="r") for pair in pairs]
    for number in range(first, first + SAMPLES):
        place = samples.place(number)
        offsets = pairs[place.dataset].offsets()
        for span in samples.stores[place.dataset].spans(place.epoch, place.position):
            begin = int(offsets[span.document]) // 2 + span.first
            files[place.dataset][begin : begin + span.tokens].astype(np.int64)


WAYS: dict[str, Callable[[BlendedSamples, int], None]] = {"loader": by_loader, "mapped pages": by_mapped_pages}


def read_from_disk() -> int:
    """Bytes that this process has had read from a disk."""
    return int(Path("/proc/self/io").read_text().split("read_bytes: ")[1].split()[0])


def measure(data: DataConfig, home: Path) -> None:
    """Every way, cold and then warm, over the same samples."""
    opened(data)[0]
    begin = time.perf_counter()
    samples = opened(data)
    samples[0]
    print(f"indices found, nothing to import: first sample after {time.perf_counter() - begin:.2f} s")
    wanted = SAMPLES * SEQ_LENGTH
    for number, (name, way) in enumerate(WAYS.items()):
        first = number * SAMPLES
        for state in ("cold", "warm"):
            if state == "cold":
                forget(home)
            before, start, used = read_from_disk(), time.perf_counter(), time.process_time()
            way(samples, first)
            took, used = time.perf_counter() - start, time.process_time() - used
            megabytes = (read_from_disk() - before) / 1e6
            rate = wanted / took
            print(
                f"{name}, {state}: {rate / 1e6:.2f} M tokens/s ({rate / TRAINED:.0f} times {TRAINED:,}), {used:.2f} s "
                f"of CPU in {took:.2f} s, {megabytes:.1f} MB from the disk for {2 * wanted / 1e6:.1f} MB of tokens",
                flush=True,
            )


def start_up(home: Path) -> None:
    """A fresh process each: without indices, with them, and with them but out of cold caches."""
    for path in (home / "cache").glob("*/*"):
        path.unlink()
    for path in (home / "cache").glob("*"):
        path.rmdir()
    for name in ("indices built", "indices found", "indices found, cold"):
        if "cold" in name:
            forget(home)
        tool = [sys.executable, "-m", "tinyllama_mcore", "benchmark-loader", "--directory", str(home.parent), "--start"]
        begin = time.perf_counter()
        subprocess.run(tool, check=True)
        print(f"{name}: first sample after {time.perf_counter() - begin:.1f} s, imports included", flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure all of it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument(
        "--directory",
        type=Path,
        default=Path("runs/bench"),
        help="the blend lies in its directory 1e9 (default: runs/bench)",
    )
    parser.add_argument(
        "--start", action="store_true", help="only open the blend and draw its first sample (default: do not)"
    )
    given = parser.parse_args(argv)
    launch.quiet_third_parties()
    home = given.directory / "1e9"
    data = blend_of(home)
    if given.start:
        opened(data)[0]
        return 0
    start_up(home)
    measure(data, home)
    return 0
