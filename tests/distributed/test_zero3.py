"""ZeRO-3 holds the weights of a decoder layer no longer than the layer needs them."""

from __future__ import annotations

import json
import math
from pathlib import Path

from tests.distributed import ranks
from tests.distributed.conftest import write_json
from tests.planning.counted import make_run


def _whole_at_the_end_of_backward(argv: tuple[str, ...], out: Path) -> int:
    """Write how many weights of decoder layers are gathered when the gradient reaches the embedding."""
    import torch
    from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus

    from tinyllama_mcore.model import gpt, initialize
    from tinyllama_mcore.parallel import launch, mesh
    from tinyllama_mcore.run import build_engine
    from tinyllama_mcore.sampling.loader import TokenBatch

    run = make_run(argv, 2)
    launch.start_process_group(launch.this_process())
    axes = mesh.build(run.layout, 0)
    model = gpt.build(run, axes)
    engine = build_engine(run, axes, model)
    engine.load_state(initialize.initial_shards(run.model, axes.tensor, 0), 0)
    weights, counts = [p for layer in model.layers() for p in layer.parameters()], []

    def count(_: torch.Tensor) -> None:
        counts.append(sum(p.ds_status is ZeroParamStatus.AVAILABLE for p in weights))

    embedding = model.chunks[0].embedding.word_embeddings
    embedding.register_forward_hook(lambda module, inputs, output: output.register_hook(count) and None)
    tokens = torch.randint(0, run.model.vocab_size, (1, run.batch.seq_length + 1))
    batches = [TokenBatch(tokens=tokens[:, :-1], labels=tokens[:, 1:])] * run.num_micro_batches
    for _ in range(3):  # DeepSpeed records the order of modules first
        engine.train_step(batches, 1e-3, math.inf)
    if axes.is_first:
        out.write_text(json.dumps({"weights": len(weights), "whole": counts}))
    return 0


def test_a_layer_is_released_behind_its_backward_pass(tmp_path: Path) -> None:
    """With nothing kept for reuse, none is whole any more; Megatron's call by keywords would keep them all."""
    zero = {
        "stage": 3,
        "stage3_max_reuse_distance": 0,
        "stage3_param_persistence_threshold": 0,
        "stage3_prefetch_bucket_size": 0,
    }
    config = write_json(tmp_path / "ds.json", {"gradient_clipping": "auto", "zero_optimization": zero})
    argv = ("--deepspeed_config", config, "--recipe", "tinyllama-debug", "--micro-batch-size", "1")
    argv = (*argv, "--global-batch-size", "4", "--seq-length", "16")
    codes = ranks.run(2, _whole_at_the_end_of_backward, argv, tmp_path / "counted.json", logs=tmp_path)
    assert codes == [0, 0], (tmp_path / "rank0.log").read_text()[-3000:]
    counted = json.loads((tmp_path / "counted.json").read_text())
    assert counted["weights"] > 0
    assert counted["whole"] == [0] * 6
