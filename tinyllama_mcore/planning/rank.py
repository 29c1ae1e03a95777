"""What one pipeline rank holds and has in flight: layers, elements, micro-batches that wait for their backward pass.

Tensor, context and data ranks beside it hold the same. Neighbours: `config.parameters` lists what a layer has;
`activations`, `memory` and `throughput` count with these.
"""

from __future__ import annotations

from collections import Counter

from tinyllama_mcore.config.parameters import MATMUL_KINDS, layer_parameters
from tinyllama_mcore.config.schema import LayoutConfig, RunConfig


def float8_share(run: RunConfig) -> float:
    """Of the decoder layers, those whose products are in float8."""
    return len(run.float8.layers(run.model.num_layers)) / run.model.num_layers


def layer_matrices(run: RunConfig) -> int:
    """Elements of one decoder layer's matrices on one tensor-parallel rank."""
    return _of_a_layer(run, MATMUL_KINDS)


def layer_elements(run: RunConfig) -> int:
    """Elements of one decoder layer on one tensor-parallel rank, its norms and biases included."""
    return _of_a_layer(run, MATMUL_KINDS | {"norm", "bias"})


def _of_a_layer(run: RunConfig, kinds: frozenset[str]) -> int:
    tensor = run.layout.tensor_model_parallel_size
    counted = (p for p in layer_parameters(run.model, 0) if p.kind in kinds)
    return sum(p.numel // (1 if p.tp_dim is None else tensor) for p in counted)


def vocabulary_elements(run: RunConfig) -> int:
    """Elements of the embedding, or of the head, on one tensor-parallel rank."""
    return run.padded_vocab_size * run.model.hidden_size // run.layout.tensor_model_parallel_size


def layers(run: RunConfig, pipeline_rank: int) -> tuple[int, ...]:
    """Decoder layers of each model chunk of a rank: chunk c of rank r is piece c x pipeline size + r of the model."""
    pieces = run.layout.layers_by_chunk(run.model.num_layers)
    return pieces[pipeline_rank :: run.layout.pipeline_model_parallel_size]


def is_last(layout: LayoutConfig, pipeline_rank: int) -> bool:
    """Whether the rank has the final norm, the head and the loss."""
    return pipeline_rank == layout.pipeline_model_parallel_size - 1


def root_elements(run: RunConfig, pipeline_rank: int) -> int:
    """Elements outside the decoder layers: the embedding of the first rank, the final norm and head of the last.

    A head that is tied to the embedding is the first rank's.
    """
    head = vocabulary_elements(run) if run.model.untie_embeddings_and_output_weights else 0
    first = vocabulary_elements(run) if pipeline_rank == 0 else 0
    last = head + run.model.hidden_size if is_last(run.layout, pipeline_rank) else 0
    return first + last


def borrows(run: RunConfig, pipeline_rank: int) -> bool:
    """Whether the rank's head is the embedding of another (`model.tied`)."""
    tied = not run.model.untie_embeddings_and_output_weights
    return tied and pipeline_rank > 0 and is_last(run.layout, pipeline_rank)


def elements(run: RunConfig, pipeline_rank: int) -> int:
    """Parameters that the rank computes with."""
    return sum(layers(run, pipeline_rank)) * layer_elements(run) + root_elements(run, pipeline_rank)


def in_flight(run: RunConfig, pipeline_rank: int) -> tuple[int, ...]:
    """Micro-batches of each model chunk whose activations a rank holds at its fullest.

    That is one more than the warm-up of Megatron's schedules.py: pipeline size - rank - 1 micro-batches under 1F1B;
    2 x (pipeline size - rank - 1) + (chunks - 1) x pipeline size passes, in groups of the pipeline size, interleaved.
    """
    p = run.layout.pipeline_model_parallel_size
    chunks, behind = run.layout.virtual_pipeline_model_parallel_size, p - pipeline_rank - 1
    if chunks == 1:
        return (min(behind + 1, run.num_micro_batches),)
    passes = min(2 * behind + (chunks - 1) * p + 1, chunks * run.num_micro_batches)
    by_chunk = Counter(number % (p * chunks) // p for number in range(passes))
    return tuple(by_chunk[chunk] for chunk in range(chunks))
