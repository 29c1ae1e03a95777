"""Pretrain TinyLlama. `deepspeed examples/pretrain_tinyllama.py --deepspeed_config ds_configs/zero3.json [flags]`.

The same script runs under `torchrun`, `srun` and plain `python` (one process). `--help` lists the flags.
"""

import sys

from tinyllama_mcore.parallel import launch
from tinyllama_mcore.pretrain import main

if __name__ == "__main__":
    launch.leave(main(sys.argv[1:]))
