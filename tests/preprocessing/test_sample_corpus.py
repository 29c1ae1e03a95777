"""The built-in corpus: made once however many start at once, in the real datasets' shapes, the same every time."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import sentencepiece.sentencepiece_model_pb2 as sentencepiece_model
import zstandard

from tinyllama_mcore.config.errors import ConfigError
from tinyllama_mcore.data import receipt
from tinyllama_mcore.preprocessing import documents, inputs, readers, sample_corpus
from tinyllama_mcore.preprocessing.sample_corpus import SampleData

VOCABULARY = 700
PREPARE = (
    f"from tinyllama_mcore.preprocessing.sample_corpus import ensure; import sys; ensure(sys.argv[1], {VOCABULARY})"
)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, checkout: Path) -> Path:
    """Made by two processes that start at once; exactly one of them does the work."""
    directory = tmp_path_factory.mktemp("sample")
    command = [sys.executable, "-c", PREPARE, str(directory)]
    both = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=checkout) for _ in range(2)]
    said = [process.communicate(timeout=120)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert sorted("slimpajama_text_document" in text for text in said) == [False, True]
    return directory


@pytest.fixture(scope="module")
def sample(home: Path) -> SampleData:
    """What a run takes; finding it again costs nothing."""
    return sample_corpus.ensure(home, VOCABULARY)


def test_what_a_run_takes(sample: SampleData) -> None:
    """TinyLlama's weights, two pairs with their receipts, enough tokens, no GitHub row."""
    assert [weight for weight, _ in sample.blend] == [0.693584, 0.306416]
    vocabulary = receipt.vocabulary_of([prefix for _, prefix in sample.blend], sample.tokenizer_model)
    assert vocabulary.vocab_size == VOCABULARY
    for _, prefix in sample.blend:
        receipt.check(prefix, vocabulary)
        slip = receipt.read(prefix)
        assert slip is not None and slip.append_eod and slip.counts.tokens > 400_000
    slip = receipt.read(sample.blend[0][1])
    assert slip is not None and slip.counts.dropped[sample_corpus.GITHUB_SET] > 5


def test_the_raw_files_have_the_real_shapes(home: Path) -> None:
    """SlimPajama's rows and sets, in many zstd frames; StarCoder's column `content`."""
    raw = home / f"vocab-{VOCABULARY}-v2"
    (slim,) = inputs.find([str(raw / "slimpajama")]).files
    (code,) = inputs.find([str(raw / "starcoder")]).files
    assert slim.name.endswith(".jsonl.zst") and code.parts[-2] == "python" and code.suffix == ".parquet"
    decode = documents.json_decoder()
    (piece,) = readers.pieces(slim)
    rows = [documents.document(row, "text", decode) for row in readers.rows(piece, "text")]
    assert {row.set_name for row in rows} >= {"RedPajamaGithub", "RedPajamaWikipedia", "RedPajamaStackExchange"}
    assert slim.read_bytes().count(zstandard.FRAME_HEADER) > 3
    assert next(readers.rows(readers.pieces(code)[0], "content"))


def test_the_tokenizer_is_llamas_kind(sample: SampleData, checkout: Path) -> None:
    """Trainer and normalizer options equal those inside Llama-2's own model, where it is at hand."""
    ours = sentencepiece_model.ModelProto.FromString(Path(sample.tokenizer_model).read_bytes())
    assert [piece.piece for piece in ours.pieces[:4]] == ["<unk>", "<s>", "</s>", "<0x00>"]
    model = checkout.parent / "shared/data/llama2_tokenizer.model"
    if not model.exists():
        pytest.skip("Llama-2's tokenizer.model is not at hand")
    theirs = sentencepiece_model.ModelProto.FromString(model.read_bytes())
    for name in sample_corpus.LLAMA_TOKENIZER:
        field = {"normalization_rule_name": "name"}.get(name, name)
        spec = "normalizer_spec" if hasattr(ours.normalizer_spec, field) else "trainer_spec"
        assert getattr(getattr(ours, spec), field) == getattr(getattr(theirs, spec), field), name


def test_half_made_is_made_again_and_the_same(home: Path, tmp_path: Path) -> None:
    """What a killed process left, without READY, is thrown away; all files come out as before, byte for byte."""
    name = f"vocab-{VOCABULARY}-v2"
    (tmp_path / name).mkdir()
    (tmp_path / name / "tokenizer.model").write_bytes(b"half")
    sample_corpus.ensure(tmp_path, VOCABULARY)
    files = {file.relative_to(home) for file in home.rglob("*") if file.is_file() and file.suffix != ".json"}
    assert len(files) == 9  # READY, lock, tokenizer, two raw files, two pairs
    for file in files:
        assert (tmp_path / file).read_bytes() == (home / file).read_bytes(), file


def test_where_it_cannot_be_written(tmp_path: Path) -> None:
    """A file in the way of the directory."""
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"the sample corpus cannot be written to .*file"):
        sample_corpus.ensure(tmp_path / "file", VOCABULARY)
