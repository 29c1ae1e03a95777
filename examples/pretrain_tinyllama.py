"""Pretrain TinyLlama. `deepspeed examples/pretrain_tinyllama.py --deepspeed_config ds_configs/zero3.json [flags]`.

The same script runs under `torchrun`, `srun` and plain `python` (one process). `--help` lists the flags. It is
`tinyllama-pretrain` from a checkout: see `tinyllama_mcore/pretrain.py`.
"""

import sys

from tinyllama_mcore.commands.start import pretrain_tinyllama

if __name__ == "__main__":
    sys.exit(pretrain_tinyllama())
