#!/usr/bin/env bash
# Triton 3.9.0: a name that has a tensor of one type before a loop and of another within it runs under
# TRITON_INTERPRET=1, with the right result, and does not compile: CompilationError, "Loop-carried variable", at the line
# of the loop. It happens to a Python habit: `_, there = pair(...)` before a loop, and again in it, with an integer tensor
# first in the one and a mask in the other. A suite that runs kernels by the interpreter, where there is no GPU, is green;
# the first start on a GPU ends. Triton's compiler needs no GPU: given a target (here sm_90) it compiles on a CPU, so a
# suite can compile each kernel too.
#
# Seen: interpreted 36.0, as numpy; compiled for sm_90: CompilationError ... Loop-carried variable _ has initial type
# <['8'], int32> but is re-assigned to <['8'], int1> in loop; with two names it compiles.
# Fails if the interpreter refuses it too, or the compiler takes it.
set -euo pipefail
home=$(mktemp -d)
trap 'rm -rf "$home"' EXIT
python3 -m venv "$home/venv"
"$home/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 triton==3.9.0
cat > "$home/kernel.py" <<'PYTHON'
import triton
import triton.language as tl


@triton.jit
def pair(n: tl.constexpr):
    place = tl.arange(0, n)
    return place, place < n


@triton.jit
def mask_first(n: tl.constexpr):
    place = tl.arange(0, n)
    return place < n, place


@triton.jit
def one_name(x, out, n: tl.constexpr, turns: tl.constexpr):
    _, there = pair(n)
    total = tl.zeros([n], dtype=tl.float32)
    for turn in range(turns):
        _, place = mask_first(n)
        total += tl.load(x + turn * n + place, mask=there, other=0.0)
    tl.store(out, tl.sum(total))


@triton.jit
def two_names(x, out, n: tl.constexpr, turns: tl.constexpr):
    _first, there = pair(n)
    total = tl.zeros([n], dtype=tl.float32)
    for turn in range(turns):
        _second, place = mask_first(n)
        total += tl.load(x + turn * n + place, mask=there, other=0.0)
    tl.store(out, tl.sum(total))
PYTHON
cat > "$home/interpreted.py" <<'PYTHON'
import torch
from kernel import one_name

out = torch.zeros(1)
one_name[(1,)](torch.arange(1.0, 9.0), out, n=4, turns=2)
print("interpreted", float(out))
assert float(out) == 36.0
PYTHON
cat > "$home/compiled.py" <<'PYTHON'
import triton
from kernel import one_name, two_names
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.compiler.errors import CompilationError

assert triton.__version__ == "3.9.0", triton.__version__


def compiles(kernel):
    source = ASTSource(
        fn=kernel,
        signature={"x": "*fp32", "out": "*fp32", "n": "constexpr", "turns": "constexpr"},
        constexprs={"n": 8, "turns": 2},
    )
    triton.compile(source, target=GPUTarget("cuda", 90, 32))


try:
    compiles(one_name)
except CompilationError as error:
    told = str(error).splitlines()[-1]
    print("compiled for sm_90:", told)
    assert "Loop-carried variable _" in told, told
else:
    raise SystemExit("one name of two types compiles now")
compiles(two_names)
print("two names compile")
PYTHON
cd "$home"
TRITON_INTERPRET=1 "$home/venv/bin/python" interpreted.py
TRITON_CACHE_DIR="$home/cache" "$home/venv/bin/python" compiled.py
