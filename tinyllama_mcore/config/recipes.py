"""The recipes: every number of a run that the paper or the original repository fixes, each cited.

A recipe is data. `load` also reads one from a JSON file with the same three blocks (model, optimizer, batch)
and the precision; see docs/reference/recipe.md. Sources: "paper" is arXiv 2401.02385; "repo" is jzhang38/TinyLlama at
bf12224.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinyllama_mcore.config import records, strict_json
from tinyllama_mcore.config.errors import ConfigError
from tinyllama_mcore.config.paths import ITERATION, MANIFEST, finished_iterations
from tinyllama_mcore.config.schema import BatchConfig, ModelConfig, OptimizerConfig


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What nobody has to give: the run takes these where the command line and the JSON are silent."""

    model: ModelConfig
    optimizer: OptimizerConfig
    batch: BatchConfig
    precision: str
    """Precision of the forward and backward passes: "fp32" or "bf16"."""


RECIPES: dict[str, Recipe] = {
    "tinyllama-1.1b": Recipe(
        model=ModelConfig(
            num_layers=22,  # paper, section 2.2 ("22 layers" in the repo's config; Table 1 leaves it out)
            hidden_size=2048,  # paper, Table 1
            ffn_hidden_size=5632,  # paper, Table 1
            num_attention_heads=32,  # paper, section 2.2 (Table 1 prints 16; the released weights have 32)
            num_query_groups=4,  # paper, section 2.2
            vocab_size=32000,  # paper, Table 1: the Llama tokenizer
            max_position_embeddings=2048,  # paper, Table 1
            norm_epsilon=1e-5,  # repo, lit_gpt/config.py
        ),
        optimizer=OptimizerConfig(
            lr=4e-4,  # paper, section 2.4
            min_lr=4e-5,  # paper, section 2.4 (the released run held 4e-4 until 503 B tokens: footnote 4)
            lr_warmup_iters=2000,  # paper, section 2.4
            adam_beta1=0.9,  # paper, section 2.4
            adam_beta2=0.95,  # paper, section 2.4
            adam_eps=1e-8,  # repo: torch.optim.AdamW's default
            weight_decay=0.1,  # paper, section 2.4
            weight_decay_on="all",  # repo, pretrain/tinyllama.py: model.parameters() in one group
            clip_grad=1.0,  # paper, section 2.4
        ),
        batch=BatchConfig(
            seq_length=2048,  # paper, Table 1
            micro_batch_size=8,  # repo, pretrain/tinyllama.py
            global_batch_size=1024,  # paper, section 2.4: 2M tokens (the repo's 512 is per node of 8 GPUs)
            train_iters=1_430_512,  # repo, max_step = 715,256 x 2: 3.0 T tokens
        ),
        precision="bf16",  # repo, pretrain/tinyllama.py: "bf16-mixed"
    ),
    "tinyllama-120m": Recipe(
        model=ModelConfig(  # repo, lit_gpt/config.py, "tiny_LLaMA_120M"
            num_layers=12,
            hidden_size=768,
            ffn_hidden_size=2048,
            num_attention_heads=12,
            num_query_groups=1,
            vocab_size=32000,
            max_position_embeddings=2048,
        ),
        optimizer=OptimizerConfig(lr=6e-4, min_lr=6e-5, lr_warmup_iters=2000),  # ours: the usual for this size
        batch=BatchConfig(seq_length=2048, micro_batch_size=8, global_batch_size=256, train_iters=20_000),  # ours
        precision="bf16",
    ),
    "tinyllama-debug": Recipe(  # ours: the 1.1B model's shape in small, for a laptop; trains in a minute on two cores
        model=ModelConfig(
            num_layers=4,
            hidden_size=128,
            ffn_hidden_size=352,
            num_attention_heads=8,
            num_query_groups=4,
            vocab_size=None,
            max_position_embeddings=256,
        ),
        optimizer=OptimizerConfig(lr=4e-3, min_lr=4e-4, lr_warmup_iters=10),
        batch=BatchConfig(seq_length=128, micro_batch_size=4, global_batch_size=16, train_iters=100),
        precision="fp32",
    ),
}


def load(name_or_path: str) -> Recipe:
    """The recipe of that name, or the one that a JSON file of that path spells (docs/reference/recipe.md shows one).

    Raises:
        ConfigError: no such recipe (with the one it resembles) or file, an unknown or missing key, a wrong type.
    """
    if name_or_path in RECIPES:
        return RECIPES[name_or_path]
    if name_or_path.endswith(".json"):
        return records.from_plain(Recipe, strict_json.read(name_or_path), name_or_path)
    hint = strict_json.did_you_mean(name_or_path, RECIPES)
    raise ConfigError(f"--recipe {name_or_path}: no such recipe{hint} (a file of your own ends in .json)")


def of_checkpoint(directory: str, iteration: int | None = None) -> tuple[str, Recipe, Path] | None:
    """The recipe that a checkpoint was trained with, as its command and JSON changed it: name, recipe and manifest.

    Args:
        directory: where a run was saved.
        iteration: of the checkpoint; None: the newest with a sound manifest.

    Returns:
        None where there is none. Damaged manifests are skipped here, and reported when the checkpoint is opened.
    """
    for each in reversed(finished_iterations(directory)):
        if iteration not in (None, each):
            continue
        path = Path(directory, ITERATION.format(each), MANIFEST)
        try:
            run = _sound(path)["run"]
            kept = {key: run[key] for key in ("model", "optimizer", "batch")}
            recipe = records.from_plain(Recipe, {**kept, "precision": run["sharding"]["precision"]}, str(path))
            return str(run["recipe"]), recipe, path
        except (OSError, ValueError, KeyError, TypeError, RecursionError):  # a ConfigError is a ValueError
            continue
    return None


def _sound(manifest: Path) -> dict[str, Any]:
    """What a manifest says. ValueError where its own checksum (`checkpoint.manifest`) does not fit."""
    record = json.loads(manifest.read_bytes())
    if record.pop("checksum") != hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest():
        raise ValueError(manifest)
    return record


def nearest(model: ModelConfig) -> tuple[str, Recipe]:
    """The recipe whose model is nearest in size to one that brings no recipe: its name, and what to train it with."""

    def size(of: ModelConfig) -> float:
        return math.log(of.num_layers * of.hidden_size**2)

    return min(RECIPES.items(), key=lambda item: abs(size(item[1].model) - size(model)))
