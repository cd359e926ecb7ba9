"""Select Linears by path and replace them: the one way in which LoRA, low rank, int8 and NF4 enter a model."""

from collections.abc import Callable, Iterator, Mapping

from torch import Tensor, nn

from puna.arch.modules import EMBEDDING, HEAD, LINEARS, linear_paths, read_one_input
from puna.model.embedding import FactoredEmbedding
from puna.model.linears.fused import fused_linears
from puna.model.linears.kind import AnyLinear, LinearKind
from puna.model.llama import Llama

__all__ = ["get_linear", "named_linears", "replace_group", "replace_linear", "replace_linears", "replace_tables"]


def get_linear(model: Llama, path: str) -> AnyLinear:
    """The Linear at a path such as `layers.3.mlp.up_proj`, whatever kind stands there."""
    linear = model.get_submodule(path)
    assert isinstance(linear, nn.Linear | LinearKind), path
    return linear


def named_linears(model: Llama, names: tuple[str, ...] = LINEARS) -> Iterator[tuple[str, AnyLinear]]:
    """(path, Linear) of the blocks' Linears with these names, layer by layer."""
    for path in linear_paths(model.config, names):
        yield path, get_linear(model, path)


def replace_linear(model: Llama, path: str, new: AnyLinear) -> None:
    """Put another Linear where `path` points; it must have the same in_features and out_features."""
    old = get_linear(model, path)
    assert (old.in_features, old.out_features) == (new.in_features, new.out_features), path
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, new)


def replace_group(model: Llama, Us_oR: Mapping[str, Tensor], V_Ri: Tensor) -> None:
    """Put low-rank Linears that share V where the paths point. Args: Us_oR: by path, of one input, in model order."""
    assert read_one_input(tuple(Us_oR)), tuple(Us_oR)
    for path, linear in zip(Us_oR, fused_linears(Us_oR.values(), V_Ri), strict=True):
        replace_linear(model, path, linear)


def replace_linears(model: Llama, names: tuple[str, ...], build: Callable[[str, AnyLinear], AnyLinear]) -> None:
    """Replace each named Linear by what `build(path, old)` makes of it."""
    for path, old in named_linears(model, names):
        replace_linear(model, path, build(path, old))


def replace_tables(model: Llama, table: nn.Module | None = None, head: AnyLinear | None = None) -> None:
    """Put another input table, another head or both into a model. A tied head is made to read the table again."""
    if table is not None:
        setattr(model, EMBEDDING, table)
    if head is not None:
        assert not model.config.tied_embeddings, "a tied head follows its table"
        setattr(model, HEAD, head)
    if model.config.tied_embeddings:
        if isinstance(model.embed_tokens, FactoredEmbedding):
            setattr(model, HEAD, model.embed_tokens.head())
        else:
            model.lm_head.weight = model.embed_tokens.weight
