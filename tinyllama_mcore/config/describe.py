"""A run in words: the arithmetic that is printed once at the start, so that nobody has to work it out again.

Neighbours: `schema` holds the numbers; `records` spells them as JSON, which is what a checkpoint keeps.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from tinyllama_mcore.config.data_config import Blend
from tinyllama_mcore.config.schema import LayoutConfig, ModelConfig, RunConfig


def lines(
    run: RunConfig, *, parameters: int | None = None, dataset_epochs: Mapping[str, tuple[float, int]] | None = None
) -> list[str]:
    """The run's arithmetic, one subject a line.

    Args:
        run: the run.
        parameters: elements of the whole model, where they have been counted.
        dataset_epochs: of each prefix, how often the run reads its training part, and the tokens of one epoch.
    """
    told = [
        f"recipe       {run.recipe}, seed {run.seed}",
        _model_line(run, parameters),
        f"world        {run.layout.world_size} = {_axes(run.layout)}, sequence parallel "
        f"{_on(run.layout.sequence_parallel)}, recompute {run.layout.recompute_granularity}, attention "
        f"{run.attention_backend}, layers {layers(run)}",
        f"batch        {run.batch.global_batch_size:,} sequences = micro batch {run.batch.micro_batch_size} x "
        f"accumulation {run.num_micro_batches} x data parallel {run.layout.data_parallel_size}; x "
        f"{run.batch.seq_length:,} tokens = {run.batch.tokens_per_iteration:,} tokens an iteration",
        *_ramp_lines(run),
        f"length       {run.batch.train_iters:,} iterations = {run.batch.train_tokens:,} tokens",
        _optimizer_line(run),
        _sharding_line(run),
    ]
    for weight, prefix in run.data.blend:
        told.append(f"data         {weight:.4f} of samples from {prefix}{_epochs((dataset_epochs or {}).get(prefix))}")
    told += _later_lines(run)
    return told + [f"note         {note}" for note in run.notes]


def shares(blend: Blend) -> str:
    """A blend's datasets with their shares."""
    return ", ".join(f"{weight:.4f} from {prefix}" for weight, prefix in blend)


def _later_lines(run: RunConfig) -> Iterator[str]:
    """The blends that follow the first."""
    for later in run.data.later_blends:
        after = later.after(run.batch.sizes)
        yield f"data         after iteration {after:,} (sample {later.first_sample:,}): {shares(later.blend)}"


def layers(run: RunConfig) -> str:
    """What computes the decoder layers, in a word or two."""
    return f"{run.transformer_impl}{' compiled' * run.compile}{_float8(run)}"


def _float8(run: RunConfig) -> str:
    narrow, count = run.float8.layers(run.model.num_layers), run.model.num_layers
    if not narrow:
        return ""
    which = "" if len(narrow) == count else f" in layers {narrow[0] + 1} to {narrow[-1] + 1} of {count}"
    return f", float8 {run.float8.recipe}{which}"


def _ramp_lines(run: RunConfig) -> Iterator[str]:
    """How the batch grows, where it does."""
    if run.batch.rampup_batch_size is None:
        return
    start, increment, samples = run.batch.rampup_batch_size
    smaller = sum(count for count, size in run.batch.sizes.stretches() if size < run.batch.global_batch_size)
    yield (
        f"ramp         from {start:,} sequences by {increment:,} at a time over {samples:,} samples; iteration "
        f"{smaller + 1:,} is the first of {run.batch.global_batch_size:,}"
    )


def _axes(layout: LayoutConfig) -> str:
    """The product rule of the mesh; axes of size 1 go without saying, but for the tensor and data axes."""
    virtual = layout.virtual_pipeline_model_parallel_size
    axes = (
        ("tensor", layout.tensor_model_parallel_size, ""),
        ("pipeline", layout.pipeline_model_parallel_size, f" ({virtual} chunks a rank)" if virtual > 1 else ""),
        ("context", layout.context_parallel_size, ""),
        ("data", layout.data_parallel_size, ""),
    )
    return " x ".join(
        f"{name} parallel {size}{more}" for name, size, more in axes if size > 1 or name in ("tensor", "data")
    )


def _model_line(run: RunConfig, parameters: int | None) -> str:
    model = run.model
    vocabulary = "of the tokenizer" if model.vocab_size is None else f"{model.vocab_size:,}"
    count = "" if parameters is None else f"; {parameters:,} parameters"
    return (
        f"model        {model.num_layers} layers, hidden {model.hidden_size}, feed-forward {model.ffn_hidden_size}, "
        f"{model.num_attention_heads} heads in {model.num_query_groups} groups, vocabulary {vocabulary}{count}"
        f"{_features(model)}"
    )


def _features(model: ModelConfig) -> str:
    """What a model has that TinyLlama has not."""
    told = {
        f"heads {model.head_dim} wide": model.kv_channels is not None,
        "head tied to the embedding": not model.untie_embeddings_and_output_weights,
        "biases of queries, keys and values": model.add_qkv_bias,
        "norms of queries and keys": model.qk_layernorm,
        f"{model.rope_scaling.rope_type} positions" if model.rope_scaling else "": model.rope_scaling is not None,
    }
    return "".join(f", {words}" for words, has in told.items() if has)


def _optimizer_line(run: RunConfig) -> str:
    o = run.optimizer
    return (
        f"optimizer    AdamW, lr {o.lr:g} after {o.lr_warmup_iters:,} iterations of warm-up, {_decay(run)} (by "
        f"{o.lr_index}), betas {o.adam_beta1:g} {o.adam_beta2:g}, eps {o.adam_eps:g}, weight decay {o.weight_decay:g} "
        f"on {o.weight_decay_on}, clip {o.clip_grad:g}"
    )


def _decay(run: RunConfig) -> str:
    """What the rate does after warm-up."""
    o, train_iters = run.optimizer, run.batch.train_iters
    if o.lr_decay_style == "constant":
        return "then constant"
    falls = f"to {o.min_lr:g} at {o.decay_end(train_iters):,}"
    if o.lr_decay_style == "WSD":
        return f"constant up to {o.decay_begin(train_iters):,}, then {o.lr_wsd_decay_style} {falls}"
    return f"{o.lr_decay_style} {falls}"


def _sharding_line(run: RunConfig) -> str:
    sharding = run.sharding
    offloaded = [name for name in ("optimizer", "param") if getattr(sharding, f"offload_{name}")]
    if sharding.fsdp is not None and sharding.fsdp.cpu_offload:
        offloaded = ["optimizer", "param"]
    offload = f", {' and '.join(offloaded)} offloaded" if offloaded else ""
    return (
        f"sharding     {sharding.name}{offload}, {sharding.precision}, gradients accumulated in "
        f"{sharding.grad_accum_dtype}, master weights and moments in fp32 ({sharding.source})"
    )


def _epochs(known: tuple[float, int] | None) -> str:
    """How often the run reads a dataset."""
    return f": {known[0]:.2f} epochs of {known[1]:,} tokens" if known else ""


def _on(switch: bool) -> str:
    return "on" if switch else "off"
