"""Predicted tokens per second of a layout: products over a share of the peak, the rest by bytes over bandwidths.

What matters is that a faster layout is predicted faster; docs/evidence/planning.md holds the predictions beside
measurements. Neighbours: `gpus` has the data sheets, `activations` and `rank` the sizes.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from tinyllama_mcore.config import engines, exchange
from tinyllama_mcore.config.schema import FsdpConfig, RunConfig
from tinyllama_mcore.planning import activations, links, rank
from tinyllama_mcore.planning.activations import FP32
from tinyllama_mcore.planning.gpus import Gpu

# Fitted to what the 1.1B model gave at 2048 tokens on one, two and four H100s and H200s (docs/evidence/planning.md),
# but for HOST_BYTES_PER_S. The host's are those of virtual machines; a GPU waits less for a faster host.
MATMUL_SHARE = {"local": 0.57, "fused": 0.69}
"""Share of the peak that matrix products reach in a run, by `RunConfig.transformer_impl`."""
FLOAT8_TIME = 0.49
"""Time of a product in float8, as a share of the same in bf16."""
FLOAT8_TRAFFIC = 8
"""Bytes an element of a weight that are read and written to have it in float8, by rows and by columns: once an update
where weights keep their place, else in every micro-batch."""
ATTENTION_SHARE = 0.32
"""Share of the peak that causal attention reaches: cuDNN's passes took 3.0 ms a layer at micro batch 16."""
TRAFFIC = {False: 7.3, True: 3.7}
"""Local layers, without and with --compile: times that what is saved for the backward pass crosses the GPU's memory
in all."""
KERNEL_SHARE = 0.94
"""Share of the memory's bandwidth that the kernels of fused layers reach."""
HOST_LAYER = {"local": 4.8e-3, "fused": 2.2e-3}
"""Host seconds of one layer and micro-batch, forward and backward: Python, and the launch of some hundred kernels, of
fused layers some thirty. Where a CUDA graph is replayed the host is not waited for."""
HOST_COLLECTIVE = 0.21e-3
"""Host seconds of each collective within a layer."""
COPY_SHARE = 0.83
"""Share of NVLink's data sheet that a copy between two GPUs reaches: 375 GB/s."""
EXCHANGED_PARTS = 4
"""`model.fused` sends a product in so many parts, each while the next is computed."""
COLLECTIVES = {("local", False): 4, ("local", True): 10, ("fused", False): 4, ("fused", True): 12}
"""Within a layer, by implementation and sequence parallelism; fused, with the gradients of its two norms."""
COMPILED_HOST = 0.49
"""Share of these two with --compile, where a layer is one graph."""
HOST_ENGINE = {"zero3": 5.3e-3, "fsdp": 3.0e-3}
"""Host seconds of gathering and releasing a layer, compiled or not; none where FSDP keeps both whole."""
HOST_CONTEXT = 3.5e-3
"""Host seconds of cutting and joining sequences, a layer and micro-batch."""
OVERLAP = 3.5
"""Host and GPU work beside each other: together they take the norm of this order of their times, a soft maximum."""
HOST_BYTES_PER_S = 25e9
"""Bandwidth of a GPU's share of PCIe, for offload: an estimate."""
HOST_UPDATE_BYTES_PER_S = {"zero": 15e9, "fsdp": 6.4e9}
"""Bandwidth of an offloaded AdamW, 8 threads a GPU: DeepSpeed's own kernel, and torch's."""

ADAMW_TRAFFIC = 40
"""Bytes an element that an update reads and writes: gradient, master weight, moments, norm, clearing."""
PRODUCT_TRAFFIC, ACCUMULATION_TRAFFIC, BUCKET_TRAFFIC = 12, 16, 33
"""Bytes an element that a micro-batch reads and writes: weights forward and backward, and the fp32 gradient, where the
product adds to it; the same with a gradient in bf16 before; and what ZeRO-2 adds with its buckets (fitted)."""
_ATTENTION_FLOPS = 7
"""x s h of a token and layer: two products forward, five backward, each over half the matrix (FlashAttention-2)."""
_FORWARD = {"matmul": 1 / 3, "attention": 2 / 7, "memory": 1 / 3}
"""Share of the time of both passes that the forward pass takes."""


@dataclass(frozen=True, kw_only=True)
class Seconds:
    """One iteration of the slowest pipeline rank, by what it is spent on."""

    matmul: float
    attention: float
    memory: float
    """Norms, SwiGLU, RoPE, loss: what the GPU's memory is the limit of."""
    recompute: float
    """A part of the forward pass a second time."""
    launch: float
    """Waiting for the host."""
    tensor: float
    """Communication of tensor and sequence parallelism: not overlapped."""
    context: float
    """Keys and values of other context ranks: not overlapped."""
    bubble: float
    """Waiting for other pipeline ranks, and sending to them."""
    data: float
    """What gradients and weights are waited for among the ranks that share them."""
    update: float
    """AdamW."""

    @property
    def total(self) -> float:
        """All of it."""
        return sum(getattr(self, field.name) for field in fields(self))


def tokens_per_second(run: RunConfig, gpu: Gpu) -> float:
    """Per GPU, as `tokens_per_s_per_gpu` of the metrics file."""
    return run.batch.tokens_per_iteration / iteration(run, gpu).total / run.layout.world_size


def iteration(run: RunConfig, gpu: Gpu) -> Seconds:
    """The time of one iteration."""
    p, chunks = run.layout.pipeline_model_parallel_size, run.layout.virtual_pipeline_model_parallel_size
    slowest = max(range(p), key=lambda r: sum(_micro_batch(run, gpu, r).values()))
    once, m = _micro_batch(run, gpu, slowest), run.num_micro_batches
    busy = {name: m * seconds for name, seconds in once.items()}
    moved = 2 * chunks * m * activations.hidden_states(run) + _loan(run)
    sent = moved / links.pipeline(run.layout, gpu) if p > 1 else 0
    idle = (p - 1) / chunks * sum(once.values())  # bubble of (p - 1) / (v m): Narayanan et al. 2021, section 2.2
    shared = max(_shared(run, gpu, r) for r in range(p))
    return Seconds(**busy, bubble=idle + sent, data=shared, update=max(_update(run, gpu, r) for r in range(p)))


def _loan(run: RunConfig) -> float:
    """Bytes that a tied embedding is sent to the last pipeline rank in, and its gradient back (`model.tied`)."""
    tied = not run.model.untie_embeddings_and_output_weights
    return (activations.element_size(run) + FP32) * rank.vocabulary_elements(run) if tied else 0


def _micro_batch(run: RunConfig, gpu: Gpu, pipeline_rank: int) -> dict[str, float]:
    """Seconds of one micro-batch on one rank, forward and backward."""
    tokens, layers = activations.tokens(run), sum(rank.layers(run, pipeline_rank))
    peak = gpu.bf16_flops if run.sharding.precision == "bf16" else gpu.fp32_flops
    last = rank.is_last(run.layout, pipeline_rank)
    matrices = layers * rank.layer_matrices(run)
    narrow = rank.float8_share(run) * matrices
    products: float = matrices + (rank.vocabulary_elements(run) if last else 0)
    products -= (1 - FLOAT8_TIME) * 2 / 3 * narrow  # weight gradients, a third of a layer's products, stay in bf16
    width = activations.heads(run)[0]
    moved = _crossing(run, layers, last=last) + _weight_traffic(run) * rank.elements(run, pipeline_rank)
    spent = {
        "matmul": 6 * tokens * products / (MATMUL_SHARE[run.transformer_impl] * peak),
        "attention": _ATTENTION_FLOPS * tokens * run.batch.seq_length * width * layers / (ATTENTION_SHARE * peak),
        "memory": (moved + _cast_traffic(run) * narrow) / gpu.hbm,
    }
    again = {
        "none": 0.0,
        "selective": _FORWARD["attention"] * spent["attention"],
        "full": sum(_FORWARD[name] * seconds for name, seconds in spent.items()) - _saved_again(run, layers, peak),
    }[run.layout.recompute_granularity]
    spent |= {"recompute": again, "tensor": _tensor(run, gpu, layers), "context": _context(run, gpu, layers)}
    on_gpu = sum(spent.values())
    on_host = 0.0 if engines.replays_a_graph(run) else layers * _host(run) / gpu.host
    return {**spent, "launch": (on_gpu**OVERLAP + on_host**OVERLAP) ** (1 / OVERLAP) - on_gpu}


def _saved_again(run: RunConfig, layers: int, peak: float) -> float:
    """Seconds of a full recomputation that fused layers do without: their last product, which no gradient needs."""
    if run.transformer_impl == "local":
        return 0.0
    down = run.model.hidden_size * run.model.ffn_hidden_size / run.layout.tensor_model_parallel_size
    return 2 * activations.tokens(run) * layers * down / (MATMUL_SHARE["fused"] * peak)


def _cast_traffic(run: RunConfig) -> float:
    """Bytes an element that a micro-batch reads and writes to have weights in float8."""
    return FLOAT8_TRAFFIC / (run.num_micro_batches if engines.has_flat_gradients(run) else 1)


def _weight_traffic(run: RunConfig) -> float:
    """Bytes an element that a micro-batch reads and writes of weights and gradients."""
    product = PRODUCT_TRAFFIC if engines.adds_in_the_product(run) else ACCUMULATION_TRAFFIC
    return product + (BUCKET_TRAFFIC if engines.name(run) == "zero2" else 0)


def _crossing(run: RunConfig, layers: int, *, last: bool) -> float:
    """Bytes of activations that cross the GPU's memory in one micro-batch, matrix products and attention aside."""
    if run.transformer_impl == "local":
        saved = layers * sum(activations.working_set(run).values()) + (activations.logits(run) if last else 0)
        return TRAFFIC[run.compile] * saved
    tp, (query, key) = run.layout.tensor_model_parallel_size, activations.heads(run)
    # forward and backward: SwiGLU reads 2 f and writes f, reads 3 f and writes 3 f; RoPE reads and writes all heads
    inside = 9 * run.model.ffn_hidden_size // tp + 4 * (query + 2 * key)
    ends = 3 * (run.padded_vocab_size // tp) if last else 0  # the loss reads the logits, then reads and writes them
    # each of two norms reads or writes [s, b, h] four times forward and five backward
    moved: float = activations.tokens(run) * activations.element_size(run) * (layers * inside + ends)
    moved += rank.float8_share(run) * layers * _cast(run)
    return (moved + layers * 18 * activations.hidden_states(run)) / KERNEL_SHARE


def _cast(run: RunConfig) -> float:
    """Bytes by which a layer in float8 moves more activations than one in bf16."""
    model, (query, key) = run.model, activations.heads(run)
    alone = 2 * model.hidden_size + 2 * query + 2 * key  # three gradients and the context: 2 bytes read, 1 written
    beside = model.ffn_hidden_size // run.layout.tensor_model_parallel_size - 2 * model.hidden_size
    return activations.tokens(run) * (3 * alone + beside)


def _host(run: RunConfig) -> float:
    """Seconds of the host for one layer and micro-batch."""
    layout, impl = run.layout, run.transformer_impl
    collectives = COLLECTIVES[impl, layout.sequence_parallel] if layout.tensor_model_parallel_size > 1 else 0
    seconds = HOST_LAYER[impl] + collectives * HOST_COLLECTIVE
    if layout.context_parallel_size > 1:
        seconds += HOST_CONTEXT
    elif run.compile:
        seconds *= COMPILED_HOST
    if not (engines.fsdp_keeps_weights(run) and engines.fsdp_keeps_gradients(run)):
        seconds += HOST_ENGINE.get(engines.name(run), 0)
    return seconds * (4 / 3 if layout.recompute_granularity == "full" else 1)  # as if backward were two forward passes


def _tensor(run: RunConfig, gpu: Gpu, layers: int) -> float:
    """Per layer: four all-reduces of [s, b, h]; under sequence parallelism six gathers and four reduce-scatters.

    Two GPUs that exchange copy instead, and wait for what no product hides (parallel/exchange.py).

    Two of the six gather inputs of linear_qkv and linear_fc1 again in the backward pass (tensor_parallel/layers.py, and
    model/fused.py).
    """
    whole = activations.tokens(run) * run.model.hidden_size * activations.element_size(run)
    if exchange.fits(run):  # of the forward pass's two copies the last parts, and four more additions
        copied = 2 / EXCHANGED_PARTS * whole / (COPY_SHARE * gpu.nvlink)
        return layers * (copied + 4 * whole / (KERNEL_SHARE * gpu.hbm))
    if run.layout.sequence_parallel:
        return layers * 10 * links.gather(whole, links.tensor(run.layout, gpu))
    return layers * 4 * links.all_reduce(whole, links.tensor(run.layout, gpu))


def _context(run: RunConfig, gpu: Gpu, layers: int) -> float:
    """Per layer: keys and values gathered, and in the backward pass their gradients scattered (model/context.py)."""
    cp, m = run.layout.context_parallel_size, run.model
    keys = m.num_query_groups * m.head_dim // run.layout.tensor_model_parallel_size
    whole = 2 * activations.tokens(run) * cp * keys * activations.element_size(run)
    return layers * 2 * links.gather(whole, links.context(run.layout, gpu))


def _shared(run: RunConfig, gpu: Gpu, pipeline_rank: int) -> float:
    """Communication of gradients and weights in one iteration, seconds; to run beside work was not seen to help."""
    held, size = rank.elements(run, pipeline_rank), activations.element_size(run)
    link = links.shards(run.layout, gpu, run.layout.shard_size)
    weights, gradients = links.gather(size * held, link), activations.reduced_size(run) * held
    if run.sharding.fsdp is not None:
        return _shared_by_fsdp(run.sharding.fsdp, run, gpu, held)
    m, offload = run.num_micro_batches, 0.0
    if run.sharding.offload_optimizer:
        offload = (2 * m + 1) * size * held / run.layout.shard_size / HOST_BYTES_PER_S
    stage = engines.stage(run)
    if stage <= 1:  # gradients once an iteration, then weights
        return links.all_reduce(gradients, link) + (weights if stage else 0) + offload
    if stage == 2:
        return m * links.gather(gradients, link) + weights + offload
    return m * (2 * weights + links.gather(gradients, link)) + offload


def _shared_by_fsdp(fsdp: FsdpConfig, run: RunConfig, gpu: Gpu, held: int) -> float:
    """Weights gathered in bf16 once an iteration or twice a micro-batch, gradients scattered in fp32 once or each time.

    Between the groups of hybrid sharding the fp32 gradients are reduced as often as they are scattered.
    """
    size, group = activations.element_size(run), engines.fsdp_group(run)
    link, m = links.shards(run.layout, gpu, group), run.num_micro_batches
    gathers = 1 if engines.fsdp_keeps_weights(run) else 2 * m
    scatters = 1 if engines.fsdp_keeps_gradients(run) else m
    moved = gathers * links.gather(size * held, link) + scatters * links.gather(FP32 * held, link)
    if group < run.layout.shard_size:
        copies = links.copies(run.layout, gpu, group)
        moved += scatters * links.all_reduce(FP32 * held / group, copies)
    return moved + (2 * FP32 * held / group / HOST_BYTES_PER_S if fsdp.cpu_offload else 0)


def _update(run: RunConfig, gpu: Gpu, pipeline_rank: int) -> float:
    """AdamW over what this rank owns, at the speed of the memory that holds it."""
    held, fsdp = rank.elements(run, pipeline_rank), run.sharding.fsdp
    if fsdp is not None:
        own = held / engines.fsdp_group(run)
        return ADAMW_TRAFFIC * own / (HOST_UPDATE_BYTES_PER_S["fsdp"] if fsdp.cpu_offload else gpu.hbm)
    own = held / (run.layout.shard_size if run.sharding.zero_stage else 1)
    return ADAMW_TRAFFIC * own / (HOST_UPDATE_BYTES_PER_S["zero"] if run.sharding.offload_optimizer else gpu.hbm)
