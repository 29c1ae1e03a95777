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
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

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


@contextmanager
def drawn_ahead(
    model: ModelConfig, seed: int, names: Sequence[str], *, threads: int
) -> Iterator[Callable[[str], torch.Tensor]]:
    """The initial values of logical parameters by their names, which are best asked for in the order of `names`.

    So many `threads` draw the ones that come next in that order, and end with the block; a draw does not take Python's
    lock.
    """
    parameters = {p.name: p for p in logical_parameters(model)}
    coming, drawn = iter(names), dict[str, "Future[torch.Tensor]"]()

    def value(name: str) -> torch.Tensor:
        for each in itertools.islice(coming, threads - len(drawn)):
            drawn[each] = pool.submit(initial_value, parameters[each], model, seed)
        return drawn.pop(name).result() if name in drawn else initial_value(parameters[name], model, seed)

    with ThreadPoolExecutor(threads) as pool:
        yield value


def initial_shards(
    model: ModelConfig, tensor: Axis, seed: int, value: Callable[[str], torch.Tensor] | None = None
) -> Callable[[str, str], torch.Tensor | None]:
    """The initial weights as an engine asks for them: (kind, module parameter name) -> this rank's shard.

    Moments are None: they start at zero. `value` gives the whole of a logical parameter; None: it is drawn when it is
    asked for.
    """
    parameters = {p.name: p for p in logical_parameters(model)}

    def part(name: str) -> torch.Tensor:
        full = initial_value(parameters[name], model, seed) if value is None else value(name)
        return pad_rows(
            shard_of(full, parameters[name].tp_dim, tensor.rank, tensor.size), parameters[name], tensor.size
        )

    def lookup(kind: str, name: str) -> torch.Tensor | None:
        return torch.cat([part(logical) for logical in part_names(name)]) if kind == "model" else None

    return lookup
