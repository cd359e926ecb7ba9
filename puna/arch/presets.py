"""Named models: the released Llamas, the Transformer's base width, and two small ones to train here.

Sources: the released params.json and config.json files; Llama papers arXiv:2302.13971, 2307.09288, 2407.21783; the Transformer
arXiv:1706.03762.
"""

from dataclasses import dataclass

from puna.arch.config import ModelConfig
from puna.arch.rope_scaling import Llama3Scaling, NoScaling, RopeScaling
from puna.errors import unknown_name

__all__ = ["PRESETS", "Generation", "Preset", "find_preset"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """What a family of models shares beside its sizes; training_tokens is None where nothing was published."""

    name: str
    tokenizer: str
    training_tokens: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """A named configuration."""

    name: str
    config: ModelConfig
    generation: Generation


_OURS = Generation(name="puna", tokenizer="byte-level BPE, learned", training_tokens=None)
_LLAMA_1S = Generation(name="Llama 1", tokenizer="SentencePiece BPE", training_tokens=1.0e12)
_LLAMA_1 = Generation(name="Llama 1", tokenizer="SentencePiece BPE", training_tokens=1.4e12)
_LLAMA_2 = Generation(name="Llama 2", tokenizer="SentencePiece BPE", training_tokens=2.0e12)
_LLAMA_3 = Generation(name="Llama 3", tokenizer="tiktoken BPE", training_tokens=15e12)
_LLAMA_31 = Generation(name="Llama 3.1", tokenizer="tiktoken BPE", training_tokens=15e12)
_LLAMA_32 = Generation(name="Llama 3.2", tokenizer="tiktoken BPE", training_tokens=9e12)


def _llama(
    generation: Generation, name: str, dim: int, layers: int, heads: int, kv_heads: int, ffn: int, context: int,
    *, eps: float = 1e-5, scale: float | None = None, tied: bool = False,
) -> Preset:  # fmt: skip
    third = generation.name.startswith("Llama 3")
    scaling: RopeScaling = NoScaling() if scale is None else Llama3Scaling(factor=scale)
    config = ModelConfig(
        vocab_size=128_256 if third else 32_000,
        dim=dim,
        n_layers=layers,
        n_heads=heads,
        n_kv_heads=kv_heads,
        head_dim=dim // heads,
        ffn_dim=ffn,
        max_seq_len=context,
        rope_theta=500_000.0 if third else 10_000.0,
        rope_scaling=scaling,
        norm_eps=eps,
        tied_embeddings=tied,
    )
    return Preset(name=name, config=config, generation=generation)


def _small(name: str, vocab: int, dim: int, layers: int, heads: int, kv_heads: int, ffn: int, context: int) -> Preset:
    config = ModelConfig(
        vocab_size=vocab,
        dim=dim,
        n_layers=layers,
        n_heads=heads,
        n_kv_heads=kv_heads,
        head_dim=dim // heads,
        ffn_dim=ffn,
        max_seq_len=context,
        rope_theta=10_000.0,
        tied_embeddings=True,
    )
    return Preset(name=name, config=config, generation=_OURS)


def _transformer_2017() -> Preset:
    """The decoder's half of the base model of Vaswani et al. 2017, without the attention to an encoder."""
    config = ModelConfig(
        vocab_size=37_000,
        dim=512,
        n_layers=6,
        n_heads=8,
        n_kv_heads=8,
        head_dim=64,
        ffn_dim=2048,
        max_seq_len=512,
        tied_embeddings=True,
        norm="layer",
        norm_placement="post",
        position="sinusoidal",
        ffn="relu",
        mlp_bias=True,
    )
    return Preset(name="transformer-2017", config=config, generation=_OURS)


PRESETS: dict[str, Preset] = {
    preset.name: preset
    for preset in (
        _small("tiny", 512, 64, 2, 4, 2, 176, 256),
        _small("small", 4096, 256, 4, 8, 2, 704, 512),
        _transformer_2017(),
        _llama(_LLAMA_1S, "llama-1-7b", 4096, 32, 32, 32, 11_008, 2048, eps=1e-6),
        _llama(_LLAMA_1, "llama-1-33b", 6656, 60, 52, 52, 17_920, 2048, eps=1e-6),
        _llama(_LLAMA_1, "llama-1-65b", 8192, 80, 64, 64, 22_016, 2048, eps=1e-5),
        _llama(_LLAMA_2, "llama-2-7b", 4096, 32, 32, 32, 11_008, 4096),
        _llama(_LLAMA_2, "llama-2-13b", 5120, 40, 40, 40, 13_824, 4096),
        _llama(_LLAMA_2, "llama-2-70b", 8192, 80, 64, 8, 28_672, 4096),
        _llama(_LLAMA_3, "llama-3-8b", 4096, 32, 32, 8, 14_336, 8192),
        _llama(_LLAMA_3, "llama-3-70b", 8192, 80, 64, 8, 28_672, 8192),
        _llama(_LLAMA_31, "llama-3.1-8b", 4096, 32, 32, 8, 14_336, 131_072, scale=8.0),
        _llama(_LLAMA_31, "llama-3.1-70b", 8192, 80, 64, 8, 28_672, 131_072, scale=8.0),
        _llama(_LLAMA_31, "llama-3.1-405b", 16_384, 126, 128, 8, 53_248, 131_072, scale=8.0),
        _llama(_LLAMA_32, "llama-3.2-1b", 2048, 16, 32, 8, 8192, 131_072, scale=32.0, tied=True),
        _llama(_LLAMA_32, "llama-3.2-3b", 3072, 28, 24, 8, 8192, 131_072, scale=32.0, tied=True),
    )
}


def find_preset(name: str) -> Preset:
    """The preset of that name. Errors: UsageError offering the nearest name."""
    if name not in PRESETS:
        raise unknown_name("preset", name, PRESETS)
    return PRESETS[name]
