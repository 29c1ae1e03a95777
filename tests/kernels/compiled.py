"""Compiles every kernel for a Hopper GPU, on whatever machine this is, and starts none.

Triton's interpreter, by which kernels run without a GPU, takes programs that its compiler refuses. This is a process of
its own, as whether kernels are interpreted is decided when they are imported.
"""

from __future__ import annotations

import sys

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

HOPPER = GPUTarget("cuda", 90, 32)


class _Hopper:
    """What Triton asks of a driver before it compiles."""

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return HOPPER


def main() -> int:
    """Say which pieces do not compile; their number."""
    from tests.kernels.test_kernels import PIECES
    from tinyllama_mcore.kernels import triton_kernels

    triton.runtime.driver.set_active(_Hopper())
    run = JITFunction.run
    compiled: set[str] = set()

    def only_compile(self: JITFunction, *args: object, grid: object, warmup: bool, **more: object) -> object:
        compiled.add(self.fn.__name__)
        return run(self, *args, grid=grid, warmup=True, **more)

    JITFunction.run = only_compile
    failed = 0
    for dtype in (torch.bfloat16, torch.float32):
        for name, piece in PIECES.items():
            try:
                piece(triton_kernels, lambda *shape, dtype=dtype: torch.randn(*shape).to(dtype))
            except Exception as error:
                failed += 1
                print(f"{name}, {dtype}: {type(error).__name__}: {error}", file=sys.stderr)
    print(*sorted(compiled))
    return failed


if __name__ == "__main__":
    sys.exit(main())
