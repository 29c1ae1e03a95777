#!/bin/bash
# On every node, at about the same time; the first node is where they meet:
#   HEAD=node0 NODES=2 examples/launch/torchrun.sh --data-path DATA --save RUNS/tinyllama
# NODES=1:2 goes on with one node where the other is lost (docs/howto/multi-node.md#fewer-nodes).
set -euo pipefail
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 # or no node can join later (torch 2.13)
export PET_SHUTDOWN_TIMEOUT=120 # torchrun's --shutdown_timeout, which torch before 2.13 has not
exec torchrun --nnodes "${NODES:-2}" --nproc_per_node "${GPUS:-8}" --max-restarts "${RESTARTS:-3}" \
    --rdzv_backend c10d --rdzv_endpoint "${HEAD:?name the first node}:${PORT:-29500}" \
    -m tinyllama_mcore pretrain --deepspeed_config zero1 "$@"
