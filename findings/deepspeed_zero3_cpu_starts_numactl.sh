#!/usr/bin/env bash
# DeepSpeed 0.19.8, ZeRO-3 on CPUs: every reduction of gradients starts the program numactl in a process of its own. The
# reduction asks the accelerator how many devices a machine has (get_accelerator().device_count(), to see whether there
# are several nodes), and the CPU accelerator answers by `numactl --hardware` each time, unless the environment has
# LOCAL_SIZE, which neither the deepspeed launcher nor torchrun sets (torchrun's name is LOCAL_WORLD_SIZE). ZeRO-1 and 2
# do not ask while they train. A fork of a process that holds a model costs more than a small model's reduction.
#
# Seen (numactl counted by a stand-in, 4 iterations of a model of 6 layers, buckets of one layer): during training ZeRO-3
# starts it 24 times, with LOCAL_SIZE=1 never; ZeRO-2 never.
# Fails if ZeRO-3 starts it less than once an iteration, or if the others start it.
set -euo pipefail
home=$(mktemp -d)
trap 'rm -rf "$home"' EXIT
python3 -m venv "$home/venv"
"$home/venv/bin/pip" install --quiet setuptools==82.0.1 wheel==0.46.3 torch==2.13.0 numpy==2.4.6
DS_BUILD_OPS=0 "$home/venv/bin/pip" install --quiet --no-build-isolation deepspeed==0.19.8
mkdir "$home/bin"
cat > "$home/bin/numactl" <<'NUMACTL'
#!/bin/sh
echo started >> "$NUMACTL_COUNT"
printf 'available: 1 nodes (0)\nnode 0 cpus: 0 1\n'
NUMACTL
chmod +x "$home/bin/numactl"
cat > "$home/run.py" <<'PYTHON'
import os
import sys
from pathlib import Path

stage, port = int(sys.argv[1]), sys.argv[2]
os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", DS_ACCELERATOR="cpu")
os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
import deepspeed
import torch

assert deepspeed.__version__.startswith("0.19.8"), deepspeed.__version__
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # or a compiler is asked for
torch.manual_seed(0)
model = torch.nn.Sequential(*[torch.nn.Linear(32, 32, bias=False) for _ in range(6)])
zero = {"stage": stage, "reduce_bucket_size": 1024, "stage3_param_persistence_threshold": 0}
config = {"train_batch_size": 2, "zero_optimization": zero, "bf16": {"enabled": True}}
adam = torch.optim.AdamW(model.parameters(), lr=1e-3)
engine, *_ = deepspeed.initialize(model=model, optimizer=adam, config=config)
log = Path(os.environ["NUMACTL_COUNT"])
log.write_text("")
for _ in range(4):
    loss = engine(torch.ones(2, 32, dtype=torch.bfloat16)).float().square().mean()
    engine.backward(loss)
    engine.step()
print(len(log.read_text().splitlines()))
PYTHON
count() { # stage, and variables for the environment
    local stage=$1 port
    shift
    port=$("$home/venv/bin/python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
    env -u LOCAL_SIZE PATH="$home/bin:$home/venv/bin:$PATH" NUMACTL_COUNT="$home/count" "$@" \
        "$home/venv/bin/python" "$home/run.py" "$stage" "$port" 2>"$home/log" | tail -1
}
three=$(count 3)
known=$(count 3 LOCAL_SIZE=1)
two=$(count 2)
echo "numactl started in 4 iterations: ZeRO-3 $three, ZeRO-3 with LOCAL_SIZE $known, ZeRO-2 $two"
[ "$three" -ge 4 ] && [ "$known" = 0 ] && [ "$two" = 0 ]
