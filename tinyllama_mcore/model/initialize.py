"""The initial weights: a pure function of the seed and a parameter's logical name, so the same in every layout.

| method      | embedding, qkv, gate, up, fc2, head | attention output `proj`, and `up` or `fc2`  | source |
|-------------|-------------------------------------|---------------------------------------------|--------|
| tinyllama   | N(0, sqrt(2 / (5 h)))               | `proj` and `fc2`: N(0, 1 / (sqrt(h) L))     | the original repository, lit_gpt/model.py `_init_weights` (its `w3` is Megatron's linear_fc2) |
| megatron    | N(0, 0.02)                          | `proj` and `fc2`: N(0, 0.02 / sqrt(2 L))    | Megatron-LM's defaults, `init_method_std` |
| torch       | U(-1/sqrt(fan_in), 1/sqrt(fan_in)), embedding N(0, 1) | like the rest             | torch.nn.Linear and Embedding: what the released run probably began with |

h is the hidden size, L the number of layers. Norms start at one, biases at zero. A head that is tied to the embedding
is drawn once: as the embedding, but by `torch` as the head, whose products its size is for.
"""  # noqa: E501

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import torch

from tinyllama_mcore.config.parameters import LogicalParameter, logical_parameters
from tinyllama_mcore.config.schema import ModelConfig
from tinyllama_mcore.model.parameters import pad_rows, part_names, shard_of
from tinyllama_mcore.parallel.mesh import Axis

Draw = Callable[[torch.Tensor, LogicalParameter, ModelConfig, torch.Generator], None]
_RESIDUAL_OUTPUTS = ("proj", "fc2")
_CONSTANTS = {"norm": 1.0, "bias": 0.0}


def _tinyllama(weight: torch.Tensor, parameter: LogicalParameter, model: ModelConfig, rng: torch.Generator) -> None:
    std = math.sqrt(2 / (5 * model.hidden_size))
    if parameter.kind in _RESIDUAL_OUTPUTS:
        std = 1 / math.sqrt(model.hidden_size) / model.num_layers
    weight.normal_(0, std, generator=rng)


def _megatron(weight: torch.Tensor, parameter: LogicalParameter, model: ModelConfig, rng: torch.Generator) -> None:
    std = 0.02 / math.sqrt(2 * model.num_layers) if parameter.kind in _RESIDUAL_OUTPUTS else 0.02
    weight.normal_(0, std, generator=rng)


def _torch(weight: torch.Tensor, parameter: LogicalParameter, model: ModelConfig, rng: torch.Generator) -> None:
    if parameter.kind == "embedding" and model.untie_embeddings_and_output_weights:
        weight.normal_(0, 1, generator=rng)
    else:
        bound = 1 / math.sqrt(weight.shape[1])
        weight.uniform_(-bound, bound, generator=rng)


METHODS: dict[str, Draw] = {"tinyllama": _tinyllama, "megatron": _megatron, "torch": _torch}


def initial_value(parameter: LogicalParameter, model: ModelConfig, seed: int) -> torch.Tensor:
    """The whole logical tensor as a run starts with it: fp32, on the CPU."""
    if parameter.kind in _CONSTANTS:
        return torch.full(parameter.shape, _CONSTANTS[parameter.kind])
    digest = hashlib.sha256(f"{seed}/{parameter.name}".encode()).digest()
    rng = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True))
    weight = torch.empty(parameter.shape)
    METHODS[model.init_method](weight, parameter, model, rng)
    return weight


def initial_shards(
    model: ModelConfig, tensor: Axis, seed: int, *, threads: int = 1
) -> Callable[[str, str], torch.Tensor | None]:
    """The initial weights as an engine asks for them: (kind, module parameter name) -> this rank's shard.

    Moments are None: they start at zero. So many `threads` draw the tensors that come next in the order of the
    model; a draw does not take Python's lock.
    """
    parameters = {p.name: p for p in logical_parameters(model)}
    order = list(parameters)
    pool, drawn = ThreadPoolExecutor(threads), dict[str, "Future[torch.Tensor]"]()

    def draw(name: str) -> torch.Tensor:
        first = order.index(name)
        for each in order[first : first + threads]:
            if each not in drawn:
                drawn[each] = pool.submit(initial_value, parameters[each], model, seed)
        return drawn.pop(name).result()

    def part(name: str) -> torch.Tensor:
        shard = shard_of(draw(name), parameters[name].tp_dim, tensor.rank, tensor.size)
        return pad_rows(shard, parameters[name], tensor.size)

    def lookup(kind: str, name: str) -> torch.Tensor | None:
        return torch.cat([part(logical) for logical in part_names(name)]) if kind == "model" else None

    return lookup
