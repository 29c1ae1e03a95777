"""The recipes: every number of a run that a paper or a repository fixes, each cited.

A recipe is data. `load` also reads one from a JSON file with the same three blocks (model, optimizer, batch)
and the precision; see docs/reference/recipe.md. Sources: "paper" is arXiv 2401.02385; "repo" is jzhang38/TinyLlama at
bf12224; "config.json" is that of the released model on Hugging Face; "smollm" is huggingface/smollm,
pre-training/smollm2/config_smollm2_*.yaml. Where nobody published how a model was trained, the numbers are
tinyllama-1.1b's, and biases and norms are not decayed, as Megatron does it: "ours".
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tinyllama_mcore.config import records, strict_json
from tinyllama_mcore.config.errors import ConfigError
from tinyllama_mcore.config.paths import ITERATION, MANIFEST, finished_checkpoints
from tinyllama_mcore.config.schema import BatchConfig, ModelConfig, OptimizerConfig, RopeScaling


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What nobody has to give: the run takes these where the command line and the JSON are silent."""

    model: ModelConfig
    optimizer: OptimizerConfig
    batch: BatchConfig
    precision: str
    """Precision of the forward and backward passes: "fp32" or "bf16"."""


def _smollm2(*, decay: int) -> OptimizerConfig:
    """As smollm has it for both sizes, but for the iterations of the decay at the end."""
    return OptimizerConfig(
        lr=3e-3,
        min_lr=0.0,
        lr_warmup_iters=2000,
        lr_decay_style="WSD",
        lr_wsd_decay_style="linear",
        lr_wsd_decay_iters=decay,
        adam_beta1=0.9,
        adam_beta2=0.95,
        adam_eps=1e-8,
        weight_decay=0.01,
        weight_decay_on="all",
        clip_grad=1.0,
    )


_PAPER = Recipe(
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
)
_OPTIMIZER = replace(_PAPER.optimizer, weight_decay_on="matrices")
_BATCH = replace(_PAPER.batch, micro_batch_size=4)  # logits are four times as wide

RECIPES: dict[str, Recipe] = {
    "tinyllama-1.1b": _PAPER,
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
    "llama-3.2-1b": Recipe(
        model=ModelConfig(  # config.json of meta-llama/Llama-3.2-1B
            num_layers=16,
            hidden_size=2048,
            ffn_hidden_size=8192,
            num_attention_heads=32,
            num_query_groups=8,
            vocab_size=128256,
            max_position_embeddings=131072,
            norm_epsilon=1e-5,
            rotary_base=500_000.0,
            rope_scaling=RopeScaling(
                rope_type="llama3",
                factor=32.0,
                low_freq_factor=1.0,
                high_freq_factor=4.0,
                original_max_position_embeddings=8192,
            ),
            init_method="megatron",  # config.json, initializer_range 0.02
            untie_embeddings_and_output_weights=False,
        ),
        optimizer=_OPTIMIZER,  # ours: Meta published none (the model was pruned and distilled from larger ones)
        batch=_BATCH,  # ours
        precision="bf16",  # config.json, torch_dtype
    ),
    "qwen2.5-0.5b": Recipe(
        model=ModelConfig(  # config.json of Qwen/Qwen2.5-0.5B
            num_layers=24,
            hidden_size=896,
            ffn_hidden_size=4864,
            num_attention_heads=14,
            num_query_groups=2,
            vocab_size=151936,
            max_position_embeddings=32768,
            norm_epsilon=1e-6,
            rotary_base=1_000_000.0,
            init_method="megatron",  # config.json, initializer_range 0.02
            untie_embeddings_and_output_weights=False,
            add_qkv_bias=True,
        ),
        optimizer=_OPTIMIZER,  # ours: arXiv 2412.15115 gives none
        batch=_BATCH,  # ours
        precision="bf16",  # config.json, torch_dtype
    ),
    "qwen3-0.6b": Recipe(
        model=ModelConfig(  # config.json of Qwen/Qwen3-0.6B
            num_layers=28,
            hidden_size=1024,
            ffn_hidden_size=3072,
            num_attention_heads=16,
            num_query_groups=8,
            vocab_size=151936,
            max_position_embeddings=40960,
            norm_epsilon=1e-6,
            rotary_base=1_000_000.0,
            init_method="megatron",  # config.json, initializer_range 0.02
            kv_channels=128,
            untie_embeddings_and_output_weights=False,
            qk_layernorm=True,
        ),
        optimizer=_OPTIMIZER,  # ours: arXiv 2505.09388 gives none
        batch=_BATCH,  # ours
        precision="bf16",  # config.json, torch_dtype
    ),
    "smollm2-135m": Recipe(
        model=ModelConfig(  # config.json of HuggingFaceTB/SmolLM2-135M; smollm began at base 10,000, 2048 positions
            num_layers=30,
            hidden_size=576,
            ffn_hidden_size=1536,
            num_attention_heads=9,
            num_query_groups=3,
            vocab_size=49152,
            max_position_embeddings=8192,
            norm_epsilon=1e-5,
            rotary_base=100_000.0,
            init_method="megatron",  # ours; smollm has a standard deviation of 1 / sqrt(hidden_size)
            untie_embeddings_and_output_weights=False,
        ),
        optimizer=_smollm2(decay=400_000),
        batch=BatchConfig(  # smollm: 64 ranks x 8 sequences
            seq_length=2048, micro_batch_size=8, global_batch_size=512, train_iters=2_000_000
        ),
        precision="bf16",  # smollm
    ),
    "smollm2-360m": Recipe(
        model=ModelConfig(  # config.json of HuggingFaceTB/SmolLM2-360M; smollm began as for 135m
            num_layers=32,
            hidden_size=960,
            ffn_hidden_size=2560,
            num_attention_heads=15,
            num_query_groups=5,
            vocab_size=49152,
            max_position_embeddings=8192,
            norm_epsilon=1e-5,
            rotary_base=100_000.0,
            init_method="megatron",  # ours, as for 135m
            untie_embeddings_and_output_weights=False,
        ),
        optimizer=_smollm2(decay=520_000),
        batch=BatchConfig(  # smollm: 128 ranks x 6 sequences
            seq_length=2048, micro_batch_size=6, global_batch_size=768, train_iters=2_600_000
        ),
        precision="bf16",  # smollm
    ),
}


def load(name_or_path: str) -> Recipe:
    """The recipe of that name, or the one that a JSON file of that path spells (docs/reference/recipe.md shows one).

    Raises:
        ConfigError: no such recipe (with the one it resembles) or file, an unknown or missing key, a wrong type, a size
            below 1.
    """
    if name_or_path in RECIPES:
        return RECIPES[name_or_path]
    if name_or_path.endswith(".json"):
        recipe = records.from_plain(Recipe, strict_json.read(name_or_path), name_or_path)
        if problem := too_small(recipe.model, recipe.batch, name_or_path):
            raise ConfigError(problem)
        return recipe
    hint = strict_json.did_you_mean(name_or_path, RECIPES)
    raise ConfigError(f"--recipe {name_or_path}: no such recipe{hint} (a file of your own ends in .json)")


def too_small(model: ModelConfig, batch: BatchConfig, recipe: str) -> str | None:
    """Which size, of every whole number of a model and a batch, is below 1: the smallest one; None where none is."""
    sizes = {name: value for name, value in (vars(model) | vars(batch)).items() if type(value) is int}
    name, least = min(sizes.items(), key=lambda item: item[1])
    return None if least >= 1 else f"{name} is {least} in recipe {recipe}; it must be at least 1"


def of_checkpoint(directory: str, iteration: int | None = None) -> tuple[str, Recipe, Path] | None:
    """The recipe that a checkpoint was trained with, as its command and JSON changed it: name, recipe and manifest.

    Args:
        directory: where a run was saved.
        iteration: of the checkpoint; None: the newest with a sound manifest.

    Returns:
        None where there is none. Damaged manifests are skipped here, and reported when the checkpoint is opened.
    """
    for found in reversed(finished_checkpoints(directory)):
        if iteration not in (None, found):
            continue
        path = Path(directory) / ITERATION.format(found) / MANIFEST
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
