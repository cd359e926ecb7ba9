"""A second Llama, for tests alone: Meta's names, Meta's rows, rotation of complex pairs; no code of the product's."""

import torch
from torch.nn import functional as F

__all__ = ["meta_logits"]


def meta_logits(tensors, params, ids_BT):
    """logits_BTV of a Llama whose weights have Meta's names and layout (public llama code, float32)."""
    heads, groups = params["n_heads"], params.get("n_kv_heads", params["n_heads"])
    x = tensors["tok_embeddings.weight"][ids_BT]
    turns = rotation(params, x.shape[1], params["dim"] // heads)
    mask = torch.full((x.shape[1], x.shape[1]), float("-inf")).triu(1)
    for layer in range(params["n_layers"]):
        w = {name.split(".", 2)[2]: t for name, t in tensors.items() if name.startswith(f"layers.{layer}.")}
        h = norm(x, w["attention_norm.weight"], params)
        q = rotate(split(h @ w["attention.wq.weight"].T, heads), turns)
        k = rotate(split(h @ w["attention.wk.weight"].T, groups), turns).repeat_interleave(heads // groups, 2)
        v = split(h @ w["attention.wv.weight"].T, groups).repeat_interleave(heads // groups, 2)
        scores = torch.einsum("bqhd,bkhd->bhqk", q, k) / q.shape[-1] ** 0.5 + mask
        mixed = torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), v).flatten(2)
        x = x + mixed @ w["attention.wo.weight"].T
        h = norm(x, w["ffn_norm.weight"], params)
        gate, up = h @ w["feed_forward.w1.weight"].T, h @ w["feed_forward.w3.weight"].T
        x = x + (F.silu(gate) * up) @ w["feed_forward.w2.weight"].T
    return norm(x, tensors["norm.weight"], params) @ tensors["output.weight"].T


def norm(x, gain, params):
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + params["norm_eps"]) * gain


def split(x, heads):
    return x.view(*x.shape[:2], heads, -1)


def rotation(params, tokens, head_dim):
    frequencies = params.get("rope_theta", 10_000.0) ** -(torch.arange(0, head_dim, 2).double() / head_dim)
    if params.get("use_scaled_rope"):
        frequencies = torch.tensor([scaled(f) for f in frequencies.tolist()], dtype=torch.float64)
    angles = torch.outer(torch.arange(tokens).double(), frequencies)
    return torch.polar(torch.ones_like(angles), angles).to(torch.complex64)


def scaled(frequency, factor=8.0, low=1.0, high=4.0, old=8192):
    wavelength = 2 * torch.pi / frequency
    if wavelength < old / high:
        return frequency
    if wavelength > old / low:
        return frequency / factor
    smooth = (old / wavelength - low) / (high - low)
    return (1 - smooth) * frequency / factor + smooth * frequency


def rotate(x, turns):
    pairs = torch.view_as_complex(x.float().reshape(*x.shape[:-1], -1, 2))
    return torch.view_as_real(pairs * turns[None, :, None]).flatten(3)
