"""The tutorial and the page for people who come from elsewhere keep their word: each of their commands runs here.

A command of real size is run at toy size: a table says which of its words are replaced by which. As in
tests/test_readme.py the commands are taken from the pages as they stand, and run in order; ranks and scripts are forked
from a server that has the imports behind it.
"""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests import shown, small_tokenizers
from tests.distributed import ranks
from tests.foreign_tokens import EOD, flat, write_chunks, write_ds
from tests.raw_files import write_rows
from tinyllama_mcore.config import flags
from tinyllama_mcore.data import indexed

TUTORIAL, MIGRATE = "docs/howto/tutorial.md", "docs/howto/migrate.md"
PROGRAMS = Path(sys.executable).parent

TOY: dict[str, tuple[tuple[str, str, str], ...]] = {
    TUTORIAL: (
        ("python", "--workers 64", "--workers 2"),
        ("python tools/plan_layout.py", "--world-size 16", "--world-size 2"),
        ("python tools/plan_layout.py", "--world-size 8", "--world-size 2"),
        ("torchrun", "--recipe tinyllama-1.1b", "--recipe tinyllama-debug --seq-length 32 --train-iters 6"),
        ("torchrun", "--micro-batch-size 8", "--micro-batch-size 8 --lr-warmup-iters 1 --exit-interval 3"),
        ("torchrun", "--micro-batch-size 32", "--micro-batch-size 4 --lr-warmup-iters 1"),
        ("torchrun", "--eval-interval 5000 --eval-iters 50", "--eval-interval 3 --eval-iters 1"),
        ("torchrun", "--save-interval 1000", "--save-interval 2"),
        ("python", "--tasks table2", "--tasks piqa --include-path tasks --device cpu --no-verify"),
    ),
    MIGRATE: (
        ("torchrun", "--lr-warmup-iters 100", "--lr-warmup-iters 1"),
        (
            "torchrun",
            "--train-iters 1000",
            "--train-iters 3 --seq-length 32 --micro-batch-size 2 --global-batch-size 8",
        ),
    ),
}
"""Page -> for commands that begin so, words of real size and those that replace them."""
WITHOUT_A_NETWORK = "hf "
"""Commands that begin so need the Hub: here their flags are looked up in their program's `--help`."""
RUN_ELSEWHERE = {"litgpt convert_from_litgpt": "tests/hf/test_litgpt.py::test_by_its_own_converter_and_ours"}
"""Beginning of a command -> the test that runs it, where its program is installed."""
RANKS = 2
"""Processes that stand for those of any launcher."""


def toy(page: str, command: str) -> str:
    """The command with the words that the table has for it."""
    for begins, real, small in TOY[page]:
        if command.startswith(begins):
            command = re.sub(rf"{re.escape(real)}(?!\d)", small, command)
    return command


def execute(command: str, home: Path) -> None:
    """Run a command in `home` as a reader would, to its end, and demand success."""
    words, logs = shlex.split(command), home / "logs"
    script = next((word for word in words if word.startswith(("tools/", "examples/"))), None)
    if script is None:
        environment = {**os.environ, "PATH": f"{PROGRAMS}:{os.environ['PATH']}"}
        subprocess.run(words, cwd=home, env=environment, check=True, timeout=300)
        return
    argv = words[words.index(script) + 1 :]
    if words[0] == "torchrun":
        codes = ranks.run(RANKS, _train, str(home), argv, logs=logs)
    else:
        codes = [ranks.program([str(shown.REPOSITORY / script), *argv], logs=logs, cwd=home)[0]]
    assert set(codes) == {0}, f"{command}\n{(logs / 'rank0.log').read_text()[-3000:]}"


def _train(home: str, argv: list[str]) -> int:
    from tinyllama_mcore.pretrain import main

    os.chdir(home)
    return main(argv)


def run_all(page: str, home: Path) -> None:
    """Every command of the page, in order."""
    (home / "ds_configs").symlink_to(shown.REPOSITORY / "ds_configs")
    for command in shown.commands(page):
        if not command.startswith((WITHOUT_A_NETWORK, *RUN_ELSEWHERE)):
            execute(toy(page, command), home)


@pytest.mark.parametrize("page", TOY)
def test_the_table_names_what_the_page_has(page: str) -> None:
    """No row is left behind by a command that went, and what is run elsewhere has its test."""
    commands = shown.commands(page)
    for begins, real, _ in TOY[page]:
        assert any(command.startswith(begins) and real in command for command in commands), real
    for begins, test in RUN_ELSEWHERE.items():
        path, name = test.split("::")
        tree = ast.parse((shown.REPOSITORY / path).read_text(encoding="utf-8"))
        assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
        assert any(command.startswith(begins) for command in shown.commands(MIGRATE))


def test_flags_of_the_hub() -> None:
    """Each subcommand exists and has the flags that the tutorial gives it."""
    commands = [shlex.split(c) for c in shown.commands(TUTORIAL) if c.startswith(WITHOUT_A_NETWORK)]
    helps: dict[tuple[str, ...], str] = {}
    for words in commands:
        begins = tuple(words[1:3] if words[1] == "auth" else words[1:2])
        if begins not in helps:
            asked = [str(PROGRAMS / "hf"), *begins, "--help"]
            helps[begins] = subprocess.run(asked, capture_output=True, text=True, check=True, timeout=60).stdout
        assert [word for word in words if word.startswith("--") and word not in helps[begins]] == []
    assert set(helps) == {("auth", "login"), ("download",), ("upload",)}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_tutorial(texts: list[str], tokenizer_model: Path, tmp_path: Path) -> None:
    """From raw files to scores and a Hugging Face model; the second cluster's command goes on where the first left."""
    rows = [{"text": text, "meta": {"redpajama_set_name": "RedPajamaC4"}} for text in texts]
    code = {"text": "x = 1", "meta": {"redpajama_set_name": "RedPajamaGithub"}}
    for split, some in (("train", rows[:30]), ("validation", rows[30:])):
        (tmp_path / f"raw/SlimPajama-627B/{split}/chunk1").mkdir(parents=True)
        write_rows(tmp_path / f"raw/SlimPajama-627B/{split}/chunk1/a.jsonl.zst", [*some, code])
    (tmp_path / "raw/starcoderdata/python").mkdir(parents=True)
    write_rows(tmp_path / "raw/starcoderdata/python/a.parquet", [{"content": text} for text in texts[5:]])
    shutil.copy(tokenizer_model, tmp_path / "raw/tokenizer.model")
    _write_task(tmp_path / "tasks")
    run_all(TUTORIAL, tmp_path)
    assert len(ranks.metrics(tmp_path / "runs/tinyllama.jsonl")) == 6
    scores = [json.loads(line) for line in (tmp_path / "runs/scores.jsonl").read_text().splitlines()]
    assert scores[-1]["iteration"] == 6 and set(scores[-1]["scores"]) == {"piqa"}
    for path in ("runs/tinyllama.html", "runs/scores.png", "hf/tinyllama/model.safetensors", "hf/tinyllama/README.md"):
        assert (tmp_path / path).is_file()


def _write_task(directory: Path) -> None:
    """A task of lm-eval with local data, as docs/howto/evaluate.md has it."""
    directory.mkdir()
    page = (shown.REPOSITORY / "docs/howto/evaluate.md").read_text(encoding="utf-8")
    (directory / "piqa.yaml").write_text(re.findall(r"^```yaml\n(.*?)^```", page, flags=re.MULTILINE | re.DOTALL)[0])
    question = {"goal": "To open a door,", "sol1": "turn its handle", "sol2": "sing to it", "label": 0}
    (directory / "piqa.jsonl").write_text(json.dumps(question) + "\n")


@pytest.mark.slow
def test_coming_from_elsewhere(
    texts: list[str], tokenizer_model: Path, reference: sentencepiece.SentencePieceProcessor, tmp_path: Path
) -> None:
    """A pair of another tool, chunks, `.ds` files and weights of torch.save come over, and a run begins from these."""
    shutil.copy(tokenizer_model, tmp_path / "tokenizer.model")
    documents = [[*ids, EOD] for ids in reference.encode(texts, out_type=int)]
    (tmp_path / "data").mkdir()
    with indexed.PairWriter(tmp_path / "data/old_text_document", np.dtype(np.uint16)) as pair:
        pair.add(np.array(flat(documents)), np.array([len(document) for document in documents]))
    for name in ("train_slimpajama_0", "train_slimpajama_1", "train_starcoder_0", "validation_slimpajama_0"):
        write_chunks(tmp_path / "slim_star", name, flat(documents), 512)
    small_tokenizers.make("gpt2", tmp_path)
    (tmp_path / "tokenized").mkdir()
    write_ds(tmp_path / "tokenized/00000_00000_shuffled.ds", [[5, 6, 7], [8, 9]])
    shape = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 8}
    config = LlamaConfig(vocab_size=600, num_key_value_heads=4, max_position_embeddings=128, **shape)
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(tmp_path / "hf/mine")
    torch.save(LlamaForCausalLM(config).state_dict(), tmp_path / "hf/mine/model.pth")
    shutil.copy(tokenizer_model, tmp_path / "hf/mine/tokenizer.model")
    run_all(MIGRATE, tmp_path)
    assert (tmp_path / "runs/mine/iter_0000003/manifest.json").is_file()
    assert indexed.read(tmp_path / "data/slimpajama").documents == 2 * len(documents)


@pytest.mark.parametrize("page", TOY)
def test_links_lead_somewhere(page: str) -> None:
    """Pages and headings, as GitHub names them."""
    source = shown.REPOSITORY / page
    for link in re.findall(r"\]\((?!https)([^)]+)\)", source.read_text(encoding="utf-8")):
        path, _, anchor = link.partition("#")
        text = (source.parent / path if path else source).read_text(encoding="utf-8")
        headings = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
        assert not anchor or anchor in {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}, link


def test_every_name_of_ours_exists() -> None:
    """Flags in the columns `ours` of the tables, and in the list of those that Megatron-LM has too."""
    page = (shown.REPOSITORY / MIGRATE).read_text(encoding="utf-8")
    tables = re.findall(
        r"^\| theirs[^|]*\| ours \| remarks \|\n\|---\|---\|---\|\n((?:\|.*\n)+)", page, flags=re.MULTILINE
    )
    assert len(tables) == 7
    cells = [row.split("|")[2] for table in tables for row in table.splitlines()]
    same = page[page.index("Most flags have their names here") : page.index("What is called otherwise")]
    named = set(re.findall(r"--[a-z0-9_-]+", "\n".join([*cells, same])))
    assert len(named) > 30
    assert named - {flag.name for flag in flags.flags()} == set()
