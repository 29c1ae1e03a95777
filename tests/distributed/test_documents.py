"""--inter-document-masking: training is that of Hugging Face's model on each document alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.distributed import ranks
from tests.distributed.conftest import flags
from tests.distributed.layouts import Mode
from tests.distributed.recipe import SHOWN


@pytest.fixture(scope="module")
def reference_of_documents(corpus: list[str]) -> list[tuple[float, float]]:
    """(loss, gradient norm) of each iteration, every document in a forward pass of its own."""
    from tests.distributed.reference import each_document_alone, reference_curve

    return reference_curve(corpus, each_document_alone, end=SHOWN)


@pytest.mark.parametrize(
    "mode",
    [
        Mode(sharding="zero1"),
        Mode(sharding="zero3", tp=2, sp=True, dp=1),
        Mode(sharding="fsdp", pp=2),
    ],
    ids=str,
)
def test_curve_is_that_of_documents_alone(
    mode: Mode, reference: list, reference_of_documents: list, corpus: list[str], tmp_path: Path
) -> None:
    """Losses within 2e-6, gradient norms within 1e-5 relative; and far from the curve that sees across documents."""
    metrics = tmp_path / "metrics.jsonl"
    argv = [*flags(mode, tmp_path, corpus), "--inter-document-masking", "--metrics-file", str(metrics)]
    argv += ["--exit-interval", str(SHOWN)]
    ranks.pretrain(argv, world_size=mode.world_size, logs=tmp_path / "logs")
    records = ranks.metrics(metrics)
    assert len(records) == len(reference_of_documents)
    for record, (loss, norm) in zip(records, reference_of_documents, strict=True):
        assert abs(record["lm_loss"] - loss) <= 2e-6, record["iteration"]
        assert abs(record["grad_norm"] - norm) <= 1e-5 * norm, record["iteration"]
    assert max(abs(r["lm_loss"] - loss) for r, (loss, _) in zip(records, reference, strict=False)) > 1e-4
