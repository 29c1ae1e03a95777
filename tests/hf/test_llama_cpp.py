"""llama.cpp reads what is exported: its own converter, reader, logits and token ids, where its source is given.

    python -m pytest tests/hf/test_llama_cpp.py --llama-cpp DIR

with DIR a checkout of llama.cpp, such as the one in the source archive of llama-cpp-python, and that package installed.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sentencepiece import SentencePieceProcessor, sentencepiece_model_pb2

from tinyllama_mcore.data import tokenizer as tokenizer_types
from tinyllama_mcore.hf import parity, tokenizer
from tinyllama_mcore.hf.export import ExportJob, export
from tinyllama_mcore.hf.importing import import_hf

SCALINGS = {
    "plain": {},
    "linear": {"rope_scaling": {"rope_type": "linear", "factor": 4.0}},
    "llama3": {
        "rope_theta": 5e5,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    },
}
CLOSE = 1e-4
"""Root mean square of a position's differences over the spread of its logits; measured: 1.3e-5."""


@pytest.fixture(scope="module")
def llama_cpp() -> ModuleType:
    """The Python package around the library."""
    return pytest.importorskip("llama_cpp")


@pytest.fixture
def convert(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[..., Path]:
    """A model of transformers through our checkpoint and export; both paths: the exported directory, and its .gguf."""
    home = request.config.getoption("--llama-cpp")
    if home is None:
        pytest.skip("needs llama.cpp's source: --llama-cpp DIR")
    sys.path.append(f"{home}/gguf-py")

    def run(source: Path) -> Path:
        import_hf(source, tmp_path / "run")
        export(ExportJob(load=tmp_path / "run", output=tmp_path / "out", dtype="fp32"))
        program = [sys.executable, f"{home}/convert_hf_to_gguf.py", str(tmp_path / "out"), "--outtype", "f32"]
        subprocess.run([*program, "--outfile", str(tmp_path / "out" / "model.gguf")], check=True)
        return tmp_path / "out"

    return run


@pytest.mark.parametrize("scaling", SCALINGS.values(), ids=list(SCALINGS))
def test_weights_and_logits(
    scaling: dict, convert: Callable[..., Path], make_llama: Callable[..., Path], llama_cpp: ModuleType
) -> None:
    """Every tensor by GGUFReader, and llama.cpp's own fp32 logits against transformers'."""
    out = convert(make_llama(**scaling))
    from gguf import GGUFReader

    weights = load_file(out / "model.safetensors")
    read = {tensor.name: tensor.data for tensor in GGUFReader(out / "model.gguf").tensors}
    assert len(read.keys() - {"rope_freqs.weight"}) == len(weights)
    assert np.array_equal(read["blk.1.ffn_gate.weight"], weights["model.layers.1.mlp.gate_proj.weight"])
    assert np.array_equal(read["blk.1.attn_v.weight"], weights["model.layers.1.self_attn.v_proj.weight"])
    tokens = torch.randint(800, (1, 128), generator=torch.Generator().manual_seed(0))
    exact = {kind: llama_cpp.GGML_TYPE_F32 for kind in ("type_k", "type_v")}
    model = llama_cpp.Llama(str(out / "model.gguf"), n_ctx=128, logits_all=True, verbose=False, **exact)
    model.eval(tokens[0].tolist())
    got, expected = torch.tensor(model.scores[:128]), parity.model_logits(parity.load_model(out), tokens)[0]
    apart = (got - expected).square().mean(-1).sqrt() / expected.std(-1)
    assert apart.max() < CLOSE


@pytest.mark.parametrize("changes", [{}, {"add_dummy_prefix": False}], ids=["llama", "no prefix"])
def test_token_ids(
    changes: dict,
    convert: Callable[..., Path],
    make_llama: Callable[..., Path],
    train_tokenizer: Callable[..., Path],
    code: list[str],
    llama_cpp: ModuleType,
) -> None:
    """SentencePiece's own, of library code and of known hard texts."""
    source = make_llama()
    (source / "tokenizer.model").write_bytes(train_tokenizer(**changes).read_bytes())
    model = llama_cpp.Llama(str(convert(source) / "model.gguf"), vocab_only=True, verbose=False)
    reference = SentencePieceProcessor(model_file=str(source / "tokenizer.model"))
    for text in (*code, *tokenizer.PROBES):
        assert model.tokenize(text.encode(), add_bos=False, special=False) == reference.encode(text)


def test_types_of_pieces(
    convert: Callable[..., Path], make_llama: Callable[..., Path], train_tokenizer: Callable[..., Path]
) -> None:
    """Each piece has SentencePiece's own type in the .gguf, user-defined symbols too; rows beyond it are unused."""
    source = make_llama(vocab_size=803)
    symbols = ["<sep>", "<|im_start|>", "\u2581\u2581\u2581X", "\n\n"]
    model = train_tokenizer(user_defined_symbols=symbols, control_symbols=["<mask>"])
    (source / "tokenizer.model").write_bytes(model.read_bytes())
    out = convert(source)
    from gguf import GGUFReader

    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString(model.read_bytes())
    types = GGUFReader(out / "model.gguf").fields["tokenizer.ggml.token_type"].contents()
    assert types == [piece.type for piece in proto.pieces] + [tokenizer_types.UNUSED] * 3
