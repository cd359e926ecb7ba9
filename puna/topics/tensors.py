"""Tensors: all that a forward pass makes, the matrices that it multiplies by, and what that costs."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from puna.arch.config import ModelConfig
from puna.arch.modules import HEAD, linear_shapes, norm_count, parameter_count
from puna.model.linears.derived import value_of
from puna.model.linears.kind import dense_weight
from puna.model.llama import Llama
from puna.model.surgery import get_linear
from puna.model.walk import look_inside, walk
from puna.planning.compute import ForwardFlops, forward_flops
from puna.planning.counting import attended_pairs
from puna.topics.subject import Subject
from puna.topics.topic import Grid, Rows, Shown, Topic, Value, relative_difference, watching
from puna.topics.words import Words

__all__ = ["TOPIC"]

# In the order of a pass, of the layers the first; in heads queries and keys are turned already.
_AXES = {
    "ids": "1 n", "embed_tokens": "1 n d", "input_layernorm": "1 n d", "q_proj": "1 n h*d_h", "k_proj": "1 n g*d_h",
    "v_proj": "1 n g*d_h", "q, heads": "1 h n d_h", "k, heads": "1 g n d_h", "v, heads": "1 g n d_h",
    "P v, heads": "1 h n d_h", "o_proj": "1 n d", "post_attention_layernorm": "1 n d", "gate_proj": "1 n f",
    "up_proj": "1 n f", "into down_proj": "1 n f", "down_proj": "1 n d", "post_feedforward_layernorm": "1 n d",
    "norm": "1 n d", "lm_head": "1 n V",
}  # fmt: skip
_DEAR = 10  # operations for each number that no product makes: more than any norm, rotation or softmax needs


@torch.no_grad()
def _show(subject: Subject, words: Words) -> Shown:
    config, tokens = subject.config, len(subject.ids)
    flops, beside = forward_flops(config, tokens), _DEAR * _made_beside_products(config, tokens)
    made = _shapes_alone(subject) if subject.llama is None else _pass(subject.llama, subject.ids_BT)
    numbers: dict[str, Value] = {
        "layers": config.n_layers,
        "width": config.dim,
        "parameters": parameter_count(config),
        "products_share": flops.total / (flops.total + beside),
        "linears": _linears(config, flops, words),
        "work": _work(flops, beside, words),
        "tensors": _tensors(made, words),
    }
    if subject.llama is not None:
        head = get_linear(subject.llama, HEAD)
        by_hand = _head_by_hand(made["norm"], dense_weight(head))
        if isinstance(head, nn.Linear) and head.bias is not None:  # of a study variant
            by_hand += head.bias
        numbers["linear_difference"] = relative_difference(made["lm_head"], by_hand)
    return Shown.of(model=numbers)


def _linears(config: ModelConfig, flops: ForwardFlops, words: Words) -> Grid:
    """The matrices of one layer, and the head."""
    shapes = {**linear_shapes(config), HEAD: (config.vocab_size, config.dim)}
    work = {name: total // config.n_layers for name, total in flops.linears.items()} | {HEAD: flops.head}
    rows: Rows = {name: [f"{d_out} × {d_in}", d_out * d_in, work[name]] for name, (d_out, d_in) in shapes.items()}
    return Grid.of(words.of("out_in", "weights", "flops"), rows)


def _made_beside_products(config: ModelConfig, tokens: int) -> int:
    """Numbers that norms, rotations, gates, sums and softmax write in a pass."""
    of_token = (norm_count(config) + 2 * config.n_layers) * config.dim
    of_token += config.n_layers * (config.q_dim + config.kv_dim + config.ffn_dim)
    return tokens * of_token + attended_pairs(config, tokens)


def _work(flops: ForwardFlops, beside: int, words: Words) -> Grid:
    names = words.of("in_layers", "in_attention", "in_head", "beside")
    parts = (sum(flops.linears.values()), flops.attention, flops.head, beside)
    rows = {name: [part, part / sum(parts)] for name, part in zip(names, parts, strict=True)}
    return Grid.of(words.of("flops", "share"), rows)


def _shapes_alone(subject: Subject) -> dict[str, Tensor]:
    """What a pass of a model in 16 bits would make, without its numbers."""
    sizes, made = {"1": 1, **subject.sizes}, dict[str, Tensor]()
    absent = {"input_layernorm", "post_feedforward_layernorm"} - {*subject.config.norm_names}
    absent |= {"gate_proj"} - {*linear_shapes(subject.config)}
    for name, axes in _AXES.items():
        shape, dtype = [sizes[axis] for axis in axes.split()], torch.int64 if name == "ids" else torch.bfloat16
        if name not in absent:
            made[name] = torch.empty(shape, dtype=dtype, device="meta")
    return made


def _pass(llama: Llama, ids_BT: Tensor) -> dict[str, Tensor]:
    """What a pass makes, by the names of _AXES."""
    made = {"ids": ids_BT}

    def keep(path: str, given: Tensor, output: Tensor) -> None:
        name = path.rpartition(".")[2]
        made.setdefault(name, output)
        if name == "down_proj":
            made.setdefault("into down_proj", value_of(given))

    with watching({path: each for path, each in llama.named_modules() if path.rpartition(".")[2] in _AXES}, keep):
        llama(ids_BT)
    view = look_inside(next(walk(llama, ids_BT)))
    return made | {"q, heads": view.q_BHTE, "k, heads": view.k_BGSE, "v, heads": view.v_BGSE, "P v, heads": view.y_BHTE}


def _tensors(made: Mapping[str, Tensor], words: Words) -> Grid:
    rows = dict[str, list[float | str]]()
    for name, axes in _AXES.items():
        if name in made:
            x = made[name]
            rows[name] = [axes, " × ".join(map(str, x.shape)), str(x.dtype).removeprefix("torch."), x.nbytes]
    return Grid.of(words.of("axes", "shape", "type", "bytes"), rows)


def _head_by_hand(x_BTD: Tensor, weight_VD: Tensor) -> Tensor:
    """Y = X W^T, W the head's."""
    return x_BTD.float() @ weight_VD.T


TOPIC = Topic(
    name="tensors",
    formula=(
        "Y = X W^T  (for one vector y = W x),  2 n d_in d_out FLOPs",
        "ids, E[ids], L x (norm, attention, norm, feed-forward), norm, head",
    ),
    symbols={
        "X": "n d",
        "W_q, W_o^T": "h*d_h d",
        "W_k, W_v": "g*d_h d",
        "W_gate, W_up, W_down^T": "f d",
        "W_head": "V d",
    },
    show=_show,
    code=("puna/model/linears/group.py", "project_together"),
    test=("tests/model/test_group.py", "test_together_equals_separately_in_values_and_gradients"),
)
