"""Rules of how a layer is computed: fused, compiled, recorded in a CUDA graph, and by which attention."""

from __future__ import annotations

from tinyllama_mcore.config import engines
from tinyllama_mcore.config.rules.rule import About, Rule
from tinyllama_mcore.config.schema import RunConfig

GPU_KERNELS = ("flash", "cudnn")
"""Values of --attention-backend that only a GPU has."""


def _multiplied(run: RunConfig) -> dict[str, int]:
    """The sizes of a rank's matrices that a product sums over or ends in."""
    model, ranks = run.model, run.layout.tensor_model_parallel_size
    heads, pairs = model.num_attention_heads, 2 * model.num_query_groups
    return {
        "hidden": model.hidden_size,
        "heads": heads * model.head_dim // ranks,
        "heads, keys and values": (heads + pairs) * model.head_dim // ranks,
        "feed-forward": model.ffn_hidden_size // ranks,
    }


KERNEL_RULES = (
    Rule(
        name="fused layers are not compiled",
        about=About.KERNELS,
        holds=lambda run: run.transformer_impl != "fused" or not run.compile,
        message=lambda _: (
            "--transformer-impl fused has its own kernels and nothing to compile; leave --compile out, or use "
            "--transformer-impl local"
        ),
    ),
    Rule(
        name="fused layers recompute all or nothing",
        about=About.KERNELS,
        holds=lambda run: run.transformer_impl != "fused" or run.layout.recompute_granularity != "selective",
        message=lambda _: (
            "--recompute-granularity selective does not apply to --transformer-impl fused, which always recomputes "
            "norms and SwiGLU; use full or none, or --transformer-impl local"
        ),
    ),
    Rule(
        name="a CUDA graph records fused layers of ZeRO-1 whose passes need no NCCL",
        about=About.KERNELS,
        holds=lambda run: not run.cuda_graph or engines.can_be_recorded(run),
        message=lambda run: (
            "--cuda-graph needs fused layers, bf16 with fp32 accumulation, ZeRO 1 (or 2 or 3 on one GPU), no offload, "
            "a plain mean of gradients in fp32 (communication_data_type, prescale_gradients), "
            "tensor parallel 1 (or 2 where GPUs exchange copies), pipeline and context parallel 1, and no "
            "--inter-document-masking; this run has "
            f"{run.transformer_impl} layers and {run.sharding.name} in {run.sharding.precision} "
            f"({run.sharding.source}), {run.layout.ranks_per_sample} GPUs a model, masking "
            f"{'on' if run.data.inter_document_masking else 'off'}: leave --cuda-graph out, and a graph is used where "
            "that is possible"
        ),
    ),
    Rule(
        name="float8 is for fused layers in bf16",
        about=About.KERNELS,
        holds=lambda run: (
            run.float8.recipe is None or (run.transformer_impl == "fused" and run.sharding.precision == "bf16")
        ),
        message=lambda run: (
            f"--fp8-recipe {run.float8.recipe} needs fused layers in bf16, and this run has {run.transformer_impl} "
            f"layers in {run.sharding.precision} ({run.sharding.source}); use --transformer-impl fused and "
            "bf16.enabled true, or leave --fp8-recipe out"
        ),
    ),
    Rule(
        name="float8 multiplies sizes that 16 divides",
        about=About.KERNELS,
        holds=lambda run: run.float8.recipe is None or not any(size % 16 for size in _multiplied(run).values()),
        message=lambda run: (
            f"--fp8-recipe {run.float8.recipe} needs matrix sizes that are multiples of 16, and a rank has "
            f"{', '.join(f'{name} {size:,}' for name, size in _multiplied(run).items())} (tensor parallel "
            f"{run.layout.tensor_model_parallel_size}); take another tensor parallel size, or leave --fp8-recipe out"
        ),
    ),
    Rule(
        name="float8 has a layer that is not kept in bf16",
        about=About.KERNELS,
        holds=lambda run: run.float8.recipe is None or len(run.float8.layers(run.model.num_layers)) > 0,
        message=lambda run: (
            f"--num-layers-at-start-in-bf16 {run.float8.num_layers_at_start_in_bf16} and --num-layers-at-end-in-bf16 "
            f"{run.float8.num_layers_at_end_in_bf16} leave none of {run.model.num_layers} layers for --fp8-recipe "
            f"{run.float8.recipe}; together they must be at most {run.model.num_layers - 1}"
        ),
    ),
    Rule(  # Megatron's linear layers begin a gather in their backward pass and wait later: no graph holds that
        name="compile needs sequence parallel off",
        about=About.KERNELS,
        holds=lambda run: not (run.compile and run.layout.sequence_parallel),
        message=lambda run: (
            "--compile does not work with --sequence-parallel, whose communication in the backward pass does not "
            "compile; leave one of the two out"
        ),
    ),
    Rule(
        name="document masking needs context parallel 1",
        about=About.KERNELS,
        holds=lambda run: not run.data.inter_document_masking or run.layout.context_parallel_size == 1,
        message=lambda run: (
            f"--inter-document-masking does not work with --context-parallel-size "
            f"{run.layout.context_parallel_size}, which splits documents over ranks; use --context-parallel-size 1"
        ),
    ),
    Rule(  # torch makes a mask of queries x keys for it (torch/nn/attention/bias.py `_dispatch`, 2.13)
        name="cudnn attention needs context parallel 1",
        about=About.KERNELS,
        holds=lambda run: run.attention_backend != "cudnn" or run.layout.context_parallel_size == 1,
        message=lambda run: (
            f"--attention-backend cudnn does not work with --context-parallel-size {run.layout.context_parallel_size}: "
            "a rank has fewer queries than keys, for which torch gives cuDNN's kernel a mask of queries x keys; use "
            "auto or flash"
        ),
    ),
    Rule(
        name="cudnn attention adds gradients up in no fixed order",
        about=About.KERNELS,
        holds=lambda run: run.attention_backend != "cudnn" or not run.deterministic_mode,
        message=lambda _: "--attention-backend cudnn has no part in --deterministic-mode; use auto or flash",
    ),
    Rule(
        name="flash and cudnn attention need bf16",
        about=About.KERNELS,
        holds=lambda run: run.attention_backend not in GPU_KERNELS or run.sharding.precision == "bf16",
        message=lambda run: (
            f"--attention-backend {run.attention_backend} computes in bf16 only, and this run is in "
            f"{run.sharding.precision} ({run.sharding.source}: bf16.enabled); use sdpa or auto"
        ),
    ),
)
