"""Shared by every test: one thread a process (two cores serve many ranks), and the small corpus that runs train on."""

import contextlib
import fcntl
import hashlib
import os
from collections.abc import Iterator

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # before anything imports Triton: tests/kernels
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")  # more are processes, each with imports of its own

if TYPE_CHECKING:
    from tinyllama_mcore.data.receipt import Receipt

pytest_plugins = ["tests.raw_files"]

VOCABULARY = 509  # a prime: no tensor-parallel size divides it, so padding is always at work


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--all-layouts`: the whole product, not only the part in which every pair of values meets.

    `--kills N`, `--ends N`: how often the tests of those names are made.

    `--llama-cpp DIR`: a checkout of llama.cpp, for tests/hf/test_llama_cpp.py.
    """
    parser.addoption("--llama-cpp", metavar="DIR", help="llama.cpp's source, whose converter reads an exported model")
    parser.addoption("--kills", type=int, default=4, help="how many random kills tests/distributed/test_kills.py makes")
    parser.addoption(
        "--ends", type=int, default=0, help="how often tests/distributed/test_ends.py ends each kind of run"
    )
    parser.addoption("--all-layouts", action="store_true", help="try every legal layout (a quarter of an hour)")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what `--all-layouts` asks for where it is not given, and skip what needs a GPU where there is none."""
    if not config.getoption("--all-layouts"):
        left_out = [item for item in items if "layouts" in item.keywords]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]
    if not torch.cuda.is_available():
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU"))


@pytest.fixture(autouse=True)
def _no_process_is_left() -> Iterator[None]:
    """A test that failed between a start and its end leaves ranks, stopped ones too, and Python would wait for them."""
    from tests import forked

    yield
    for child in forked.others():
        child.kill()
        child.join()


@pytest.fixture(scope="session")
def python(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The path of a `python` that starts scripts with their imports made (tests/forked.py)."""
    from tests import forked

    with forked.start(tmp_path_factory.mktemp("forked")) as program:
        yield program


@contextlib.contextmanager
def shared(factory: pytest.TempPathFactory, name: str) -> Iterator[tuple[Path, bool]]:
    """A directory that all workers of pytest-xdist share, and whether it has to be filled: the first one does it.

    The others wait meanwhile. A worker that fails leaves it to the next.
    """
    base = factory.getbasetemp()
    home = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "shared" / name
    home.mkdir(parents=True, exist_ok=True)
    done = home.with_name(f"{home.name}.done")
    with open(home.with_name(f"{home.name}.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield home, not done.exists()
        done.touch()


@pytest.fixture(scope="session")
def corpus_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SentencePiece model of 509 pieces, learnt from this suite's own source."""
    import sentencepiece

    from tinyllama_mcore.preprocessing.sample_corpus import LLAMA_TOKENIZER

    with shared(tmp_path_factory, "tokenizer") as (home, empty):
        if empty:
            with (home / "tokenizer.model").open("wb") as written:
                sentencepiece.SentencePieceTrainer.train(
                    sentence_iterator=iter(Path(__file__).read_text().splitlines()),
                    model_writer=written,
                    vocab_size=VOCABULARY,
                    minloglevel=2,
                    **LLAMA_TOKENIZER,
                )
    return home / "tokenizer.model"


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory, corpus_tokenizer: Path) -> list[str]:
    """`--data-path` of two small datasets with receipts: 509 token ids, skewed like text."""
    with shared(tmp_path_factory, "corpus") as (home, empty):
        if empty:
            write_corpus(home, VOCABULARY, corpus_tokenizer)
    return data_path(home)


def data_path(home: Path) -> list[str]:
    """What `--data-path` takes for a corpus that `write_corpus` wrote."""
    return ["0.7", str(home / "text"), "0.3", str(home / "code")]


def write_corpus(home: Path, vocabulary: int, tokenizer: Path) -> list[str]:
    """`--data-path` of two small datasets with receipts that name a tokenizer: so many token ids, skewed like text."""
    from tinyllama_mcore.data import indexed, receipt

    rng = np.random.default_rng(0)
    for name, documents in (("text", 120), ("code", 80)):
        with indexed.PairWriter(home / name, indexed.token_dtype(vocabulary)) as pair:
            for _ in range(documents):
                length = int(rng.integers(20, 200))
                tokens = (vocabulary * rng.random(length) ** 3).astype(pair.dtype)
                tokens[-1] = 2
                pair.add(tokens, np.array([length], dtype=np.int32))
        receipt.write(home / name, _receipt(home / name, documents, vocabulary, tokenizer))
    return data_path(home)


def _receipt(prefix: Path, documents: int, vocabulary: int, tokenizer: Path) -> "Receipt":
    from tinyllama_mcore.data import indexed
    from tinyllama_mcore.data.counts import Counts
    from tinyllama_mcore.data.receipt import Receipt

    tokens = indexed.read(prefix).tokens
    return Receipt(
        counts=Counts(documents=documents, tokens=tokens, eod=documents, largest_token_id=vocabulary - 1),
        append_eod=True,
        vocab_size=vocabulary,
        eod=2,
        tokenizer_model=str(tokenizer),
        tokenizer_sha256=hashlib.sha256(tokenizer.read_bytes()).hexdigest(),
        json_key="text",
        bin_bytes=indexed.bin_path(prefix).stat().st_size,
        idx_bytes=indexed.idx_path(prefix).stat().st_size,
        fingerprint=indexed.read(prefix).fingerprint,
        inputs=(),
    )


@pytest.fixture(scope="session")
def checkout() -> Path:
    """The root of the repository."""
    return Path(__file__).resolve().parents[1]
