"""Where LoRA stands: put it beside the named Linears, freeze everything else, and take it out again as an Adapter.

Only A and B of the named Linears have requires_grad afterwards; a fresh adapter (B = 0) computes the base exactly.
Source: Hu et al. 2021, arXiv:2106.09685; docs/math.md 1.15.
"""

from collections.abc import Iterator

import torch

from puna.arch.modules import match_linears
from puna.errors import CheckpointMismatch, UsageError
from puna.model.linears.kind import AnyLinear
from puna.model.linears.lora import Adapter, LoraLinear, LoraSettings
from puna.model.llama import Llama
from puna.model.surgery import named_linears, replace_linears

__all__ = ["adapter_of", "attach", "attach_adapter", "named_loras"]


def attach(model: Llama, settings: LoraSettings, seed: int) -> None:
    """Put a fresh adapter into a model and freeze the rest.

    Args:   seed: of all A, drawn in the order of layers and Linears.
    Raises: UsageError: an unknown Linear (the nearest is named), an adapter already attached.
    """
    names = match_linears(",".join(settings.targets))
    for path, _ in named_loras(model):
        raise UsageError(f"{path}: an adapter is attached already", "merge it first")
    generator = torch.Generator().manual_seed(seed)
    device = model.embed_tokens.weight.device

    def build(_: str, base: AnyLinear) -> LoraLinear:
        return LoraLinear(base, settings, generator).to(device)

    model.requires_grad_(requires_grad=False)
    replace_linears(model, names, build)


@torch.no_grad()
def attach_adapter(model: Llama, adapter: Adapter) -> None:
    """Put a trained adapter into a model and freeze the rest; its tensors are copied, in float32.

    Raises: CheckpointMismatch: the adapter was made for a model of another shape; the model is then unchanged.
    """
    settings = adapter.settings
    shapes = {
        path: (linear.out_features, linear.in_features) for path, linear in named_linears(model, settings.targets)
    }
    adapter.check_fits(shapes)
    for path in sorted(shapes.keys() - adapter.tensors.keys()):
        raise CheckpointMismatch(
            f"adapter: {path}: the adapter has no such Linear", "use the base model that the adapter was trained on"
        )
    attach(model, settings, seed=0)
    for path, lora in named_loras(model):
        a, b = adapter.tensors[path]
        lora.A.copy_(a)
        lora.B.copy_(b)


def adapter_of(model: Llama, base_sha256: str | None = None) -> Adapter:
    """A copy of the adapter in a model. Raises: UsageError: none is attached."""
    loras = dict(named_loras(model))
    if not loras:
        raise UsageError("model: expected an attached adapter, got none", "attach one first")
    settings = next(iter(loras.values())).settings
    tensors = {path: (lora.A.detach().clone(), lora.B.detach().clone()) for path, lora in loras.items()}
    return Adapter(settings=settings, tensors=tensors, base_sha256=base_sha256)


def named_loras(model: Llama) -> Iterator[tuple[str, LoraLinear]]:
    """(path, LoraLinear) of an attached adapter, layer by layer."""
    for path, linear in named_linears(model):
        if isinstance(linear, LoraLinear):
            yield path, linear
