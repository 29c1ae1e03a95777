#!/usr/bin/env bash
# DeepSpeed 0.19.8, ZeRO-1 and ZeRO-2, "round_robin_gradients": true: safe_get_full_fp32_param, the documented way to an
# fp32 master weight, gives another parameter's values. The key reorders parameters in the flat partitions; the links
# from parameters to their places in them (tensor fragments) are made by the model's order. Nothing warns, and a
# checkpointing or averaging tool that reads or writes by these functions exchanges weights. Training itself is right.
#
# Seen (four layers of one shape, two ranks): without the key none is wrong; with it 1.weight and 2.weight are.
# Fails if the access becomes right with the key, or wrong without it.
set -euo pipefail
home=$(mktemp -d)
trap 'rm -rf "$home"' EXIT
python3 -m venv "$home/venv"
"$home/venv/bin/pip" install --quiet setuptools==82.0.1 wheel==0.46.3 torch==2.13.0 numpy==2.4.6
DS_BUILD_OPS=0 "$home/venv/bin/pip" install --quiet --no-build-isolation deepspeed==0.19.8
cat > "$home/run.py" <<'PYTHON'
import json
import multiprocessing
import os
import socket
import sys


def rank(number, port, stage, round_robin, out):
    os.environ.update(RANK=str(number), LOCAL_RANK=str(number), WORLD_SIZE="2", DS_ACCELERATOR="cpu")
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    import deepspeed
    import torch
    from deepspeed.utils import safe_get_full_fp32_param

    assert deepspeed.__version__.startswith("0.19.8"), deepspeed.__version__
    torch.manual_seed(0)
    model = torch.nn.Sequential(*[torch.nn.Linear(4, 4, bias=False) for _ in range(4)])
    zero = {"stage": stage, "round_robin_gradients": round_robin}
    config = {"train_batch_size": 2, "zero_optimization": zero}
    adam = torch.optim.AdamW(model.parameters(), lr=1e-3)
    engine, *_ = deepspeed.initialize(model=model, optimizer=adam, config=config)
    wrong = []
    for name, weight in engine.module.named_parameters():
        if not torch.equal(safe_get_full_fp32_param(weight), weight.data.float()):
            wrong.append(name)
    if number == 0:
        with open(out, "w") as file:
            json.dump(wrong, file)


if __name__ == "__main__":
    found = {}
    for stage in (1, 2):
        for round_robin in (False, True):
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                port = probe.getsockname()[1]
            out = os.path.join(os.path.dirname(__file__), "wrong.json")
            context = multiprocessing.get_context("spawn")
            ranks = [context.Process(target=rank, args=(n, port, stage, round_robin, out)) for n in range(2)]
            for process in ranks:
                process.start()
            for process in ranks:
                process.join()
            assert [process.exitcode for process in ranks] == [0, 0]
            found[stage, round_robin] = json.load(open(out))
            print(f"ZeRO-{stage}, round_robin_gradients {round_robin}: wrong {found[stage, round_robin]}")
    assert found[1, False] == found[2, False] == [], found
    assert found[1, True] and found[2, True], found
    sys.exit(0)
PYTHON
"$home/venv/bin/python" "$home/run.py" 2>/dev/null
