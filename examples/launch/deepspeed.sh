#!/bin/bash
# On one node, which reaches the others by ssh (pdsh):
#   examples/launch/deepspeed.sh --data-path DATA --save RUNS/tinyllama
# Without ssh, on every node: NODE_RANK=0 (1, 2, ...) HEAD=node0 examples/launch/deepspeed.sh ...
# HOSTFILE has a line for each node: "node0 slots=8".
set -euo pipefail
by_hand=()
if [ -n "${NODE_RANK:-}" ]; then
    by_hand=(--no_ssh --node_rank "$NODE_RANK" --master_addr "${HEAD:?name the first node}")
fi
HOSTFILE=${HOSTFILE:-$(dirname "$0")/hostfile}
[ -f "$HOSTFILE" ] || { echo "HOSTFILE=$HOSTFILE: no such file; deepspeed would use this node only" >&2; exit 2; }
exec deepspeed --hostfile "$HOSTFILE" "${by_hand[@]}" --master_port "${PORT:-29500}" \
    --module tinyllama_mcore pretrain --deepspeed_config zero1 "$@"
