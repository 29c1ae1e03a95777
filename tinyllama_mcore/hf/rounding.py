"""How far rounding by itself moves a model's logits: the yardstick of the comparisons in `parity`.

Why: two right programs add in another order, and what that does to a logit depends on the model: on its depth and on
the size of its weights. So the same model is computed a second time in another precision, and the difference is what
rounding does to it. Neighbour: `parity` allows a multiple of it. Shapes: b samples, s sequence, v vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:  # transformers takes seconds to import
    from transformers import PreTrainedModel


@contextmanager
def computing_in(model: PreTrainedModel, dtype: torch.dtype) -> Iterator[None]:
    """The body computes `model` in `dtype`, from fp32 weights that `dtype` holds exactly, so none is changed.

    Weights are converted one layer at a time. transformers' norms compute in fp32 whatever the precision.
    """
    parts: list[torch.nn.Module] = [model.model.embed_tokens, *model.model.layers, model.model.norm, model.lm_head]
    hooks = [part.register_forward_pre_hook(lambda module, _: module.to(dtype) and None) for part in parts]
    hooks += [part.register_forward_hook(lambda module, *_: module.float() and None) for part in parts]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def logits_in(model: PreTrainedModel, tokens: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Logits [b, s, v] for tokens [b, s], computed in `dtype`; fp64 on the CPU."""
    with computing_in(model, dtype):
        return model(tokens.to(model.device)).logits.double().cpu()


def of_fp32(model: PreTrainedModel, tokens: torch.Tensor, logits: torch.Tensor) -> float:
    """What fp32 rounding does to the logits [b, s, v] of tokens [b, s]: the largest distance from fp64's.

    At least half a unit in the last place of the largest logit. The first sample stands for all.
    """
    apart = (logits[:1] - logits_in(model, tokens[:1], torch.float64)).abs().max().item()
    return max(apart, torch.finfo(torch.float32).eps / 2 * logits.abs().max().item())
