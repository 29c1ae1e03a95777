#!/usr/bin/env bash
# torch 2.11.0: with MixedPrecisionPolicy(param_dtype=bfloat16), fully_shard copies a layer's shards twice for each
# all-gather: once as it casts them, to a flat buffer, and once more from there to their place in the output of the
# all-gather. Without a param_dtype they are copied once. Seen below: 2 and 1 calls of _foreach_copy_ a gather.
# On two H200s the two took 40 ms each of an iteration of 1,770 ms (1.1B parameters, 8 micro-batches, gathered twice in
# each), on a stream of their own beside the products.
# Exits 0 while that is so.
set -euo pipefail
home=$(mktemp -d)
trap 'rm -rf "$home"' EXIT
python3 -m venv "$home/venv"
"$home/venv/bin/pip" install -q torch==2.11.0 numpy
cat > "$home/gather.py" <<'PY'
import os
import sys

import torch
import torch.multiprocessing as mp
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard


def copies(dtype, device_mesh):
    model = torch.nn.Linear(64, 64)
    fully_shard(model, mesh=device_mesh, mp_policy=MixedPrecisionPolicy(param_dtype=dtype))
    model.unshard()
    model.reshard()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        model.unshard()
    return sum(event.name == "aten::_foreach_copy_" for event in profile.events())


def rank(number, results):
    os.environ.update(RANK=str(number), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=sys.argv[1])
    torch.distributed.init_process_group("gloo")
    device_mesh = torch.distributed.init_device_mesh("cpu", (2,))
    found = copies(None, device_mesh), copies(torch.bfloat16, device_mesh)
    if number == 0:
        results.put(found)
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    context = mp.get_context("spawn")
    results = context.Queue()
    ranks = [context.Process(target=rank, args=(number, results)) for number in range(2)]
    for each in ranks:
        each.start()
    plain, mixed = results.get(timeout=120)
    for each in ranks:
        each.join()
    print(f"torch {torch.__version__}: _foreach_copy_ a gather: {plain} without a param_dtype, {mixed} with bfloat16")
    sys.exit((plain, mixed) != (1, 2))
PY
port=$("$home/venv/bin/python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
"$home/venv/bin/python" "$home/gather.py" "$port"
