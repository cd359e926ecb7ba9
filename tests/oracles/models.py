"""The small models that llama.cpp is asked about, rebuilt from their seeds wherever they are needed."""

from dataclasses import replace
from pathlib import Path

import torch

from puna.arch.config import ModelConfig
from puna.arch.rope_scaling import LinearScaling, Llama3Scaling, YarnScaling
from puna.model.init import initialise
from puna.model.llama import Llama
from puna.tokens.learning import learn_tokenizer
from puna.tokens.tokenizer import Tokenizer, tokenizer_from_json
from puna.weights.conversion import convert_checkpoint
from puna.weights.folder import save_folder
from puna.weights.headers import read_header
from tests.gpt2_vocabulary import learn_gpt2_json

__all__ = ["IDS", "SHAPES", "TEXTS", "build_model", "build_tokenizer", "write_gguf_file"]

_BASE = ModelConfig(
    vocab_size=384, dim=64, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=16, ffn_dim=96, max_seq_len=256,
    rope_theta=10_000.0, tied_embeddings=True,
)  # fmt: skip
SHAPES = {
    "grouped, tied": {},
    "multi-head, untied": {"n_kv_heads": 4, "tied_embeddings": False},
    "multi-query, llama3 scaling": {
        "n_kv_heads": 1,
        "rope_theta": 500_000.0,
        "rope_scaling": Llama3Scaling(factor=8.0, original_max_seq_len=64),
    },
    "llama 3.1": {"rope_theta": 500_000.0, "rope_scaling": Llama3Scaling(factor=8.0)},
    "wide heads, linear scaling": {"head_dim": 24, "rope_scaling": LinearScaling(factor=4.0)},
    "wide rows": {"dim": 256, "n_layers": 1, "head_dim": 64, "ffn_dim": 256, "tied_embeddings": False},
    "yarn scaling": {"rope_scaling": YarnScaling(factor=4.0, original_max_seq_len=64)},
    "GPT-2's words": {},
}
IDS = torch.randint(0, 379, (48,), generator=torch.Generator().manual_seed(5)).tolist()  # below the special ids
TEXTS = (
    "The llama walks.  Twice!\n\n\tdef f(x): return x + 1",
    "<|begin_of_text|>user<|eot_id|> 12345 don't 'LL",
    "高原上的羊驼 🦙 e\u0301   ",
    "",
)


def build_model(name: str) -> Llama:
    """The seeded model of that shape, with weights at which every part of it shows."""
    model = initialise(Llama(replace(_BASE, **SHAPES[name])), seed=3)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() == 1:
                weight.add_(torch.empty(weight.shape).normal_(0.0, 0.1, generator=generator))
            else:
                weight.mul_(weight.shape[1] ** -0.5 / weight.std())
    return model.eval()


def build_tokenizer(name: str) -> Tokenizer:
    """The vocabulary of 384 of the model of that name, learned from a few lines."""
    lines = [f"The llama number {n} walks {n * n} steps, and {n % 7} of them are uphill.\n" for n in range(300)]
    return _learn_gpt2(lines) if name == "GPT-2's words" else learn_tokenizer(lines, _BASE.vocab_size)


def _learn_gpt2(lines: list[str]) -> Tokenizer:
    """A vocabulary whose words are GPT-2's."""
    text = learn_gpt2_json(lines, _BASE.vocab_size, ["<|begin|>", "<|end|>"])
    return tokenizer_from_json(text, {"bos_token": "<|begin|>", "eos_token": "<|end|>"})


def write_gguf_file(name: str, folder: Path, dtype: str | None = None) -> Path:
    """The model and its tokenizer as a GGUF file of ours in `folder`."""
    source, target = folder / f"{name} source", folder / f"{name}.gguf"
    save_folder(build_model(name), source, build_tokenizer(name))
    convert_checkpoint(read_header(source), target, "gguf", dtype=dtype, tokenizer=build_tokenizer(name))
    return target
