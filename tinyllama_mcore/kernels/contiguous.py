"""Kernels take rows as they lie side by side: what lies otherwise is refused, not read wrongly."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch

Kernel = TypeVar("Kernel", bound=Callable[..., Any])


def takes_contiguous(kernel: Kernel) -> Kernel:
    """The kernel, with a ValueError for a tensor among its arguments, or in a tuple of them, that is not contiguous."""

    @functools.wraps(kernel)
    def checked(*arguments: Any, **more: Any) -> Any:  # noqa: ANN401  the kernel's own
        for argument in arguments:
            for x in argument if isinstance(argument, tuple) else (argument,):
                if isinstance(x, torch.Tensor) and not x.is_contiguous():
                    raise ValueError(f"{kernel.__name__} takes contiguous tensors, and one has strides {x.stride()}")
        return kernel(*arguments, **more)

    return checked  # type: ignore[return-value]
