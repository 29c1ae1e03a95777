#!/usr/bin/env bash
# megatron-core 0.16.1, OptimizerParamScheduler with lr_decay_style "inverse-square-root": the curve is not the one of
# its formula in updates, for two reasons. Megatron-LM steps the scheduler by samples, and without warm-up the formula
# has the rate 1 / sqrt(samples): after the first update of a batch of 1,024 the rate is 1/32 of --lr, and two runs that
# differ in batch size alone have rates that differ by the root of its ratio. With warm-up the unit cancels. And at
# lr_decay_steps the rate does not arrive at min_lr but falls to it in one step, from wherever the root then is.
#
# Seen: lr 1, no warm-up, after 1 and 4 updates: 1.0 and 0.5 at batch 1, 0.03125 and 0.015625 at batch 1,024. With 100
# updates of warm-up and an end at 400: 0.5 at update 400, 0.01 (min_lr) at update 401; with either unit.
# Fails if a rate differs.
set -euo pipefail
home=$(mktemp -d)
trap 'rm -rf "$home"' EXIT
python3 -m venv "$home/venv"
"$home/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
"$home/venv/bin/pip" install --quiet --no-deps megatron-core==0.16.1 packaging==26.0
cat > "$home/run.py" <<'PYTHON'
import warnings

import torch

warnings.filterwarnings("ignore")
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler


def rates(batch, warmup, end, at):
    """The rate after each number of updates in `at`, the scheduler stepped by the samples of an update."""
    adam = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = OptimizerParamScheduler(
        adam, init_lr=0.0, max_lr=1.0, min_lr=0.01, lr_warmup_steps=warmup * batch, lr_decay_steps=end * batch,
        lr_decay_style="inverse-square-root", start_wd=0.0, end_wd=0.0, wd_incr_steps=end * batch,
        wd_incr_style="constant",
    )
    found = []
    for update in range(1, max(at) + 1):
        scheduler.step(increment=batch)
        if update in at:
            found.append(adam.param_groups[0]["lr"])
    return found


bare = {batch: rates(batch, 0, 400, (1, 4)) for batch in (1, 1024)}
warm = {batch: rates(batch, 100, 400, (400, 401)) for batch in (1, 1024)}
print("no warm-up, after 1 and 4 updates:", bare)
print("100 updates of warm-up, after 400 and 401:", warm)
assert bare == {1: [1.0, 0.5], 1024: [0.03125, 0.015625]}, bare
assert warm == {1: [0.5, 0.01], 1024: [0.5, 0.01]}, warm
PYTHON
"$home/venv/bin/python" "$home/run.py" 2>&1 | grep -v -i "warn"
