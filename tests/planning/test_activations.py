"""The planner's bytes of a decoder layer are those that a real one keeps, fused or Megatron's own (local)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.distributed import ranks
from tests.planning import counted
from tinyllama_mcore.config.schema import RunConfig
from tinyllama_mcore.planning import activations

ZERO1 = str(ranks.CHECKOUT / "ds_configs/zero1.json")
ONE_BATCH = ("--deepspeed_config", ZERO1, "--micro-batch-size", "2", "--global-batch-size", "2")
BF16 = (*ONE_BATCH, "--recipe", "tinyllama-120m", "--seq-length", "128")
FP32 = (*ONE_BATCH, "--recipe", "tinyllama-debug")
QWEN3 = (*ONE_BATCH, "--recipe", str(Path(__file__).with_name("qwen3.json")))
RECOMPUTE = "--recompute-granularity"
TENSOR = ("--tensor-model-parallel-size", "2")
CONTEXT = ("--context-parallel-size", "2")
SEQUENCE = (*TENSOR, "--sequence-parallel")
FULL, SELECTIVE, LOCAL = (RECOMPUTE, "full"), (RECOMPUTE, "selective"), ("--transformer-impl", "local")
JOBS = {
    "alone": (
        1,
        [
            *(BF16, (*BF16, *FULL), FP32, QWEN3, (*QWEN3, *LOCAL), (*QWEN3, *SELECTIVE)),
            *((*BF16, *LOCAL), (*BF16, *SELECTIVE), (*BF16, *LOCAL, *FULL), (*FP32, *LOCAL)),
        ],
    ),
    "tensor": (
        2,
        [
            *((*FP32, *flags, *impl) for flags in (TENSOR, SEQUENCE, (*SEQUENCE, *FULL)) for impl in ((), LOCAL)),
            *((*QWEN3, *TENSOR, *impl) for impl in ((), LOCAL)),
        ],
    ),
    "context": (
        2,
        [
            *((*BF16, *CONTEXT), (*FP32, *CONTEXT), (*QWEN3, *CONTEXT), (*QWEN3, *CONTEXT, *LOCAL)),
            *((*BF16, *CONTEXT, *LOCAL), (*BF16, *CONTEXT, *SELECTIVE), (*FP32, *CONTEXT, *LOCAL)),
        ],
    ),
}


def more_on_a_cpu(run: RunConfig) -> int:
    """What the first rank keeps on a CPU and would not on a GPU.

    torch's RMSNorm, of local layers, keeps its input and the normalized input in fp32, in place of its input. Selective
    recompute keeps the kind of mask as one whole number; attention over the late one of two chunks of a sequence keeps
    a mask, which a GPU's kernels do not need.
    """
    layout, e, length = run.layout, activations.element_size(run), run.batch.seq_length
    if layout.recompute_granularity == "full":
        return 0
    local = run.transformer_impl == "local"
    norms = local * 2 * activations.tokens_between_regions(run) * run.model.hidden_size * (2 * 4 - e)
    if local and run.model.qk_layernorm:  # the same of heads, where a GPU keeps the keys as a view of all heads
        here, (query, key) = activations.tokens(run), activations.heads(run)
        norms += here * (2 * 4 * (query + key) - e * query)
        norms -= here * (query + 2 * key) * e * (layout.context_parallel_size > 1)
    if layout.recompute_granularity == "selective":
        return norms + 4
    return norms + (
        length // (2 * layout.context_parallel_size) * length * e if layout.context_parallel_size > 1 else 0
    )


@pytest.mark.parametrize("job", JOBS)
def test_a_layer_keeps_what_is_predicted(job: str, tmp_path: Path) -> None:
    """To the byte, on as many ranks as the layout has."""
    world, commands = JOBS[job]
    out = tmp_path / "counted.json"
    codes = ranks.run(world, counted.saved, commands, world, out, logs=tmp_path)
    assert codes == [0] * world, (tmp_path / "rank0.log").read_text()[-3000:]
    for command, bytes_kept in zip(commands, json.loads(out.read_text()), strict=True):
        run = counted.make_run(command, world)
        predicted = sum(activations.saved_by_layer(run).values())
        assert bytes_kept == predicted + more_on_a_cpu(run), command[5:]
