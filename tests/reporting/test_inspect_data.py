"""What the inspection shows is what SentencePiece and the loader say; what it validates, it faults by name."""

from __future__ import annotations

import contextlib
import io
import json
import re
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import sentencepiece

from tests.data.test_indexed import write
from tests.distributed import ranks
from tests.distributed.conftest import write_json
from tests.distributed.recipe import RECIPE
from tests.raw_files import json_lines
from tinyllama_mcore.config.errors import ConfigError
from tinyllama_mcore.config.schema import DataConfig
from tinyllama_mcore.data import indexed, receipt
from tinyllama_mcore.data.tokenizer import SentencePieceTokenizer
from tinyllama_mcore.preprocessing import preprocess
from tinyllama_mcore.reporting import blend_report, inspection, validation

SEQ = 32


@pytest.fixture(scope="module")
def tokenizer(tokenizer_model: Path) -> SentencePieceTokenizer:
    """Of the pairs."""
    return SentencePieceTokenizer(tokenizer_model)


@pytest.fixture(scope="module")
def documents(texts: list[str]) -> list[str]:
    """Prose, and what is hard to spell: bytes, spaces at the front, characters that no piece has."""
    return [*texts, " two spaces", "\x00\t\U0001f600 \u00e9\u5b57", "caterpillar"]


@pytest.fixture
def prefix(tmp_path: Path, tokenizer_model: Path, documents: list[str]) -> str:
    """A pair with its receipt."""
    (tmp_path / "d.jsonl").write_bytes(json_lines(documents))
    job = preprocess.PreprocessJob(
        inputs=(str(tmp_path / "d.jsonl"),),
        output_prefix=str(tmp_path / "out"),
        tokenizer_model=str(tokenizer_model),
        append_eod=True,
    )
    return preprocess.run(job)[0].prefix


def test_a_document(
    prefix: str,
    documents: list[str],
    tokenizer: SentencePieceTokenizer,
    reference: sentencepiece.SentencePieceProcessor,
) -> None:
    """Ids are SentencePiece's and EOD, the text is the raw one; a number that there is not is told with the last."""
    for number, text in enumerate(documents):
        found = inspection.document(prefix, number, tokenizer)
        assert (found.tokens, found.text) == ([*reference.encode(text), 2], text)
    with pytest.raises(ConfigError, match=rf"--document 99: .* has documents 0 to {len(documents) - 1}"):
        inspection.document(prefix, 99, tokenizer)


@pytest.mark.parametrize("sought", ["the", "erpill", " two", "  two", "\U0001f600 \u00e9", "\x00", "in no document"])
def test_search_finds_what_is_in_the_texts(
    prefix: str, documents: list[str], tokenizer: SentencePieceTokenizer, sought: str
) -> None:
    """As Python's own `in` does on the raw texts: inside tokens, across them, and not the space SentencePiece adds."""
    found = list(inspection.search(prefix, sought, tokenizer))
    assert [(match.document, match.character) for match in found] == [
        (number, text.find(sought)) for number, text in enumerate(documents) if sought in text
    ]
    assert all(sought in match.excerpt for match in found)


def test_spellings_are_sentencepieces(tokenizer: SentencePieceTokenizer, documents: list[str]) -> None:
    """Joined, they are the text and the space before it."""
    spellings = tokenizer.spellings()
    for text, ids in zip(documents, tokenizer.encode(documents), strict=True):
        assert b"".join(spellings[token] for token in ids) == f" {text}".encode()


def test_a_sample_and_its_documents(
    prefix: str, tmp_path: Path, documents: list[str], tokenizer: SentencePieceTokenizer
) -> None:
    """Each part is that stretch of its document, all parts together are the sample; also in an epoch not yet built."""
    other = write(tmp_path / "other", [40] * 20)
    data = DataConfig(blend=((0.6, prefix), (0.4, str(other))), cache_dir=str(tmp_path / "cache"), split=(1, 0, 0))
    samples = blend_report.samples_of(data, seq_length=SEQ, seed=5, tokenizer=tokenizer)
    per_epoch = samples.stores[1].samples_per_epoch
    for number in (0, 1, 2, 3, 4, 20 * per_epoch):
        found = blend_report.sample(samples, number, tokenizer)
        expected = samples[number]
        assert found.tokens == [*expected.tokens.tolist(), int(expected.labels[-1])]
        pair = indexed.read(found.prefix)
        rest = found.tokens
        for part in found.parts:
            whole = np.split(np.fromfile(f"{found.prefix}.bin", np.uint16), np.cumsum(pair.lengths()))[part.document]
            assert whole[part.first : part.first + part.tokens].tolist() == rest[: part.tokens]
            assert part.text == tokenizer.decode(rest[: part.tokens])
            rest = rest[part.tokens :]
        assert not rest
        assert (
            samples.consumed(number)[found.prefix]
            == found.epoch * (samples.stores[samples.prefixes.index(found.prefix)].samples_per_epoch) + found.position
        )


def test_the_plan_counts_what_will_be_drawn(prefix: str, tmp_path: Path, tokenizer: SentencePieceTokenizer) -> None:
    """Tokens and epochs of each dataset, as one counts them sample by sample."""
    other = write(tmp_path / "other", [40] * 20)
    data = DataConfig(blend=((0.6, prefix), (0.4, str(other))), split=(1, 0, 0))
    samples = blend_report.samples_of(data, seq_length=SEQ, seed=5, tokenizer=tokenizer)
    rows = blend_report.plan(999 * SEQ - 1, samples)
    drawn = [samples.place(i).dataset for i in range(999)]
    assert [row.tokens for row in rows] == [SEQ * drawn.count(0), SEQ * drawn.count(1)]
    for row, lengths in zip(rows, (indexed.read(prefix).lengths(), [40] * 20), strict=True):
        assert row.tokens_per_epoch == (int(sum(lengths)) - 1) // SEQ * SEQ
        assert row.epochs == pytest.approx(row.tokens / row.tokens_per_epoch)


def test_a_sound_pair_has_no_fault(
    prefix: str, tokenizer: SentencePieceTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where documents lie across the blocks in which it is read."""
    for size in (validation.BLOCK_TOKENS, 997, 64):
        monkeypatch.setattr(validation, "BLOCK_TOKENS", size)
        verdict = validation.validate(prefix, tokenizer)
        assert verdict.faults == () and verdict.has_receipt
        assert verdict.tokens == indexed.read(prefix).tokens


def _planted(prefix: str, kind: str) -> None:
    """Spoil a pair."""
    pair = indexed.read(prefix)
    tokens, index = np.fromfile(f"{prefix}.bin", dtype=np.uint16), bytearray(Path(f"{prefix}.idx").read_bytes())
    end = int(pair.lengths()[0]) - 1
    lengths_at, offsets_at = indexed.HEADER.size, indexed.HEADER.size + 4 * pair.sequences
    if kind == "foreign id":
        tokens[10] = 600
    elif kind == "EOD inside":
        tokens[10] = 2
    elif kind == "EOD gone":
        tokens[end] = 9
    elif kind == "filler":
        tokens[end - 4 : end] = 2
    elif kind == "length":
        index[lengths_at] ^= 1
    elif kind == "offset":
        index[offsets_at + 8] ^= 2
    elif kind == "bounds":
        index[-16] ^= 0x40
    elif kind == "cut short":
        tokens = tokens[:-1]
    tokens.tofile(f"{prefix}.bin")
    Path(f"{prefix}.idx").write_bytes(index)
    if kind == "receipt":
        slip = receipt.read(prefix)
        assert slip is not None
        receipt.write(prefix, replace(slip, counts=replace(slip.counts, unk=7)))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("foreign id", r"1 token ids outside the vocabulary, first at token 10"),
        ("EOD inside", r"1 EOD tokens inside documents, first at token 10"),
        ("EOD gone", r"1 documents that do not end with EOD, the first is 0"),
        ("filler", r"separator_pairs is 0, but the files have 4"),
        ("length", r"sequence 1 is said to be \d+ tokens at byte \d+, but those before it end at byte"),
        ("length", r"is not the index that its receipt .* describes \(its checksum"),
        ("offset", r"sequence 1 is said to be"),
        ("bounds", r"its documents are not made of sequences 0 to \d+ in order"),
        ("cut short", r"\.bin has \d+ bytes where .*\.idx needs"),
        ("receipt", r"unk is 7, but the files have 0"),
    ],
)
def test_a_fault_is_named(prefix: str, tokenizer: SentencePieceTokenizer, kind: str, message: str) -> None:
    """Each kind, in a pair that is sound but for it."""
    _planted(prefix, kind)
    faults = "\n".join(validation.validate(prefix, tokenizer).faults)
    assert re.search(message, faults), faults


def _run(program: Path | str, checkout: Path, *flags: str | Path) -> subprocess.CompletedProcess[str]:
    tool = [str(program), str(checkout / "tools/inspect_data.py"), *map(str, flags)]
    return subprocess.run(tool, capture_output=True, text=True, timeout=100)


def test_the_tool(prefix: str, documents: list[str], python: Path, checkout: Path) -> None:
    """Text and JSON, the receipt's tokenizer, exit code 1 for data with a fault."""
    found = json.loads(_run(python, checkout, "--data_path", prefix, "--document", len(documents) - 1, "--json").stdout)
    assert found["text"] == "caterpillar"
    told = _run(python, checkout, "--data-path", prefix, "--search", "erpill").stdout
    assert "1 documents shown" in told and "caterpillar" in told
    figures = json.loads(_run(python, checkout, "--data-path", prefix, "--statistics", "--json").stdout)
    assert figures["documents"] == figures["receipt"]["eod"] == len(documents)
    sound = _run(python, checkout, "--data-path", prefix, "--validate")
    assert sound.returncode == 0 and "compared with its receipt: no faults" in sound.stdout, sound.stderr
    _planted(prefix, "EOD inside")
    spoilt = _run(python, checkout, "--data-path", prefix, "--validate")
    assert spoilt.returncode == 1 and "1 EOD tokens inside documents" in spoilt.stdout


@pytest.mark.slow
def test_the_tool_on_a_blend(prefix: str, tmp_path: Path, python: Path, checkout: Path) -> None:
    """With the trainer's flags: a sample names its dataset, a plan its epochs."""
    other = write(tmp_path / "other", [40] * 20)
    flags = ("--data-path", "0.6", prefix, "0.4", other, "--seq-length", SEQ, "--data-cache-path", tmp_path / "cache")
    found = json.loads(_run(python, checkout, *flags, "--sample", 3, "--json").stdout)
    assert found["prefix"] in (prefix, str(other)) and len(found["tokens"]) == SEQ + 1
    planned = _run(sys.executable, checkout, *flags, "--plan", "32_000")
    assert planned.returncode == 0 and "tokens an epoch" in planned.stdout and str(other) in planned.stdout
    assert not planned.stderr, "nothing but the answer"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ((), "give exactly one of --document, --sample"),
        (("--validate", "--statistics"), "2 are given"),
        (("--validate",), "--data-path is missing"),
        (("--valdate",), "unknown flag --valdate; did you mean --validate?"),
        (("--document", "x", "--data-path", "P"), "argument --document: must be a whole number, at least 0; got 'x'"),
        (
            ("--document", "0", "--data-path", "0.5", "P", "0.5", "Q"),
            "--document reads one dataset",
        ),
        (("--validate", "--data-path", "P", "--limit", "3"), "--limit does nothing with --validate: leave it out"),
        (("--document", "0", "--data-path", "P", "--seed", "3"), "--seed does nothing with --document: leave it out"),
        (("--validate", "--data-path", "P"), "--data-path P: neither P.bin nor P.idx exists"),
        (("--plan", "0", "--data-path", "P"), "must be a whole number, at least 1"),
        (("--plan", "9", "--data-path", "P", "--iteration", "3"), "--iteration 3 names a checkpoint in --load"),
    ],
)
def test_mistakes(flags: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 2 and one line."""
    from tinyllama_mcore.commands import inspect_data

    assert inspect_data.main(flags) == 2
    told = capsys.readouterr().err
    assert message in told and told.count("\n") == 1 and told.startswith("error: ")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, corpus: list[str]) -> Path:
    """A run of one iteration whose every number is another than the defaults of the tool; its checkpoints."""
    home = tmp_path_factory.mktemp("run")
    flags = ["--deepspeed_config", write_json(home / "ds.json", {"zero_optimization": {"stage": 1}})]
    flags += ["--recipe", write_json(home / "recipe.json", RECIPE), "--data-path", *corpus, "--seed", "77"]
    flags += ["--seq-length", "16", "--split", "60,40,0", "--train-iters", "1", "--lr-warmup-iters", "0"]
    flags += ["--data-cache-path", str(home / "indices"), "--save", str(home / "checkpoints")]
    ranks.pretrain(flags, world_size=1, logs=home / "logs")
    return home / "checkpoints"


def _asked(run: Path, *flags: str | Path) -> tuple[int, str]:
    """Exit code, and what the tool says of a run."""
    from tinyllama_mcore.commands import inspect_data

    told, mistake = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(told), contextlib.redirect_stderr(mistake):
        code = inspect_data.main(["--load", str(run), *map(str, flags)])
    return code, told.getvalue() + mistake.getvalue()


@pytest.mark.slow
def test_a_run_is_asked_as_it_is(run: Path, corpus: list[str], tmp_path: Path) -> None:
    """Its own sequence length, seed, split, datasets, weights and cache, where no flag names them; and where all do."""
    slip = receipt.read(corpus[1])
    assert slip is not None
    blend = tuple((float(corpus[at]), corpus[at + 1]) for at in range(0, len(corpus), 2))
    data = DataConfig(blend=blend, split=(60, 40, 0), cache_dir=str(tmp_path))
    tokenizer = SentencePieceTokenizer(slip.tokenizer_model)
    samples = blend_report.samples_of(data, seq_length=16, seed=77, tokenizer=tokenizer)
    for number in (0, 5, 11):
        code, answer = _asked(run, "--sample", number, "--json")
        assert code == 0, answer
        assert json.loads(answer) == json.loads(json.dumps(asdict(blend_report.sample(samples, number, tokenizer))))
    said = ("--seq-length", "16", "--seed", "77", "--split", "60,40,0", "--data-path", *corpus)
    assert _asked(run, *said, "--sample", "11", "--json") == (0, answer)
    assert list((run.parent / "indices").iterdir())
    code, answer = _asked(run, "--plan", "16_000", "--json")
    assert code == 0 and sum(row["tokens"] for row in json.loads(answer)) == 16_000


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--seq-length", "2048"), r"--seq-length 2048: the run of .*iter_0000001 has 16; leave --seq-length out"),
        (("--seed", "1234"), r"--seed 1234: the run of .* has 77; leave --seed out"),
        (("--split", "99,1,0"), r"--split 99,1,0: the run of .* has 60,40,0; leave --split out"),
        (("--iteration", "2"), r"no finished checkpoint of iteration 2; finished ones: 1"),
    ],
)
def test_another_run_than_the_one_that_is_loaded_is_refused(run: Path, flags: tuple[str, ...], message: str) -> None:
    """Rather than asked of samples that it never draws."""
    code, told = _asked(run, *flags, "--sample", "0")
    assert code == 2 and re.search(message, told), told
