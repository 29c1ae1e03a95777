"""Other people's trainers of the same model, batch and optimizer on random tokens, each as its own project trains.

`python -m tinyllama_mcore.benchmarking.peers NAME WORKLOAD` prints a Measurement. None of the packages is a dependency:
a peer whose packages are missing says which. On a CPU all is fp32, eager and without Liger, whose kernels need a GPU.
Neighbours: `megatron_peer` builds Megatron-core's model, `rows` starts this file as a process, for each peer one.
"""

from __future__ import annotations

import importlib.util
import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import torch

from tinyllama_mcore.benchmarking.workload import (
    ALL_BF16,
    FLOAT8,
    FP32,
    MIXED,
    Measurement,
    Workload,
    median_and_spread,
    peak_memory_gib,
    synchronize,
)
from tinyllama_mcore.config import records
from tinyllama_mcore.config.parameters import count_parameters
from tinyllama_mcore.parallel import launch

Update = Callable[[list[torch.Tensor]], float]
"""Tokens [b, s + 1] of each micro-batch to their mean loss, after one update of the weights."""
Loss = Callable[[torch.Tensor], torch.Tensor]
"""Tokens [b, s + 1] of one micro-batch to their mean loss."""


def timed(update: Update, workload: Workload) -> tuple[list[float], float]:
    """Seconds of each timed update, without the warm-up, and the loss of the last."""
    generator = torch.Generator().manual_seed(0)
    shape = (workload.micro_batch_size, workload.seq_length + 1)
    taken, loss = [], 0.0
    for _ in range(workload.warmup + workload.updates):
        tokens = [
            torch.randint(workload.vocab_size, shape, generator=generator).to(workload.device)
            for _ in range(workload.accumulation)
        ]
        synchronize(workload.device)
        begin = time.perf_counter()
        loss = update(tokens)
        synchronize(workload.device)
        taken.append(time.perf_counter() - begin)
    return taken[workload.warmup :], loss


def same_model(model: torch.nn.Module, workload: Workload) -> torch.nn.Module:
    """`model` as it is, once its size is seen to be that of the recipe."""
    size, due = sum(p.numel() for p in model.parameters()), count_parameters(workload.model)
    if size != due:
        raise RuntimeError(f"the peer's model has {size:,} parameters, the recipe's {due:,}")
    return model


def adamw(model: torch.nn.Module, workload: Workload) -> torch.optim.Optimizer:
    """The AdamW of torch with the recipe's numbers, fused on a GPU."""
    numbers = workload.optimizer
    return torch.optim.AdamW(
        model.parameters(),
        lr=numbers.lr,
        betas=(numbers.adam_beta1, numbers.adam_beta2),
        eps=numbers.adam_eps,
        weight_decay=numbers.weight_decay,
        fused=workload.on_gpu,
    )


def plain_update(model: torch.nn.Module, loss_of: Loss, workload: Workload, *, autocast: bool) -> Update:
    """Backward of each micro-batch, clip, AdamW: the loop of a trainer without a sharding library."""
    parameters, optimizer = list(model.parameters()), adamw(model, workload)

    def update(micro_batches: list[torch.Tensor]) -> float:
        total = torch.zeros((), device=workload.device)
        for tokens in micro_batches:
            with torch.autocast(workload.device, torch.bfloat16, enabled=autocast and workload.on_gpu):
                loss = loss_of(tokens) / len(micro_batches)
            loss.backward()
            total += loss.detach()
        torch.nn.utils.clip_grad_norm_(parameters, workload.optimizer.clip_grad)
        optimizer.step()
        optimizer.zero_grad()
        return float(total)

    return update


def litgpt(workload: Workload, _: ExitStack) -> Update:
    """The model of litgpt compiled, its chunked loss, autocast over fp32 weights (litgpt/pretrain.py, 0.5.13)."""
    model = litgpt_model(workload)
    return plain_update(model, litgpt_loss(model, workload), workload, autocast=True)


def litgpt_float8(workload: Workload, _: ExitStack) -> Update:
    """The same in bf16 altogether, with torchao's tensorwise float8 in each linear layer but the head."""
    from torchao.float8 import Float8LinearConfig, convert_to_float8_training

    model = litgpt_model(workload).to(torch.bfloat16)
    convert_to_float8_training(
        model,
        module_filter_fn=lambda _, name: name != "lm_head",
        config=Float8LinearConfig.from_recipe_name("tensorwise"),
    )
    return plain_update(model, litgpt_loss(model, workload), workload, autocast=False)


def litgpt_model(workload: Workload) -> torch.nn.Module:
    """The tiny-llama-1.1b of litgpt; the recipe's shape where that is another."""
    from litgpt.model import GPT, Config

    shape = workload.model
    config = Config.from_name(
        "tiny-llama-1.1b",
        block_size=workload.seq_length,
        n_layer=shape.num_layers,
        n_embd=shape.hidden_size,
        intermediate_size=shape.ffn_hidden_size,
        n_head=shape.num_attention_heads,
        n_query_groups=shape.num_query_groups,
        vocab_size=workload.vocab_size,
        padded_vocab_size=workload.vocab_size,
    )
    with torch.device(workload.device):
        model = GPT(config)
    model.apply(model._init_weights)
    return same_model(model, workload)


def litgpt_loss(model: torch.nn.Module, workload: Workload) -> Loss:
    """The loss of litgpt's own training loop. Only the model is compiled there."""
    from litgpt.utils import chunked_cross_entropy

    called = torch.compile(model) if workload.on_gpu else model
    return lambda tokens: chunked_cross_entropy(called(tokens[:, :-1]), tokens[:, 1:])


def hugging_face(workload: Workload, _: ExitStack) -> Update:
    """The Llama of transformers with Liger's kernels and torch's attention, autocast over fp32 weights."""
    model = hugging_face_model(workload)
    return plain_update(model, lambda tokens: hugging_face_loss(model, tokens), workload, autocast=True)


def hugging_face_model(workload: Workload) -> torch.nn.Module:
    """The Llama of transformers, with all that Liger replaces by default where there is a GPU."""
    from transformers import LlamaConfig, LlamaForCausalLM

    if workload.on_gpu:
        from liger_kernel.transformers import apply_liger_kernel_to_llama

        apply_liger_kernel_to_llama()
    shape = workload.model
    config = LlamaConfig(
        vocab_size=workload.vocab_size,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.ffn_hidden_size,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_attention_heads,
        num_key_value_heads=shape.num_query_groups,
        max_position_embeddings=shape.max_position_embeddings,
        rms_norm_eps=shape.norm_epsilon,
        tie_word_embeddings=False,
        use_cache=False,
        attn_implementation="sdpa",  # type: ignore[call-arg]  # of its base class
    )
    with torch.device(workload.device):
        model = LlamaForCausalLM(config)
    return same_model(model.train(), workload)


def hugging_face_loss(model: torch.nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    """Labels are shifted by transformers itself: the last token of a sequence has none."""
    return model(input_ids=tokens[:, :-1], labels=tokens[:, :-1]).loss


def zero(stage: int) -> Callable[[Workload, ExitStack], Update]:
    """The Llama of transformers with Liger's kernels under DeepSpeed ZeRO, fp32 masters and accumulation."""

    def build(workload: Workload, leaving: ExitStack) -> Update:
        import deepspeed
        import deepspeed.ops

        # else compiled at the first start on a CPU; see engine/deepspeed_engine.py, _skip_inference_kernels
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        place = launch.this_process()
        launch.start_process_group(place)
        leaving.callback(launch.leave_process_group)
        model = hugging_face_model(workload)
        engine, *_ = deepspeed.initialize(
            model=model,
            optimizer=adamw(model, workload),
            config=zero_config(workload, stage, place.world_size),
            dist_init_required=False,
        )

        def update(micro_batches: list[torch.Tensor]) -> float:
            total = torch.zeros((), device=workload.device)
            for tokens in micro_batches:
                loss = hugging_face_loss(engine, tokens)
                engine.backward(loss)
                engine.step()
                total += loss.detach() / len(micro_batches)
            return float(total)

        return update

    return build


def zero_config(workload: Workload, stage: int, world_size: int) -> dict[str, Any]:
    """DeepSpeed's JSON for the workload: its defaults but for what the workload says."""
    return {
        "train_micro_batch_size_per_gpu": workload.micro_batch_size,
        "gradient_accumulation_steps": workload.accumulation,
        "train_batch_size": workload.micro_batch_size * workload.accumulation * world_size,
        "gradient_clipping": workload.optimizer.clip_grad,
        "bf16": {"enabled": workload.on_gpu},
        "data_types": {"grad_accum_dtype": "fp32"},
        "zero_optimization": {"stage": stage},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }


def megatron(workload: Workload, leaving: ExitStack) -> Update:
    """Megatron-core's own layers, each compiled, in bf16 altogether."""
    from tinyllama_mcore.benchmarking import megatron_peer

    model = megatron_peer.build(workload, leaving)
    same_model(model, workload)
    return plain_update(model, lambda tokens: megatron_peer.loss(model, tokens), workload, autocast=False)


@dataclass(frozen=True, kw_only=True)
class Peer:
    """A row of PEERS."""

    name: str
    """In the table."""
    packages: tuple[str, ...]
    """What has to be installed, as it is imported."""
    build: Callable[[Workload, ExitStack], Update]
    """Makes the trainer; what has to be undone at the end goes on the stack."""
    precision: str = MIXED
    """On a GPU; fp32 on a CPU."""
    gpu_packages: tuple[str, ...] = ()
    """As `packages`, only on a GPU."""
    runs_on_cpu: bool = True
    """Whether it can be tried there."""
    runs_on_several: bool = False
    """Whether it is measured on more than one GPU."""


_LITGPT = ("litgpt", "lightning", "torchmetrics")
_LIGER = ("liger_kernel",)
PEERS = {
    "litgpt": Peer(name="litgpt, compiled, autocast over fp32", packages=_LITGPT, build=litgpt),
    "zero1-hf-liger": Peer(
        name="DeepSpeed ZeRO-1 + Hugging Face + Liger",
        packages=("deepspeed", "transformers"),
        gpu_packages=_LIGER,
        build=zero(1),
        runs_on_several=True,
    ),
    "hf-liger": Peer(
        name="Hugging Face + Liger, autocast over fp32",
        packages=("transformers",),
        gpu_packages=_LIGER,
        build=hugging_face,
    ),
    "megatron": Peer(
        name="Megatron-core local layers with torch's attention, compiled",
        packages=("megatron.core",),
        build=megatron,
        precision=ALL_BF16,
    ),
    "zero3-hf-liger": Peer(
        name="DeepSpeed ZeRO-3 + Hugging Face + Liger",
        packages=("deepspeed", "transformers"),
        gpu_packages=_LIGER,
        build=zero(3),
        runs_on_several=True,
    ),
    "litgpt-float8": Peer(
        name="litgpt + torchao float8 tensorwise, compiled",
        packages=(*_LITGPT, "torchao"),
        build=litgpt_float8,
        precision=FLOAT8,
        runs_on_cpu=False,
    ),
}
"""Key of --rows -> peer, in the order of the table."""


def row(key: str, *, on_gpu: bool) -> Measurement:
    """The peer's row before anything is measured. On a CPU the name says that Liger is not used."""
    peer = PEERS[key]
    name = peer.name if on_gpu else f"{peer.name} (here: a CPU, eager, fp32, without Liger)"
    return Measurement(name=name, kind="peer", precision=peer.precision if on_gpu else FP32)


def obstacle(key: str, *, on_gpu: bool, processes: int) -> str:
    """Why the peer cannot be measured here; empty where it can."""
    peer = PEERS[key]
    needed = (*peer.packages, *(peer.gpu_packages if on_gpu else ()))
    missing = [package for package in needed if not _is_installed(package)]
    if missing:
        return f"not installed: {', '.join(missing)}"
    if not on_gpu and not peer.runs_on_cpu:
        return "needs a GPU"
    return "" if processes == 1 or peer.runs_on_several else "measured only on one GPU"


def _is_installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:  # of the package around it
        return False


def measure(key: str, workload: Workload) -> Iterator[Measurement]:
    """The peer's row; nothing on ranks other than the first."""
    launch.quiet_third_parties()
    torch.manual_seed(0)
    with ExitStack() as leaving:
        taken, loss = timed(PEERS[key].build(workload, leaving), workload)
        if launch.this_process().rank:
            return
        if not math.isfinite(loss):
            raise RuntimeError("the loss is not a number: random numbers of other sizes would run at another speed")
        median, spread = median_and_spread(taken)
        yield replace(
            row(key, on_gpu=workload.on_gpu),
            tokens_per_s=workload.tokens_per_update / median,
            spread=spread,
            peak_memory_gib=peak_memory_gib(),
        )


def main(argv: list[str]) -> int:
    """Measure the peer of that key under the workload that the second argument spells."""
    workload = records.from_plain(Workload, json.loads(argv[1]), "workload")
    for measurement in measure(argv[0], workload):
        print(json.dumps(records.to_plain(measurement)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
