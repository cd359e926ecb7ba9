"""What compression needs to know about a model, for each Linear y = W x: sums over the tokens of calibration text.

    G = sum x x^T                                    what W reads; one forward pass
    H = sum g g^T, g = d loss / d y, token by token  what the loss feels of an error in y; a backward pass more

Linears that read the same input (q, k, v; gate, up) share one G, and their outputs stacked have one H, whose diagonal
blocks are the members' own. Only these sums are kept, no activations and no gradients of weights. Products are summed
in float32 over at most 4096 tokens, then added in float64: they are squared data, and float32 alone misses the optimum
(7.24 against 8.52 perplexity in Ashkboos et al. 2024, arXiv:2401.15024).

H under `sampled` labels is the Fisher information, under the text's own the empirical one (Martens 2020, arXiv:1412.1193;
Kunstner et al. 2019, arXiv:1905.12558). A few tokens have enormous gradients, and a window's ends are unlike its middle:
a token's g, of its group's stacked output, is shortened to the 99th percentile of the lengths in its window, and the
first and the last eighth of the positions are left out of H (and of the percentile). docs/compression.md 1.4.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Literal, get_args

import torch
from torch import Tensor

from puna.arch.config import ModelConfig
from puna.arch.modules import linear_shapes
from puna.compression.groups import linear_groups
from puna.errors import BadData, unknown_name
from puna.model.linears.kind import AnyLinear, LinearKind, dense_weight
from puna.model.llama import Llama
from puna.model.loss import chunked_nats
from puna.model.surgery import get_linear, replace_linear

__all__ = [
    "InputStatistics",
    "InputSum",
    "Labels",
    "TwoSidedStatistics",
    "add_gram",
    "collect_statistics",
    "collect_two_sided_statistics",
    "differentiate",
    "frozen",
    "refuse_no_tokens",
    "sum_inputs",
    "too_few_tokens",
    "watched",
]

Labels = Literal["sampled", "data"]
_CHUNK_TOKENS = 4096
_SAMPLED_TOKENS = 256  # logits held at a time while labels are drawn
_CLIP_QUANTILE = 0.99
_EDGE = 8  # an eighth of a window's positions at each end says nothing about H


@dataclass(frozen=True, slots=True, kw_only=True)
class InputStatistics:
    """What each block Linear reads, by its path, over `tokens` tokens; float64.

    grams: sum of x x^T, (d_in, d_in). magnitudes: mean of abs(x), (d_in).
    """

    grams: dict[str, Tensor]
    magnitudes: dict[str, Tensor]
    tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TwoSidedStatistics(InputStatistics):
    """The inputs, and what the loss feels at each output.

    gradients:       sum of g g^T, float64 (d_out, d_out), by the path of each Linear and the name of each group.
    gradient_tokens: how many tokens those sums are over. labels, seed: what the loss was of.
    """

    gradients: dict[str, Tensor]
    gradient_tokens: int
    labels: Labels
    seed: int


@torch.no_grad()
def collect_statistics(model: Llama, windows: Iterable[Tensor]) -> InputStatistics:
    """Run the model over calibration windows and sum the Gram of every distinct Linear input.

    Args:   windows: ids_BT, int64, of the training split only.
    Errors: BadData: no window at all, or activations that are not finite.
    """
    firsts = {paths[0]: name for name, paths in linear_groups(model.config).items()}
    sums = sum_inputs(model, windows, firsts)
    grams, magnitudes, tokens = _input_results(model, {firsts[path]: total for path, total in sums.items()})
    return InputStatistics(grams=grams, magnitudes=magnitudes, tokens=tokens)


@torch.no_grad()
def sum_inputs(model: Llama, windows: Iterable[Tensor], paths: Iterable[str]) -> dict[str, "InputSum"]:
    """What the Linears at some paths read in calibration windows, each summed by its path.

    Errors: BadData: no window at all, or inputs that are not finite.
    """
    sums = {path: InputSum(model, path) for path in paths}
    with watched(model, {path: total.add for path, total in sums.items()}):
        for ids_BT in windows:
            model.hidden(ids_BT.to(model.embed_tokens.weight.device))
    for path, total in sums.items():
        total.check(path)
    return sums


def collect_two_sided_statistics(
    model: Llama, windows: Iterable[Tensor], *, labels: Labels = "sampled", seed: int = 0
) -> TwoSidedStatistics:
    """As `collect_statistics`, with a backward pass over the same windows for H.

    Args:   windows: ids_BT; each row is a window of its own. labels: `sampled` from the model's own predictions by
            `seed`, or the text's own next tokens, `data`. The loss is a sum over tokens, in nats.
    Errors: BadData: no window at all, activations or gradients that are not finite. UsageError: unknown labels.
    """
    if labels not in get_args(Labels):
        raise unknown_name("labels", labels, get_args(Labels))
    device, groups = model.embed_tokens.weight.device, linear_groups(model.config)
    inputs = {name: InputSum(model, paths[0]) for name, paths in groups.items()}
    gradients = {name: _GradientSum(model, paths) for name, paths in groups.items()}
    generator = torch.Generator(device).manual_seed(seed) if labels == "sampled" else None
    see_gradients = {
        path: partial(gradients[name].receive, member)
        for name, paths in groups.items()
        for member, path in enumerate(paths)
    }
    with torch.enable_grad(), frozen(model), watched(model, _see_inputs(model, inputs), see_gradients):
        for ids_BT in windows:
            differentiate(model, ids_BT.to(device), generator)
    grams, magnitudes, tokens = _input_results(model, inputs)
    outputs: dict[str, Tensor] = {}
    for name, paths in groups.items():
        outputs |= gradients[name].blocks(name, paths)
    return TwoSidedStatistics(
        grams=grams,
        magnitudes=magnitudes,
        tokens=tokens,
        gradients=outputs,
        gradient_tokens=next(iter(gradients.values())).tokens,
        labels=labels,
        seed=seed,
    )


def too_few_tokens(config: ModelConfig, tokens: int, *, damped: bool = False) -> str | None:
    """Why the Grams of so few tokens are singular, and what becomes of them, for people; None: they need not be."""
    widest = max(d_in for d_out, d_in in linear_shapes(config).values())
    if tokens >= widest:
        return None
    fate = "count as the mean direction's tenth does" if damped else "are dropped first"
    return (
        f"calibration: {tokens:,} tokens for inputs up to {widest:,} wide: directions that they do not reach {fate}; "
        "more text fits better"
    )


def differentiate(model: Llama, ids_BT: Tensor, generator: torch.Generator | None) -> None:
    """Forward and backward over some windows; the graph ends with this call."""
    hidden_BTD = model.hidden(ids_BT)
    if generator is None:
        nats = chunked_nats(model.lm_head, hidden_BTD[:, :-1], ids_BT[:, 1:])
    else:
        nats = chunked_nats(model.lm_head, hidden_BTD, _sampled(model.lm_head, hidden_BTD.detach(), generator))
    nats.sum.backward()


@torch.no_grad()
def _sampled(head: AnyLinear, hidden_BTD: Tensor, generator: torch.Generator) -> Tensor:
    """labels_BT, one drawn from the model's prediction at each token."""
    rows = hidden_BTD.flatten(0, -2).split(_SAMPLED_TOKENS)
    drawn = [torch.multinomial(head(row).float().softmax(-1), 1, generator=generator).squeeze(1) for row in rows]
    return torch.cat(drawn).view(hidden_BTD.shape[:-1])


class InputSum:
    """What one input has summed up to: the Gram of what the Linear at a path reads, its mean sizes, how many tokens."""

    def __init__(self, model: Llama, path: str) -> None:
        width, device = get_linear(model, path).in_features, model.embed_tokens.weight.device
        self.gram_ii = torch.zeros(width, width, dtype=torch.float64, device=device)
        self.magnitude_i = torch.zeros(width, dtype=torch.float64, device=device)
        self.tokens = 0

    def add(self, x: Tensor) -> None:
        """Add what a Linear is about to read, (..., d_in)."""
        x_Ni = x.detach().flatten(0, -2)
        self.tokens += len(x_Ni)
        for chunk_Ni in _chunks(x_Ni):
            self.gram_ii.add_(chunk_Ni.T @ chunk_Ni)
            self.magnitude_i.add_(chunk_Ni.abs().sum(0))

    def check(self, path: str) -> None:
        """Errors: BadData: no token was read; or naming the Linear whose inputs were not finite."""
        refuse_no_tokens(self.tokens)
        if not self.gram_ii.isfinite().all():
            raise BadData(f"calibration: expected finite inputs of {path}, got NaN or infinity", "check the weights")


class _GradientSum:
    """What the gradients of a group's stacked output have summed up to; a window's wait until all members' are there."""

    def __init__(self, model: Llama, paths: tuple[str, ...]) -> None:
        self.rows = [get_linear(model, path).out_features for path in paths]
        width, device = sum(self.rows), model.embed_tokens.weight.device
        self.gram_oo = torch.zeros(width, width, dtype=torch.float64, device=device)
        self.tokens = 0
        self._waiting: dict[int, Tensor] = {}

    def receive(self, member: int, g_BTo: Tensor) -> None:
        """Take one member's gradient; a tensor's hook."""
        self._waiting[member] = g_BTo
        if len(self._waiting) == len(self.rows):
            self._add(torch.cat([self._waiting[index] for index in range(len(self.rows))], dim=-1))
            self._waiting.clear()

    def _add(self, g_BTo: Tensor) -> None:
        edge = g_BTo.shape[1] // _EDGE
        g_BTo = g_BTo[:, edge : g_BTo.shape[1] - edge]
        g_BTo = g_BTo.to(torch.promote_types(g_BTo.dtype, torch.float32))
        lengths_BT1 = g_BTo.norm(dim=-1, keepdim=True)
        limit_B11 = lengths_BT1.quantile(_CLIP_QUANTILE, dim=1, keepdim=True)
        tiny = torch.finfo(g_BTo.dtype).tiny
        g_Mo = (g_BTo * (limit_B11 / lengths_BT1.clamp_min(tiny)).clamp_max(1)).flatten(0, 1)
        self.tokens += len(g_Mo)
        add_gram(self.gram_oo, g_Mo)

    def blocks(self, name: str, paths: tuple[str, ...]) -> dict[str, Tensor]:
        """The stacked sum by the group's name, and by the members' paths their diagonal blocks of it."""
        if not self.gram_oo.isfinite().all():
            raise BadData(f"calibration: expected finite gradients at {name}, got NaN or infinity", "check the weights")
        ends = torch.tensor(self.rows).cumsum(0).tolist()
        parts = [slice(end - size, end) for end, size in zip(ends, self.rows, strict=True)]
        own = {path: self.gram_oo[part, part] for path, part in zip(paths, parts, strict=True)}
        return {name: self.gram_oo} | own


class _Watched(LinearKind):
    """A Linear whose input, output and output's gradient are shown to others.

    It stands in the model as a kind, so that the forward pass asks each Linear by itself: plain Linears of one input
    are multiplied as one node of the graph, past their hooks.
    """

    def __init__(
        self,
        inner: AnyLinear,
        see_input: Callable[[Tensor], None] | None,
        see_gradient: Callable[[Tensor], None] | None,
        see_output: Callable[[Tensor], None] | None,
    ) -> None:
        super().__init__()
        self.in_features, self.out_features = inner.in_features, inner.out_features
        self.inner, self.see_input, self.see_gradient, self.see_output = inner, see_input, see_gradient, see_output

    def forward(self, x: Tensor) -> Tensor:
        """Args: x (..., d_in). Returns: (..., d_out)."""
        if self.see_input is not None:
            self.see_input(x)
        y: Tensor = self.inner(x)
        if self.see_output is not None:
            self.see_output(y)
        if self.see_gradient is not None:
            if not y.requires_grad:  # nothing before the first layer's Linears is learned: the graph begins here
                y.requires_grad_()
            y.register_hook(self.see_gradient)
        return y

    def dense_weight(self) -> Tensor:
        """The weight of the Linear that is watched."""
        return dense_weight(self.inner)


@contextmanager
def watched(
    model: Llama,
    see_inputs: Mapping[str, Callable[[Tensor], None]],
    see_gradients: Mapping[str, Callable[[Tensor], None]] = MappingProxyType({}),
    see_outputs: Mapping[str, Callable[[Tensor], None]] = MappingProxyType({}),
) -> Iterator[None]:
    """Within the block, what the Linears at these paths are about to read, what they give and its gradients are shown."""
    originals = {path: get_linear(model, path) for path in {**see_inputs, **see_gradients, **see_outputs}}
    try:
        for path, linear in originals.items():
            seen = see_inputs.get(path), see_gradients.get(path), see_outputs.get(path)
            replace_linear(model, path, _Watched(linear, *seen))
        yield
    finally:
        for path, linear in originals.items():
            replace_linear(model, path, linear)


def _see_inputs(model: Llama, inputs: Mapping[str, InputSum]) -> dict[str, Callable[[Tensor], None]]:
    """A group's input is read off its first member."""
    return {paths[0]: inputs[name].add for name, paths in linear_groups(model.config).items()}


@contextmanager
def frozen(model: Llama) -> Iterator[None]:
    """No weight asks for a gradient meanwhile."""
    learning = [weight for weight in model.parameters() if weight.requires_grad]
    try:
        for weight in learning:
            weight.requires_grad = False
        yield
    finally:
        for weight in learning:
            weight.requires_grad = True


def _input_results(model: Llama, inputs: dict[str, InputSum]) -> tuple[dict[str, Tensor], dict[str, Tensor], int]:
    """(grams, magnitudes) by path, shared where the input is, and the tokens they are over."""
    grams, magnitudes, tokens = {}, {}, 0
    for name, paths in linear_groups(model.config).items():
        total = inputs[name]
        total.check(paths[0])
        tokens = total.tokens
        magnitude_i = total.magnitude_i / tokens
        for path in paths:
            grams[path], magnitudes[path] = total.gram_ii, magnitude_i
    return grams, magnitudes, tokens


def refuse_no_tokens(tokens: int) -> None:
    """Errors: BadData where calibration text gave no tokens."""
    if tokens == 0:
        raise BadData("calibration: expected at least one window of tokens, got none", "give more calibration text")


def add_gram(total_dd: Tensor, rows_Nd: Tensor) -> None:
    """Add the sum of x x^T over rows to a float64 total."""
    for chunk_Nd in _chunks(rows_Nd):
        total_dd.add_(chunk_Nd.T @ chunk_Nd)


def _chunks(rows_Nd: Tensor) -> Iterable[Tensor]:
    """Some rows at a time, in float32 or wider."""
    return rows_Nd.to(torch.promote_types(rows_Nd.dtype, torch.float32)).split(_CHUNK_TOKENS)
