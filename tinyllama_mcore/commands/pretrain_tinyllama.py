"""The trainer as a program: the command line of `tinyllama_mcore.pretrain`, ended as a rank has to end.

    tinyllama-pretrain --deepspeed_config zero1
    torchrun --nproc_per_node 8 -m tinyllama_mcore pretrain --deepspeed_config zero1
    deepspeed --module tinyllama_mcore pretrain --deepspeed_config zero1

`--help` lists the flags. See docs/howto/train.md.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import NoReturn

from tinyllama_mcore import pretrain
from tinyllama_mcore.parallel import launch


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run one process of the job, and end this process with its exit code."""
    launch.leave(pretrain.main(sys.argv[1:] if argv is None else argv))
