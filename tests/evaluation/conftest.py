"""A small Llama that knows four answers by heart, checkpoints of it, and tasks whose scores are known by hand.

Each task asks four questions and takes a wrong answer to the last one for right: a model that knows all four scores
three quarters. The text is trained as runs train it, with no BOS and an EOS behind each document.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import sentencepiece
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tinyllama_mcore.evaluation.paper import TABLES
from tinyllama_mcore.hf.importing import import_hf

ANSWERS = {"sky": "blue", "grass": "green", "coal": "black", "snow": "white"}
RIGHT = 0.75
"""Of every task below, by hand."""


def prompt(question: str) -> str:
    """As the model has seen it, and as tasks ask."""
    return f"Q: {question}\nA:"


def rows() -> Iterator[dict[str, object]]:
    """Questions as the tasks' files hold them; the last one takes the first answer for right."""
    choices = list(ANSWERS.values())
    for number, question in enumerate(ANSWERS):
        label = 0 if number == 3 else number
        yield {"question": prompt(question), "choices": choices, "label": label, "answer": choices[label]}


def learned(tokenizer_model: Path, directory: Path) -> Path:
    """A Llama that continues each prompt with its answer, saved in `directory` with its tokenizer."""
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer_model))
    texts = [[*pieces.encode(f"{prompt(q)} {a}\n"), pieces.eos_id()] for q, a in ANSWERS.items()]
    longest = max(map(len, texts))
    ids = torch.tensor([text + [0] * (longest - len(text)) for text in texts])
    labels = torch.tensor([text + [-100] * (longest - len(text)) for text in texts])
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=pieces.vocab_size(),
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=128,
            rms_norm_eps=1e-5,
        )
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(60):
        model(ids, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(directory)
    (directory / "tokenizer.model").write_bytes(tokenizer_model.read_bytes())
    return directory


@pytest.fixture(scope="session")
def run(corpus_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with one checkpoint of the model, with the suite's tokenizer."""
    home = tmp_path_factory.mktemp("learned")
    import_hf(learned(corpus_tokenizer, home / "llama"), home / "run", verify=False)
    return home / "run"


@pytest.fixture(scope="session")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Task files for --include-path: Table 2's names, a task that generates, one for text, one that runs code."""
    home = tmp_path_factory.mktemp("tasks")
    data = home / "questions.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows()))
    common = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}, "cache_dir": str(home / "cache")},
        "test_split": "test",
        "doc_to_text": "{{question}}",
        "metadata": {"version": 1.0},
    }
    means = {"aggregation": "mean", "higher_is_better": True}
    choice = {
        **common,
        "output_type": "multiple_choice",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "label",
        "metric_list": [{"metric": "acc", **means}, {"metric": "acc_norm", **means}],
    }
    writes = {
        **common,
        "output_type": "generate_until",
        "doc_to_target": "answer",
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 12, "do_sample": False},
        "metric_list": [{"metric": "exact_match", **means}],
    }
    files: dict[str, dict[str, object]] = {
        **{column.task: choice for column in TABLES["table2"].columns},
        "writes": writes,
        "bbh_fewshot": {**writes, "fewshot_split": "test"},
        "runs_code": {**writes, "unsafe_code": True},
        "text": {
            **common,
            "output_type": "loglikelihood_rolling",
            "doc_to_text": "",
            "doc_to_target": "{{question}} {{answer}}",
            "metric_list": [{"metric": "bits_per_byte"}],
        },
    }
    for name, content in files.items():
        (home / f"{name}.yaml").write_text(json.dumps({"task": name, **content}))  # JSON is YAML
    both = {
        "group": "both",
        "task": ["piqa", "boolq"],
        "aggregate_metric_list": [{"metric": "acc", "aggregation": "mean"}],
    }
    (home / "both.yaml").write_text(json.dumps(both))
    (home / "tagged.yaml").write_text(json.dumps({"task": "tagged", "tag": "a_tag", **choice}))
    return home
