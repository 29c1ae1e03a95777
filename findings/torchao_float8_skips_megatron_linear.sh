#!/usr/bin/env bash
# torchao 0.18.0 with megatron-core 0.16.1: convert_to_float8_training() replaces modules that are exactly or by
# inheritance torch.nn.Linear, and Megatron's ColumnParallelLinear and RowParallelLinear are neither. A GPTModel comes
# back as it went in: nothing is converted, nothing is warned of, and the run that was to train in float8 trains in bf16.
#
# Seen: of a GPTModel's 5 parallel linear layers 0 are converted; of the 2 torch.nn.Linear beside it both are.
# Fails if torchao converts them, or says that it does not.
set -euo pipefail
home=$(mktemp -d)
trap 'rm -rf "$home"' EXIT
python3 -m venv "$home/venv"
"$home/venv/bin/pip" install --quiet setuptools wheel pybind11
"$home/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 packaging six megatron-core==0.16.1 torchao==0.18.0
cat > "$home/convert.py" <<'PYTHON'
import importlib.metadata
import logging
import os
import warnings

import torch

warnings.simplefilter("ignore")
from megatron.core import parallel_state
from megatron.core.models.gpt import GPTModel
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer.transformer_config import TransformerConfig
from torchao.float8 import Float8LinearConfig, convert_to_float8_training
from torchao.float8.float8_linear import Float8Linear

assert importlib.metadata.version("torchao") == "0.18.0"
assert importlib.metadata.version("megatron-core") == "0.16.1"
os.environ.update(RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT="29517")
torch.distributed.init_process_group("gloo")
parallel_state.initialize_model_parallel()
config = TransformerConfig(
    num_layers=1, hidden_size=64, num_attention_heads=4, use_cpu_initialization=True, perform_initialization=False,
    normalization="RMSNorm",
)
gpt = GPTModel(config, get_gpt_layer_local_spec(normalization="RMSNorm"), vocab_size=64, max_sequence_length=32)
plain = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Linear(64, 64))

told = []
handler = logging.Handler()
handler.emit = lambda record: told.append(record.getMessage())
logging.getLogger().addHandler(handler)
with warnings.catch_warnings(record=True) as warned:
    warnings.simplefilter("always")
    recipe = Float8LinearConfig.from_recipe_name("rowwise")
    gpt, plain = (convert_to_float8_training(module, config=recipe) for module in (gpt, plain))
parallel = [m for m in gpt.modules() if isinstance(m, (ColumnParallelLinear, RowParallelLinear))]
converted = [m for m in gpt.modules() if isinstance(m, Float8Linear)]
beside = [m for m in plain.modules() if isinstance(m, Float8Linear)]
said = [str(w.message) for w in warned if "linear" in str(w.message).lower()] + [t for t in told if "linear" in t.lower()]
print(f"parallel linear layers of the GPTModel: {len(parallel)}, converted: {len(converted)}; torch.nn.Linear: {len(beside)} of 2")
print(f"said of it: {said}")
assert len(parallel) == 5 and not converted and len(beside) == 2 and not said
PYTHON
"$home/venv/bin/python" "$home/convert.py"
