"""The whole job with GPT-2's, Llama-3's and Qwen's kind of tokenizer, by the documented commands."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from tests import small_tokenizers
from tests.distributed import many, ranks
from tests.distributed.conftest import write_json
from tests.distributed.recipe import RECIPE
from tinyllama_mcore.commands import convert_from_hf, merge_to_hf, preprocess_data
from tinyllama_mcore.data import receipt

ROWS = 640
"""Rows of the model: the next multiple of 128 above 601 to 604 ids."""


def made(kind: str, home: Path) -> list[str]:
    """Data of this suite's source; gives `--data-path` and the tokenizer of the run."""
    directory = small_tokenizers.make(kind, home / kind)
    (home / "raw.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in small_tokenizers.texts()))
    argv = ["--input", str(home / "raw.jsonl"), "--output-prefix", str(home / f"{kind}-data"), "--append-eod"]
    assert preprocess_data.main([*argv, "--tokenizer-model", str(directory)]) == 0
    return ["--data-path", str(home / f"{kind}-data_text_document"), "--tokenizer-model", str(directory)]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory where each kind was trained, exported, imported and trained again."""
    home = tmp_path_factory.mktemp("tokenizers")
    batch = {"train_micro_batch_size_per_gpu": "auto", "gradient_clipping": "auto", "bf16": {"enabled": False}}
    config = write_json(home / "ds.json", {**batch, "zero_optimization": {"stage": 1}})
    common = ["--deepspeed_config", config, "--recipe", write_json(home / "recipe.json", RECIPE)]
    data = {kind: made(kind, home) for kind in small_tokenizers.KINDS}

    def run(kind: str, save: str, *more: str) -> many.Run:
        where = ["--save", str(home / save), "--metrics-file", str(home / f"{save}.jsonl")]
        tensor = "2" if kind == "llama3" else "1"
        return save, [*common, *data[kind], *where, "--tensor-model-parallel-size", tensor, *more]

    rounded = ("--make-vocab-size-divisible-by", "128")
    assert many.train([run(kind, kind + "-run", *rounded) for kind in data], home / "first") == {}
    for kind in data:
        hf = str(home / f"{kind}-hf")
        assert merge_to_hf.main(["--load", str(home / f"{kind}-run"), "--output", hf, "--no-verify"]) == 0
        assert convert_from_hf.main(["--input", hf, "--output", str(home / f"{kind}-imported"), "--no-verify"]) == 0
    size = ("--vocab-size", str(ROWS))
    again = [run(kind, kind + "-on", "--load", str(home / f"{kind}-imported"), *size) for kind in data]
    assert many.train(again, home / "second") == {}
    return home


@pytest.mark.parametrize("kind", small_tokenizers.KINDS)
def test_a_model_of_each_kind(kind: str, home: Path) -> None:
    """Its loss falls, AutoTokenizer has the ids of its data, its rows do not depend on the layout, and it goes on."""
    losses = [record["lm_loss"] for record in ranks.metrics(home / f"{kind}-run.jsonl")]
    assert losses[-1] < losses[0]
    library, loaded = small_tokenizers.library(home / kind), AutoTokenizer.from_pretrained(home / f"{kind}-hf")
    for text in small_tokenizers.texts():
        (ids,) = loaded([text], split_special_tokens=True)["input_ids"]
        assert ids == library.encode(text, add_special_tokens=False).ids
    slip = receipt.read(home / f"{kind}-data_text_document")
    assert slip is not None and loaded.eos_token_id == slip.eod
    assert json.loads((home / f"{kind}-hf" / "config.json").read_text())["vocab_size"] == ROWS
    continued = [record["lm_loss"] for record in ranks.metrics(home / f"{kind}-on.jsonl")]
    assert continued[0] < (losses[0] + losses[-1]) / 2
