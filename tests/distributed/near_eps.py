"""Data in which one gradient is of the size of AdamW's eps, and how far its rounding alone moves a training curve.

AdamW divides by sqrt(v) + eps. Where a gradient is near eps, its rounding (some 1e-9) is a large part of the step. One
such element is enough to move a curve, if its token fills whole samples later.
docs/evidence/near-eps.md has the figures.
Neighbours: `reference` trains Hugging Face's model, `test_curves` compares.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import torch
import transformers
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from tests.conftest import VOCABULARY
from tests.distributed.recipe import BATCH, SHOWN
from tests.distributed.reference import MODEL, SEED, Curve, reference_curve, reference_model
from tinyllama_mcore.config.schema import DataConfig
from tinyllama_mcore.data import indexed, receipt
from tinyllama_mcore.sampling.blend import BlendedSamples, open_blend

EPS = 1e-8
"""AdamW's, in the recipe of these tests."""
SEEN_ONCE = 1
"""Iteration, from 0, that holds the token once, at the start of a sample. From the next one on it fills samples."""
FILLED = 2
"""Samples of each later iteration that hold the token alone."""
OTHERS, TOKEN, ELEMENT, LAST = 9, 326, 7, 73
"""Found by trying 2.6 million: with the tokens of rng OTHERS behind TOKEN, and LAST as the sample's last label, the
gradient of ELEMENT of TOKEN's row of the embedding is below eps. `test_curves` holds that it is."""
ORDERS = 4
"""How many orders of summation the rounding is measured over."""


def write_corpus(home: Path, like: str) -> list[str]:
    """`--data-path` of a dataset that has the property; its receipt is that of the dataset `like`, sizes changed.

    Documents are as long as samples: each sample is one document, and the first token of the next its last label.
    """
    length, size = BATCH["seq_length"], BATCH["global_batch_size"]
    documents = np.zeros((200, length), dtype=indexed.token_dtype(VOCABULARY))
    prefix = home / "near_eps"
    with indexed.PairWriter(prefix, documents.dtype) as pair:
        for document in documents:
            pair.add(document, np.array([length], dtype=np.int32))
    made = receipt.read(like)
    assert made is not None
    sizes = {"bin_bytes": indexed.bin_path(prefix).stat().st_size, "idx_bytes": indexed.idx_path(prefix).stat().st_size}
    receipt.write(prefix, dataclasses.replace(made, fingerprint=indexed.read(prefix).fingerprint, **sizes))

    samples = _opened(prefix)
    documents[:] = np.random.default_rng(0).integers(3, TOKEN, documents.shape)
    once, after = _documents_of(samples, SEEN_ONCE * size)
    documents[once] = [TOKEN, *np.random.default_rng(OTHERS).integers(3, 256, length - 1)]
    documents[after, 0] = LAST
    for first in range((SEEN_ONCE + 1) * size, BATCH["train_iters"] * size, size):
        batch = [_documents_of(samples, sample)[0] for sample in range(first, first + size)]
        documents[[document for document in batch if document != after][:FILLED]] = TOKEN
    documents.tofile(indexed.bin_path(prefix))
    return ["1.0", str(prefix)]


def _opened(prefix: Path) -> BlendedSamples:
    made = receipt.read(prefix)
    assert made is not None
    data = DataConfig(blend=((1.0, str(prefix)),))
    vocabulary = made.vocabulary
    samples = open_blend(data, split="train", seq_length=BATCH["seq_length"], seed=SEED, vocabulary=vocabulary)
    assert samples is not None
    samples.prepare(0, BATCH["train_iters"] * BATCH["global_batch_size"])
    return samples


def _documents_of(samples: BlendedSamples, sample: int) -> tuple[int, int]:
    """The document that a sample is, and the one that its last label is of."""
    _, epoch, position = samples.place(sample)
    document, after = samples.stores[0].spans(epoch, position)
    return document.document, after.document


def in_another_order(model: transformers.PreTrainedModel, seed: int) -> torch.Tensor:
    """Put the channels and the feed-forward units of a model into another order; returns that of the channels.

    The function stays as it is; every matrix product and norm adds up in another order. AdamW, which is element by
    element, does the same in either.
    """
    rng = torch.Generator().manual_seed(seed)
    channels = torch.randperm(model.config.hidden_size, generator=rng)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight", "norm.weight")):
                weight.copy_(weight[channels])
            else:
                weight.copy_(weight[:, channels])
        for layer in model.model.layers:
            units = torch.randperm(model.config.intermediate_size, generator=rng)
            for linear in (layer.mlp.gate_proj, layer.mlp.up_proj):
                linear.weight.copy_(linear.weight[units])
            layer.mlp.down_proj.weight.copy_(layer.mlp.down_proj.weight[:, units])
    return channels


def in_fp64(model: transformers.PreTrainedModel) -> None:
    """Make a model compute in fp64 throughout.

    Hugging Face's own norm and eager attention compute in fp32 in a model of any type (transformers 5); torch's do not.
    """
    for name, module in list(model.named_modules()):
        if isinstance(module, LlamaRMSNorm):
            norm = torch.nn.RMSNorm(module.weight.shape, eps=module.variance_epsilon)
            norm.weight = module.weight
            model.set_submodule(name, norm)
    model.set_attn_implementation("sdpa")
    model.double()


def curve_in_order(corpus: list[str], seed: int) -> tuple[Curve, torch.Tensor]:
    """The fp32 curve of the reference with its channels in order `seed`, and the gradient of TOKEN's row [h].

    The gradient is that of iteration SEEN_ONCE, before clipping, in the model's own order.
    """
    model = reference_model(MODEL)
    channels = in_another_order(model, seed)
    seen = {}
    curve = reference_curve(corpus, model=model, on_gradient=lambda i: seen.update({i: _row(model).clone()}), end=SHOWN)
    return curve, seen[SEEN_ONCE][channels.argsort()]


def curve_in_fp64(corpus: list[str], shift: float = 0.0, eps: float = EPS) -> tuple[Curve, torch.Tensor]:
    """The curve in fp64, the element's gradient moved by `shift` once; the row's gradient [h], not moved."""
    model = reference_model(MODEL)
    in_fp64(model)
    seen = {}

    def look(iteration: int) -> None:
        if iteration == SEEN_ONCE:
            seen[iteration] = _row(model).clone()
            _row(model)[ELEMENT] += shift

    return reference_curve(corpus, model=model, on_gradient=look, eps=eps, end=SHOWN), seen[SEEN_ONCE]


def _row(model: transformers.PreTrainedModel) -> torch.Tensor:
    return model.model.embed_tokens.weight.grad[TOKEN]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bounds:
    """What the curve is, and how far the rounding of one gradient moves it."""

    exact: Curve
    """In fp64."""
    moved: Curve
    """The largest difference from `exact`, of the loss and of the gradient norm, by iteration."""
    gradient: float
    """The element's, in fp64, before clipping."""
    rounding: float
    """The most by which fp32 has any gradient of TOKEN's row wrong, over ORDERS orders of summation."""
    orders: tuple[Curve, ...]
    """The fp32 curves of those orders."""


def bounds(corpus: list[str]) -> Bounds:
    """Measure the rounding of the row's gradient, then what a change of that size in the one element does."""
    exact, row = curve_in_fp64(corpus)
    in_orders = [curve_in_order(corpus, seed) for seed in range(ORDERS)]
    rounding = max(float((rounded - row).abs().max()) for _, rounded in in_orders)
    apart = [differences(curve_in_fp64(corpus, shift)[0], exact) for shift in (-rounding, rounding)]
    return Bounds(
        exact=exact,
        moved=[(max(a[0], b[0]), max(a[1], b[1])) for a, b in zip(*apart, strict=True)],
        gradient=float(row[ELEMENT]),
        rounding=rounding,
        orders=tuple(curve for curve, _ in in_orders),
    )


def differences(curve: Curve, exact: Curve) -> Curve:
    """How far a curve is from another, without sign."""
    return [(abs(a - c), abs(b - d)) for (a, b), (c, d) in zip(curve, exact, strict=True)]
