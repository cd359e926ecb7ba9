"""Where an adapter stands: put it beside the named modules, freeze everything else, and take it out again as an Adapter.

Only the adapter's own tensors have requires_grad afterwards; a fresh one computes the base exactly. One that began as a
part of its base (PiSSA, OLoRA) comes out as plain LoRA of twice the rank over the unchanged base, s [B, -B0] [A; A0],
which any reader of PEFT folders can use. Source: Hu et al. 2021, arXiv:2106.09685; docs/math.md 1.15.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from puna.arch.modules import ADAPTABLE, EMBEDDING, HEAD, match_targets, target_paths
from puna.errors import CheckpointMismatch, UsageError
from puna.model.embedding import FactoredEmbedding
from puna.model.linears.adapter import Adapter, LoraOverride, LoraSettings
from puna.model.linears.corrected import CorrectedLinear
from puna.model.linears.kind import dense_weight
from puna.model.linears.lora import DoraLinear, LoraEmbedding, LoraLinear, lora_linear
from puna.model.llama import Llama
from puna.model.surgery import get_linear, replace_linear

__all__ = ["adapter_of", "attach", "attach_adapter", "detach", "named_loras", "put_back", "relative_update"]

_OTHER_BASE = "use the base model that the adapter was trained on"


def attach(model: Llama, settings: LoraSettings, seed: int) -> None:
    """Put a fresh adapter into a model and freeze the rest.

    Args:   seed: of what is drawn, in the order of layers and modules.
    Raises: UsageError: an unknown module (the nearest is named), a rank beyond a matrix, an override that names nothing, an
            adapter already attached. The model is then unchanged.
    """
    match_targets(",".join(settings.targets))
    for path, _ in named_loras(model):
        raise UsageError(f"{path}: an adapter is attached already", "merge it first")
    _check_settings(model, settings)
    generator = torch.Generator().manual_seed(seed)
    device = model.embed_tokens.weight.device
    model.requires_grad_(requires_grad=False)
    for path in target_paths(model.config, settings.targets):
        if path == EMBEDDING:
            setattr(model, path, LoraEmbedding(model.embed_tokens, settings, generator, path).to(device))
        else:
            replace_linear(model, path, lora_linear(get_linear(model, path), settings, generator, path).to(device))


@torch.no_grad()
def attach_adapter(model: Llama, adapter: Adapter) -> None:
    """Put a trained adapter into a model and freeze the rest; its tensors are copied, in float32.

    Raises: CheckpointMismatch: the adapter was made for another model; this one is then unchanged.
    """
    paths = list(target_paths(model.config, adapter.settings.targets))
    adapter.check_fits({path: _shape(model, path) for path in paths})
    for path in paths:
        if path not in adapter.tensors:
            raise CheckpointMismatch(f"adapter: {path}: the adapter has no such Linear", _OTHER_BASE)
    for path, copy in adapter.copies.items():
        if not torch.equal(copy.float(), _weight(model, path).float().cpu()):
            raise CheckpointMismatch(f"adapter: {path}: its own copy of the base's weight differs", _OTHER_BASE)
    attach(model, adapter.settings, seed=0)
    for path, lora in named_loras(model):
        a, b = adapter.tensors[path]
        lora.A.copy_(a)
        lora.B.copy_(b)
        if isinstance(lora, DoraLinear):
            lora.magnitude.copy_(adapter.magnitudes[path])


def detach(model: Llama) -> dict[str, LoraLinear | LoraEmbedding]:
    """Take an attached adapter out: the base stands there again as it was, frozen. Without one nothing changes.

    Returns: what stood there, for `put_back`.
    """
    adapted = dict(named_loras(model))
    for path, lora in adapted.items():
        _put(model, path, lora.base)
    return adapted


def put_back(model: Llama, adapted: Mapping[str, LoraLinear | LoraEmbedding]) -> None:
    """Undo `detach`."""
    for path, lora in adapted.items():
        _put(model, path, lora)


def adapter_of(model: Llama, base_sha256: str | None = None, base_type: str | None = None) -> Adapter:
    """A copy of the adapter in a model. Raises: UsageError: none is attached."""
    loras = dict(named_loras(model))
    if not loras:
        raise UsageError("model: expected an attached adapter, got none", "attach one first")
    settings = next(iter(loras.values())).settings
    if settings.start != "zeros":
        settings = _doubled(settings)
    return Adapter(
        settings=settings,
        tensors={path: _factors(lora) for path, lora in loras.items()},
        magnitudes={
            path: lora.magnitude.detach().clone() for path, lora in loras.items() if isinstance(lora, DoraLinear)
        },
        base_sha256=base_sha256,
        base_type=base_type,
        beside_corrected=any(isinstance(module, CorrectedLinear) for module in model.modules()),
    )


def named_loras(model: Llama) -> Iterator[tuple[str, LoraLinear | LoraEmbedding]]:
    """(path, module) of an attached adapter, in model order."""
    for path in target_paths(model.config, ADAPTABLE):
        module = model.get_submodule(path)
        if isinstance(module, LoraLinear | LoraEmbedding):
            yield path, module


@torch.no_grad()
def relative_update(model: Llama) -> float:
    """|dW| / |W| over all that the adapter stands beside, Frobenius."""
    update = whole = 0.0
    for _, lora in named_loras(model):
        base = lora.base_weight()
        update += float((lora.dense_weight() - base).square().sum())
        whole += float(base.square().sum())
    return float((update / whole) ** 0.5)


def _put(model: Llama, path: str, module: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, module)


def _factors(lora: LoraLinear | LoraEmbedding) -> tuple[Tensor, Tensor]:
    a, b = lora.A.detach(), lora.B.detach()
    if isinstance(lora, LoraLinear) and lora.A0 is not None and lora.B0 is not None:
        return torch.cat((a, lora.A0)), torch.cat((b, -lora.B0), dim=1)
    return a.clone(), b.clone()


def _doubled(settings: LoraSettings) -> LoraSettings:
    """Settings of twice the rank and the same scale, which begin as zeros."""
    factor = math.sqrt(2) if settings.rank_stabilized else 2.0
    overrides = tuple(
        LoraOverride(
            target=each.target,
            rank=None if each.rank is None else 2 * each.rank,
            alpha=None if each.alpha is None else factor * each.alpha,
        )
        for each in settings.overrides
    )
    return replace(settings, rank=2 * settings.rank, alpha=factor * settings.alpha, overrides=overrides, start="zeros")


def _check_settings(model: Llama, settings: LoraSettings) -> None:
    if isinstance(model.embed_tokens, FactoredEmbedding) and not {EMBEDDING, HEAD}.isdisjoint(settings.targets):
        raise UsageError(
            f"{EMBEDDING}, {HEAD}: expected dense tables, got factored ones",
            "adapt the blocks, or train every weight (--full)",
        )
    paths = list(target_paths(model.config, settings.targets))
    for override in settings.overrides:
        if not any(override.matches(path) for path in paths):
            raise UsageError(
                f"lora.overrides: {override.target}: expected a target, got a name that matches none",
                f"targets are {', '.join(settings.targets)}",
            )
    for path in paths:
        rank, limit = settings.rank_of(path), min(_shape(model, path))
        if rank > limit:
            raise UsageError(
                f"lora.rank: expected at most {limit}, the smaller side of {path}, got {rank}",
                "lower --rank, or set another for this module with lora.overrides",
            )


def _shape(model: Llama, path: str) -> tuple[int, ...]:
    if path == EMBEDDING:
        return tuple(model.embed_tokens.weight.shape)
    linear = get_linear(model, path)
    return linear.out_features, linear.in_features


def _weight(model: Llama, path: str) -> Tensor:
    return model.embed_tokens.weight if path == EMBEDDING else dense_weight(get_linear(model, path))
