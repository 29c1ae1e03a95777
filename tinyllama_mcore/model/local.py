"""`--transformer-impl local`: Megatron's own passes, with our attention, rotation, activation, norms and loss in them.

What is ours is here because Megatron's is slower, keeps more, or is not right under every engine; each class says why.
Neighbours: `gpt` builds the model from `block_spec`; `fused_model` has the default, over the same parameters, and asks
for nothing of this file.
Shapes: s sequence, b micro-batch, h hidden, n query heads, g query groups, d head dim, f feed-forward, v padded
vocabulary, t tokens of a row of documents; a rank holds n/tp, g/tp, f/tp, v/tp and s/cp.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from megatron.core.models.gpt import GPTModel
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel import (
    ColumnParallelLinear,
    RowParallelLinear,
    copy_to_tensor_model_parallel_region,
)
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import TransformerLayer
from torch.autograd.function import once_differentiable

from tinyllama_mcore.config.schema import RunConfig
from tinyllama_mcore.model import attention, context, documents
from tinyllama_mcore.model.norm import Norm
from tinyllama_mcore.model.rope import Rotary


def block_spec(run: RunConfig, layers: int, dtype: torch.dtype, device: torch.device) -> TransformerBlockSubmodules:
    """So many of Megatron's local decoder layers with our modules in their places; `dtype` is that of the passes."""
    spec = get_gpt_layer_local_spec(normalization="RMSNorm")
    spec.module = DecoderLayer
    rotary = Rotary(run.model, dtype, device)
    core = ModuleSpec(module=CausalAttention, params={"backend": run.attention_backend, "rotary": rotary})
    heads = {"q_layernorm": HeadNorm, "k_layernorm": HeadNorm} if run.model.qk_layernorm else {}
    spec.submodules.self_attention.submodules = dataclasses.replace(
        spec.submodules.self_attention.submodules, core_attention=core, **heads
    )
    spec.submodules = dataclasses.replace(spec.submodules, input_layernorm=RMSNorm, pre_mlp_layernorm=RMSNorm)
    return TransformerBlockSubmodules(layer_specs=[spec] * layers, layer_norm=RMSNorm)


class LocalModel(GPTModel):
    """Megatron's forward pass of a pipeline chunk, with a loss that gives padding rows no probability."""

    true_vocab_size: int
    """Rows of the vocabulary that stand for a token; the rest pad it to a multiple of the tensor-parallel size."""

    def forward(
        self,
        tokens: torch.Tensor,
        *,
        labels: torch.Tensor | None = None,
        packed_seq_params: PackedSeqParams | None = None,
    ) -> torch.Tensor:
        """See GPTModel.forward, which asks for positions and does not use them: the core attention has its own."""
        positions = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
        return super().forward(tokens, positions, None, labels=labels, packed_seq_params=packed_seq_params)

    def compute_language_model_loss(self, labels: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """Labels [b, s], logits [s, b, v/tp] -> loss of each token [b, s] in fp32."""
        rank, columns = self.pg_collection.tp.rank(), logits.shape[-1]
        real = max(0, min(columns, self.true_vocab_size - rank * columns))
        if real < columns:
            padding = torch.arange(columns, device=logits.device) >= real
            logits = logits.masked_fill(padding, float("-inf"))
        return super().compute_language_model_loss(labels, logits)


class DecoderLayer(TransformerLayer):
    """Megatron's layer with our activation, called with its hidden states by position, where DeepSpeed's hooks look.

    Megatron calls it only with keywords, and DeepSpeed would never learn that its backward pass is over (0.19.8).
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401  Megatron's own
        """As Megatron builds it."""
        super().__init__(*args, **kwargs)
        self.mlp.activation_func = SwiGLU()
        for linear in (self.self_attention.linear_proj, self.mlp.linear_fc2):
            linear.__class__ = RowLinear  # specs of megatron-core 0.16 and 0.19 hold the second in different places

    def __call__(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401  Megatron's own
        """Hidden states [s, b, h] to the same shape, and Megatron's second output, the context."""
        return super().__call__(hidden_states, *args, **kwargs)


def compile_forward(layer: torch.nn.Module) -> None:
    """Compile only the forward pass of a decoder layer: engines hang their hooks around it.

    Megatron's column-parallel linear layers start an all-reduce in their backward pass and wait for it later, which no
    graph holds; without it they call one that ends before it returns (tensor_parallel/layers.py, 0.16.1 to 0.19.2).
    """
    for linear in layer.modules():
        if isinstance(linear, ColumnParallelLinear):
            linear.allreduce_dgrad = False
    layer.forward = torch.compile(layer.forward)


class RowLinear(RowParallelLinear):
    """Megatron's, with its group named: else the first rank warns of its absence at every call, and it alone.

    torch.compile then cuts that rank's graphs at each warning, and its gradients come in another order than the others'
    (megatron-core 0.16.1 to 0.19.2).
    """

    def _forward_impl(self, *args: Any, tp_group: object, **kwargs: Any) -> torch.Tensor:  # noqa: ANN401  Megatron's own
        return super()._forward_impl(*args, tp_group=self.tp_group, **kwargs)


class RMSNorm(Norm):
    """x / rms(x) * weight over the last dim (Zhang and Sennrich 2019), computed in fp32.

    Megatron's WrappedTorchNorm refuses sequence parallelism (0.16.1, 0.19.2), and Megatron's own all-reduce of norm
    gradients (`finalize_model_grads`) is never run under DeepSpeed. Here that all-reduce is part of autograd.
    """

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **_: object) -> None:
        """See `Norm`."""
        super().__init__(config, hidden_size)
        self.eps = eps
        self.sees_a_part = config.sequence_parallel

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Hidden states [s, b, h], or [s/tp, b, h] under sequence parallelism, to the same shape."""
        weight = self.weight
        if self.sees_a_part:  # each rank saw other rows: sum the weight's gradient over the tensor axis
            weight = copy_to_tensor_model_parallel_region(weight)
        return torch.nn.functional.rms_norm(hidden, (hidden.shape[-1],), weight, self.eps)


class HeadNorm(RMSNorm):
    """The norm of queries or keys [s, b, n/tp, d]: tensor-parallel ranks have other heads, and one weight [d]."""

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **_: object) -> None:
        """As Megatron's attention builds it; `hidden_size` is the width of a head."""
        super().__init__(config, hidden_size, eps)
        self.sees_a_part = True


class CausalAttention(MegatronModule):
    """Causal grouped-query attention behind the signature of Megatron's `core_attention`.

    It takes the place of DotProductAttention, so that neither Apex nor Transformer Engine is needed, and turns queries
    and keys by their positions first: Megatron makes cosines and sines anew for each layer's queries and keys.
    """

    def __init__(
        self,
        config: TransformerConfig,
        layer_number: int,
        backend: str,
        rotary: Rotary,
        pg_collection: ProcessGroupCollection,
        **_: object,
    ) -> None:
        """`backend` and `rotary` come from the spec's params; Megatron's other keywords describe other attention."""
        super().__init__(config=config)
        self.layer_number = layer_number
        self._context = pg_collection.cp
        self._rotary = rotary
        self._attend = attention.kernel(backend)

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        *,
        attn_mask_type: AttnMaskType | None = None,
        packed_seq_params: PackedSeqParams | None = None,
        **_: object,
    ) -> torch.Tensor:
        """Query [s/cp, b, n/tp, d], key and value [s/cp, b, g/tp, d] -> context [s/cp, b, n/tp * d].

        Query and key come as linear_qkv made them, without positions. With `packed_seq_params` (of `documents.packed`)
        the micro-batch is one row of documents, and b is left out of every shape. Causal; takes no mask.
        """
        if attention_mask is not None or attn_mask_type not in (None, AttnMaskType.causal, AttnMaskType.padding_causal):
            raise ValueError("CausalAttention takes no attention mask: every token sees all tokens before it")
        if isinstance(packed_seq_params, documents.Documents):
            cos, sin = self._rotary.angles_of(packed_seq_params.positions)
            query, key = (rotated(x, cos, sin) for x in (query, key))
            return documents.attend(self._attend, query, key, value, packed_seq_params).flatten(1)
        rank, size = self._context.rank(), self._context.size()
        cos, sin = self._rotary.angles(query.shape[0] * size, rank=rank, size=size)
        query, key = (rotated(x, cos, sin) for x in (query, key))
        if size > 1:
            return context.attend(self._attend, query, key, value, self._context).flatten(2)
        return self._attend(query, key, value).flatten(2)


def rotated(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Channels i and i + d / 2 of each head turned by its position's angle i (transformers' `apply_rotary_pos_emb`).

    Args:
        x: heads of any kind [s, b, n, d], or [t, n, d].
        cos: of each position and pair of channels [s or t, d / 2], in the dtype of `x`.
        sin: likewise.
    """
    cos, sin = (table.view(len(x), *(1,) * (x.dim() - 2), -1) for table in (cos, sin))  # for all rows and heads
    if torch.compiler.is_compiling():  # inductor fuses it
        return _turn(x, cos, sin, 1)
    return _Rotation.apply(x, cos, sin)


def _turn(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, direction: int) -> torch.Tensor:
    one, other = x.chunk(2, dim=-1)
    turned = (
        torch.addcmul(one * cos, other, sin, value=-direction),
        torch.addcmul(other * cos, one, sin, value=direction),
    )
    return torch.cat(turned, dim=-1)


class _Rotation(torch.autograd.Function):
    """The gradient is turned back: no more is kept than the table, which is there anyway."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:  # noqa: ANN401
        ctx.save_for_backward(cos, sin)
        return _turn(x, cos, sin, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: torch.Tensor) -> tuple[torch.Tensor, None, None]:  # noqa: ANN401
        cos, sin = ctx.saved_tensors
        return _turn(grad_output, cos, sin, -1), None, None


class SwiGLU(torch.nn.Module):
    """Swish-gated linear unit (Shazeer 2020, arXiv 2002.05202), which keeps for the backward pass only its input.

    Megatron's own (`glu`, mlp.py) adds an offset of zero to `up` and lets autograd keep silu(gate) and that sum: 4 f
    bytes more a token and layer in bf16, 8.1 GB for TinyLlama at 16,384 tokens. Its fused one needs torch.compile.
    """

    def forward(self, gate_up: torch.Tensor) -> torch.Tensor:
        """Gate before up [s, b, 2f/tp] -> [s, b, f/tp]."""
        if torch.compiler.is_compiling():  # inductor fuses it, and chooses itself what to keep
            gate, up = gate_up.chunk(2, dim=-1)
            return torch.nn.functional.silu(gate) * up
        return _SwiGLU.apply(gate_up)


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_up: torch.Tensor) -> torch.Tensor:  # noqa: ANN401  autograd's own
        ctx.save_for_backward(gate_up)
        gate, up = gate_up.chunk(2, dim=-1)
        return torch.nn.functional.silu(gate).mul_(up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_gated: torch.Tensor) -> torch.Tensor:  # noqa: ANN401  autograd's own
        (gate_up,) = ctx.saved_tensors
        gate, up = gate_up.chunk(2, dim=-1)
        grad_gate_up = torch.empty_like(gate_up)
        grad_gate, grad_up = grad_gate_up.chunk(2, dim=-1)
        torch.ops.aten.silu.out(gate, out=grad_up)
        grad_up.mul_(grad_gated)
        torch.mul(grad_gated, up, out=grad_gate)
        torch.ops.aten.silu_backward.grad_input(grad_gate, gate, grad_input=grad_gate)
        return grad_gate_up
