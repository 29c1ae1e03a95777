"""Documents that are kept apart: no token sees another document, whatever that one holds."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from tinyllama_mcore.config import recipes
from tinyllama_mcore.sampling.loader import document_starts

END = 2


def test_documents_begin_after_each_end_and_at_each_row() -> None:
    """Read row after row; the last number is where they all end."""
    tokens = torch.tensor([[5, 6, END, 7, END, 8], [9, END, END, 5, 6, END]])
    assert document_starts(tokens, END).tolist() == [0, 3, 5, 6, 8, 9, 12]


@pytest.mark.parametrize("granularity", ["none", "selective", "full"])
def test_another_document_changes_nothing(granularity: str) -> None:
    """Logits of every other document stay as they are, to the bit; those of the changed one do not."""
    from tinyllama_mcore.hf.parity import standalone_run
    from tinyllama_mcore.model import documents, gpt
    from tinyllama_mcore.model.initialize import initial_shards
    from tinyllama_mcore.parallel.alone import job_of_one

    shape = dataclasses.replace(recipes.RECIPES["tinyllama-debug"].model, vocab_size=97)
    run = standalone_run(shape)
    run = dataclasses.replace(run, layout=dataclasses.replace(run.layout, recompute_granularity=granularity))
    tokens = torch.randint(3, 97, (2, 48), generator=torch.Generator().manual_seed(0))
    tokens[0, [10, 30]] = tokens[1, 20] = END
    changed = tokens.clone()
    changed[0, 15:25] = 50  # inside the document from 11 to 30
    starts = document_starts(tokens, END)
    with job_of_one() as mesh:
        model = gpt.build(run, mesh).train()
        lookup = initial_shards(shape, mesh.tensor, 1)
        for name, parameter in model.named_tensors():
            parameter.data.copy_(lookup("model", name))
        one, other = (
            model(0, x.view(1, -1), packed_seq_params=documents.packed(starts))[0].detach() for x in (tokens, changed)
        )  # [t, v]
        mixed, mixed_other = (model(0, x)[0].detach() for x in (tokens, changed))
    same = (one == other).all(dim=-1)
    assert same[:15].all() and same[31:].all()
    assert not same[15:31].any()
    assert not torch.equal(mixed[31:], mixed_other[31:])  # without the flag, what follows sees the change
