"""Rules of the layout: what the axes of the mesh have to divide, and how the batch is spread over them."""

from __future__ import annotations

import math
from dataclasses import replace

from tinyllama_mcore.config.nearest import divisors, nearest_multiples
from tinyllama_mcore.config.rules.rule import About, Rule
from tinyllama_mcore.config.schema import ModelConfig, RunConfig


def _largest_tensor_size(model: ModelConfig) -> int:
    """What a tensor-parallel size has to divide."""
    return math.gcd(model.num_attention_heads, model.num_query_groups, model.ffn_hidden_size)


def _tensor_rule(field: str, words: str) -> Rule:
    """A size of the model that the tensor-parallel ranks share evenly."""
    return Rule(
        name=f"tensor parallel divides the {words}",
        about=About.LAYOUT,
        holds=lambda run: getattr(run.model, field) % run.layout.tensor_model_parallel_size == 0,
        message=lambda run: (
            f"--tensor-model-parallel-size {run.layout.tensor_model_parallel_size} does not divide the "
            f"{getattr(run.model, field)} {words} of {run.recipe}; "
            f"sizes that fit it: {divisors(_largest_tensor_size(run.model))}"
        ),
    )


def _cuts(run: RunConfig) -> str:
    """The flags that cut a sequence, with their values."""
    layout = run.layout
    tensor = f"--sequence-parallel with --tensor-model-parallel-size {layout.tensor_model_parallel_size}"
    context = f"--context-parallel-size {layout.context_parallel_size} (two chunks a rank)"
    return " and ".join([tensor] * layout.sequence_parallel + [context] * (layout.context_parallel_size > 1))


def _axes(run: RunConfig) -> str:
    """The axes that share one sequence, as the user gave them."""
    layout = run.layout
    sizes = {
        "--tensor-model-parallel-size": layout.tensor_model_parallel_size,
        "--pipeline-model-parallel-size": layout.pipeline_model_parallel_size,
        "--context-parallel-size": layout.context_parallel_size,
    }
    given = {flag: size for flag, size in sizes.items() if size > 1} or {"--tensor-model-parallel-size": 1}
    return " x ".join(f"{flag} {size}" for flag, size in given.items())


def _batch_unit(run: RunConfig) -> int:
    """Sequences that all data-parallel ranks take in one micro-batch: what the global batch is a multiple of."""
    return run.batch.micro_batch_size * run.layout.data_parallel_size


def _split_message(run: RunConfig) -> str:
    given, layout, model = run.layout.pipeline_num_layers or (), run.layout, run.model
    even = ",".join(map(str, replace(layout, pipeline_num_layers=None).layers_by_chunk(model.num_layers)))
    return (
        f"--pipeline-num-layers {','.join(map(str, given))} must be {layout.model_chunks} numbers, one for each of "
        f"{layout.pipeline_model_parallel_size} pipeline ranks x {layout.virtual_pipeline_model_parallel_size} chunks, "
        f"each at least 1 and {model.num_layers} together, the layers of {run.recipe}; for example {even}"
    )


def _split_fits(run: RunConfig) -> bool:
    given = run.layout.pipeline_num_layers
    return given is None or (
        len(given) == run.layout.model_chunks and min(given) >= 1 and sum(given) == run.model.num_layers
    )


PIPELINE_RULES = (
    Rule(
        name="model chunks are at most the layers",
        about=About.LAYOUT,
        holds=lambda run: run.layout.model_chunks <= run.model.num_layers,
        message=lambda run: (
            f"--pipeline-model-parallel-size {run.layout.pipeline_model_parallel_size} x "
            f"--virtual-pipeline-model-parallel-size {run.layout.virtual_pipeline_model_parallel_size} are "
            f"{run.layout.model_chunks} model chunks, and {run.recipe} has {run.model.num_layers} layers; "
            f"at most {run.model.num_layers} chunks"
        ),
    ),
    Rule(
        name="virtual pipeline needs pipeline parallel",
        about=About.LAYOUT,
        holds=lambda run: (
            run.layout.virtual_pipeline_model_parallel_size == 1 or run.layout.pipeline_model_parallel_size > 1
        ),
        message=lambda run: (
            f"--virtual-pipeline-model-parallel-size {run.layout.virtual_pipeline_model_parallel_size} needs "
            "--pipeline-model-parallel-size 2 or more, got 1; leave it out"
        ),
    ),
    Rule(
        name="the pipeline split adds up",
        about=About.LAYOUT,
        holds=_split_fits,
        message=_split_message,
    ),
    Rule(  # Megatron's interleaved schedule runs micro-batches in groups of the pipeline size
        name="the interleaved schedule takes whole groups of micro-batches",
        about=About.LAYOUT,
        holds=lambda run: (
            run.layout.virtual_pipeline_model_parallel_size == 1
            or run.num_micro_batches % run.layout.pipeline_model_parallel_size == 0
        ),
        message=lambda run: (
            f"--virtual-pipeline-model-parallel-size {run.layout.virtual_pipeline_model_parallel_size} needs a "
            f"multiple of --pipeline-model-parallel-size {run.layout.pipeline_model_parallel_size} micro-batches an "
            f"iteration, got {run.num_micro_batches}; nearest --global-batch-size: "
            + nearest_multiples(run.batch.global_batch_size, _batch_unit(run) * run.layout.pipeline_model_parallel_size)
        ),
    ),
)

LAYOUT_RULES = (
    _tensor_rule("num_attention_heads", "attention heads"),
    _tensor_rule("num_query_groups", "query groups"),
    _tensor_rule("ffn_hidden_size", "columns of the feed-forward"),
    Rule(
        name="world = tensor x pipeline x context x data parallel",
        about=About.LAYOUT,
        holds=lambda run: run.layout.world_size % run.layout.ranks_per_sample == 0,
        message=lambda run: (
            f"{_axes(run)} needs a multiple of {run.layout.ranks_per_sample} processes, and the job has "
            f"{run.layout.world_size}; nearest: {nearest_multiples(run.layout.world_size, run.layout.ranks_per_sample)}"
        ),
    ),
    Rule(
        name="global batch = micro batch x accumulation x data parallel",
        about=About.LAYOUT,
        holds=lambda run: run.batch.global_batch_size % _batch_unit(run) == 0,
        message=lambda run: (
            f"--global-batch-size {run.batch.global_batch_size} is not a multiple of {_batch_unit(run)} = "
            f"--micro-batch-size {run.batch.micro_batch_size} x data parallel {run.layout.data_parallel_size}; "
            f"nearest: {nearest_multiples(run.batch.global_batch_size, _batch_unit(run))} "
            f"(in {run.sharding.source}: train_batch_size)"
        ),
    ),
    Rule(
        name="gradient_accumulation_steps is what the batch makes it",
        about=About.LAYOUT,
        holds=lambda run: (
            run.sharding.deepspeed.get("gradient_accumulation_steps", run.num_micro_batches) == run.num_micro_batches
        ),
        message=lambda run: (
            f"{run.sharding.source}: gradient_accumulation_steps is "
            f"{run.sharding.deepspeed['gradient_accumulation_steps']}, but global batch "
            f"{run.batch.global_batch_size} / (micro batch {run.batch.micro_batch_size} x data parallel "
            f"{run.layout.data_parallel_size}) is {run.num_micro_batches}; "
            f'write {run.num_micro_batches} or "auto", or change train_batch_size'
        ),
    ),
    Rule(
        name="sequence parallel needs tensor parallel",
        about=About.LAYOUT,
        holds=lambda run: not run.layout.sequence_parallel or run.layout.tensor_model_parallel_size > 1,
        message=lambda run: (
            "--sequence-parallel needs --tensor-model-parallel-size 2 or more, got "
            f"{run.layout.tensor_model_parallel_size}; leave it out"
        ),
    ),
    Rule(
        name="context and sequence parallel divide the sequence",
        about=About.LAYOUT,
        holds=lambda run: run.batch.seq_length % run.layout.sequence_unit == 0,
        message=lambda run: (
            f"--seq-length {run.batch.seq_length} is not a multiple of {run.layout.sequence_unit}, which {_cuts(run)} "
            f"needs; nearest: {nearest_multiples(run.batch.seq_length, run.layout.sequence_unit)}"
        ),
    ),
    *PIPELINE_RULES,
)
