"""What a run is, as frozen dataclasses: the nouns that every other room takes.

Neighbours: `data_config` and `loop_config` have two parts of it; `recipes` fills them with the paper's numbers,
`deepspeed` and `cli` with what the user gave, `rules` says which combinations are legal. Field names are Megatron's.
Units stand under each field, or in the words of its flag, which `flags` shows in `--help` with the field's default.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from tinyllama_mcore.config.batch_sizes import BatchSizes, Ramp
from tinyllama_mcore.config.data_config import DataConfig
from tinyllama_mcore.config.errors import ConfigError
from tinyllama_mcore.config.loop_config import CheckpointConfig, LoopConfig


@dataclass(frozen=True, kw_only=True)
class RopeScaling:
    """RoPE for contexts longer than a model was first trained on, in the words of Hugging Face's `rope_scaling`."""

    rope_type: str
    """"linear" (every position divided by `factor`) or "llama3" (only the slow frequencies are)."""
    factor: float
    """How much longer the context becomes."""
    low_freq_factor: float = 1.0
    """"llama3": wavelengths above original_max_position_embeddings / low_freq_factor are divided in full."""
    high_freq_factor: float = 4.0
    """"llama3": wavelengths below original_max_position_embeddings / high_freq_factor stay as they are."""
    original_max_position_embeddings: int = 2048
    """"llama3": tokens of the context before it was stretched."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The architecture (paper, section 2.2 and Table 1)."""

    num_layers: int
    """Decoder layers."""
    hidden_size: int
    """Width of the residual stream, h."""
    ffn_hidden_size: int
    """Width of the SwiGLU feed-forward, f."""
    num_attention_heads: int
    """Query heads, n."""
    num_query_groups: int
    """Key-value heads, g (grouped-query attention)."""
    vocab_size: Annotated[int | None, "rows of the embedding and of the head, one for each id of the tokenizer or more"]
    """v. None: as many as the tokenizer that made the data has ids."""
    max_position_embeddings: int
    """Longest sequence in tokens that positions are meant for."""
    norm_epsilon: float = 1e-5
    """RMSNorm epsilon."""
    rotary_base: float = 10000.0
    """RoPE base frequency."""
    rope_scaling: RopeScaling | None = None
    """Stretched positions for contexts beyond the original one; None: RoPE as it is."""
    init_method: str = "tinyllama"
    """A row of `tinyllama_mcore.model.initialize.METHODS`: which standard deviation each weight starts with."""
    kv_channels: int | None = None
    """Width of one attention head; None: hidden_size / num_attention_heads."""
    untie_embeddings_and_output_weights: bool = True
    """Whether the head has a matrix of its own; False: it multiplies by the embedding (Press and Wolf 2017)."""
    add_qkv_bias: bool = False
    """Biases of queries, keys and values, as in Qwen-2."""
    qk_layernorm: bool = False
    """RMSNorm of each query and key before its rotation, as in Qwen-3."""

    @property
    def head_dim(self) -> int:
        """Width of one attention head, d."""
        return self.kv_channels or self.hidden_size // self.num_attention_heads


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW and its learning-rate schedule (paper, section 2.4)."""

    lr: Annotated[float, "largest learning rate, reached at the end of warm-up"]
    min_lr: Annotated[float, "learning rate at the end of the decay, and after it; not used by constant"]
    lr_warmup_iters: Annotated[int, "iterations of linear warm-up from zero"]
    lr_decay_style: Annotated[
        str, "learning rate after warm-up, in Megatron-LM's words; WSD is constant, then decays at the end"
    ] = "cosine"
    lr_decay_iters: Annotated[int | None, "iteration at which the decay ends"] = None
    lr_wsd_decay_style: Annotated[str, "shape of the decay at the end of WSD"] = "exponential"
    lr_wsd_decay_iters: Annotated[int | None, "iterations of the decay at the end of WSD"] = None
    lr_index: str = "iteration"
    """What the schedule counts: "iteration" or "micro_iteration" (the released run's habit)."""
    adam_beta1: float = 0.9
    adam_beta2: float = 0.95
    adam_eps: float = 1e-8
    weight_decay: float = 0.1
    """Decoupled decay, times the learning rate at each update."""
    weight_decay_on: str = "all"
    """"all" parameters (the paper's code) or "matrices" (as Megatron does: not norms and biases)."""
    clip_grad: float = 1.0
    """Largest global L2 norm of the gradient; 0 turns clipping off."""

    def decay_end(self, train_iters: int) -> int:
        """Iteration at which the decay ends, in a run of `train_iters`."""
        return train_iters if self.lr_decay_iters is None else self.lr_decay_iters

    def decay_begin(self, train_iters: int) -> int:
        """Iteration up to which the rate stays at its largest after warm-up: the end of warm-up, but for WSD."""
        if self.lr_decay_style != "WSD":
            return self.lr_warmup_iters
        return self.decay_end(train_iters) - (self.lr_wsd_decay_iters or 0)


@dataclass(frozen=True, kw_only=True)
class BatchConfig:
    """How many tokens an iteration sees, and how many iterations there are."""

    seq_length: Annotated[int, "tokens in one sample"]
    micro_batch_size: Annotated[int, "sequences in one forward pass of one data-parallel rank"]
    global_batch_size: Annotated[int, "sequences per optimizer update, over the whole job"]
    train_iters: Annotated[int, "iterations in the whole run"]
    rampup_batch_size: Annotated[
        Ramp | None, "sequences of the first iteration, grown to --global-batch-size over SAMPLES"
    ] = None

    @property
    def sizes(self) -> BatchSizes:
        """Sequences of each iteration, and what they add up to."""
        return BatchSizes(full=self.global_batch_size, ramp=self.rampup_batch_size)

    @property
    def tokens_per_iteration(self) -> int:
        """Tokens per optimizer update, over the whole job; fewer during a ramp."""
        return self.global_batch_size * self.seq_length

    @property
    def train_tokens(self) -> int:
        """Tokens in the whole run: the other view of `train_iters`."""
        return self.sizes.samples_before(self.train_iters) * self.seq_length

    def num_micro_batches(self, data_parallel_size: int) -> int:
        """Passes of one of so many data-parallel ranks in an iteration of the full size; 0 ranks count as 1."""
        return self.global_batch_size // (self.micro_batch_size * max(1, data_parallel_size))


@dataclass(frozen=True, kw_only=True)
class LayoutConfig:
    """How the model and the batch are spread over the ranks. None of it may change what a run means."""

    world_size: int
    """Processes in the job."""
    tensor_model_parallel_size: Annotated[int, "ranks that each matrix is split over"] = 1
    pipeline_model_parallel_size: Annotated[
        int, "ranks that the layers are split over, each rank taking consecutive ones"
    ] = 1
    virtual_pipeline_model_parallel_size: Annotated[
        int, "model chunks on each pipeline rank; more than 1 selects the interleaved schedule"
    ] = 1
    pipeline_num_layers: Annotated[
        tuple[int, ...] | None, "decoder layers of each model chunk, in the order of the model"
    ] = None
    context_parallel_size: Annotated[int, "ranks that each sequence is split over"] = 1
    sequence_parallel: Annotated[
        bool, "split activations outside the tensor-parallel layers along the sequence too"
    ] = False
    recompute_granularity: Annotated[
        str, "what the backward pass recomputes: none, the core attention (selective), or whole layers (full)"
    ] = "none"

    @property
    def ranks_per_sample(self) -> int:
        """Ranks that work on one sequence together: tensor x pipeline x context parallel."""
        return self.tensor_model_parallel_size * self.pipeline_model_parallel_size * self.context_parallel_size

    @property
    def data_parallel_size(self) -> int:
        """Ranks that see different samples: world_size / (tensor x pipeline x context parallel)."""
        return self.world_size // self.ranks_per_sample

    @property
    def shard_size(self) -> int:
        """Ranks that hold the same weights, and share what is sharded: data x context parallel."""
        return self.data_parallel_size * self.context_parallel_size

    @property
    def model_chunks(self) -> int:
        """Pieces that the decoder layers are cut into."""
        return self.pipeline_model_parallel_size * self.virtual_pipeline_model_parallel_size

    @property
    def sequence_unit(self) -> int:
        """Tokens that a sequence is a multiple of.

        A context-parallel rank takes two chunks of it, one from each end; sequence parallelism cuts what a rank has
        again.
        """
        context = self.context_parallel_size
        tensor = self.tensor_model_parallel_size if self.sequence_parallel else 1
        return math.lcm(2 * context if context > 1 else 1, context * tensor)

    def layers_by_chunk(self, num_layers: int) -> tuple[int, ...]:
        """Decoder layers of each model chunk, in the order of the model.

        Where they do not divide, the middle chunks take one more: the first also has the embedding, the last the head.
        """
        if self.pipeline_num_layers is not None:
            return self.pipeline_num_layers
        each, rest = divmod(num_layers, self.model_chunks)
        from_the_middle = sorted(range(self.model_chunks), key=lambda i: abs(2 * i - self.model_chunks + 1))
        heavier = set(from_the_middle[:rest])
        return tuple(each + (chunk in heavier) for chunk in range(self.model_chunks))


@dataclass(frozen=True, kw_only=True)
class FsdpConfig:
    """The `fsdp` block of the JSON: torch's `fully_shard` in place of DeepSpeed."""

    sharding_strategy: str
    """"full_shard" (weights, gradients, optimizer), "shard_grad_op" (weights stay whole from the first forward pass of
    an iteration on) or "hybrid_shard" (full_shard within groups of ranks, copies between the groups)."""
    hybrid_shard_size: int | None = None
    """Ranks of one group of "hybrid_shard", e.g. those of a node."""
    cpu_offload: bool = False
    """Weights, gradients and optimizer state live in host memory between uses."""
    sync_each_batch: bool = False
    """Reduce gradients in every micro-batch, and not once an iteration: 4 bytes a weight less, and slower."""


@dataclass(frozen=True, kw_only=True)
class ShardingConfig:
    """What the DeepSpeed JSON says, "auto" filled in."""

    source: str
    """Path of the JSON file, for messages."""
    zero_stage: int
    """DeepSpeed ZeRO stage: 0 shards nothing, 1 optimizer state, 2 also gradients, 3 also parameters. 0 with FSDP."""
    precision: str
    """Precision of the forward and backward passes: "fp32" or "bf16". Master weights and moments are fp32 in both."""
    fsdp: FsdpConfig | None = None
    """FSDP in place of DeepSpeed."""
    grad_accum_dtype: str = "fp32"
    """Dtype of the gradient accumulated over micro-batches: "fp32" or "bf16"."""
    offload_optimizer: bool = False
    """Optimizer state lives in host memory."""
    offload_param: bool = False
    """Parameters live in host memory between uses (ZeRO-3)."""
    deepspeed: Mapping[str, Any] = field(default_factory=dict)
    """The JSON without its monitors, every "auto" filled, in DeepSpeed's own words."""

    @property
    def name(self) -> str:
        """What shards the run, in a few words."""
        return f"ZeRO {self.zero_stage}" if self.fsdp is None else f"FSDP {self.fsdp.sharding_strategy}"


@dataclass(frozen=True, kw_only=True)
class Float8Config:
    """Matrix products of the decoder layers in float8, in a run whose precision is bf16 otherwise."""

    recipe: Annotated[
        str | None,
        "compute matrix products of decoder layers in float8, by torchao's recipe of this name: one scale per row, "
        "weight gradients in bf16",
    ] = None
    num_layers_at_start_in_bf16: Annotated[int, "first decoder layers that stay in bf16"] = 0
    num_layers_at_end_in_bf16: Annotated[int, "last decoder layers that stay in bf16"] = 0

    def layers(self, num_layers: int) -> range:
        """The layers in float8, numbered from 0."""
        if self.recipe is None:
            return range(0)
        return range(self.num_layers_at_start_in_bf16, num_layers - self.num_layers_at_end_in_bf16)


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """All of a run. Printed once at the start and stored with every checkpoint."""

    recipe: Annotated[str, "recipe name or JSON file: has the values that neither a flag nor the DeepSpeed JSON gives"]
    model: ModelConfig
    optimizer: OptimizerConfig
    batch: BatchConfig
    layout: LayoutConfig
    sharding: ShardingConfig
    data: DataConfig
    checkpoint: CheckpointConfig
    loop: LoopConfig
    seed: Annotated[int, "seed of the initial weights and of the order of samples"] = 1234
    make_vocab_size_divisible_by: Annotated[
        int, "round the model's rows up to a multiple of N, the same for every --tensor-model-parallel-size"
    ] = 1
    attention_backend: Annotated[str, "kernel of the core attention"] = "auto"
    swiglu_backend: Annotated[str, "SwiGLU of fused layers: within the products around it, or separate"] = "auto"
    transformer_impl: Annotated[
        str, "how decoder layers are computed: fused kernels in one autograd function a layer, or Megatron's local ones"
    ] = "fused"
    compile: Annotated[bool, "torch.compile each decoder layer"] = False
    float8: Float8Config = Float8Config()
    cuda_graph: Annotated[
        bool | None,
        "replay a micro-batch's passes as a CUDA graph: fused layers under ZeRO-1 in bf16, whose passes need no NCCL",
    ] = None
    tp_comm_overlap: Annotated[
        bool | None, "sums of two tensor-parallel GPUs by copies beside products, in place of NCCL's kernels"
    ] = None
    deterministic_mode: Annotated[
        bool, "the same bits each time a run is made on such GPUs: kernels that add up in one order, and slower"
    ] = False
    notes: tuple[str, ...] = ()
    """What the program chose by itself, in sentences to print."""

    @property
    def num_micro_batches(self) -> int:
        """Forward and backward passes of one data-parallel rank in one iteration (gradient accumulation steps)."""
        return self.batch.num_micro_batches(self.layout.data_parallel_size)

    @property
    def padded_vocab_size(self) -> int:
        """Rows of the embedding: vocab_size rounded up to a multiple of the tensor-parallel size."""
        tp = self.layout.tensor_model_parallel_size
        if self.model.vocab_size is None:
            raise ConfigError("vocab_size is not known yet: it comes from the tokenizer that made the data")
        return -(-self.model.vocab_size // tp) * tp
