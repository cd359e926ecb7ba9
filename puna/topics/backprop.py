"""Back-propagation: a Linear's gradients are two more products, dW = dY^T X and dX = dY W."""

from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy

import torch
from torch import Tensor

from puna.arch.modules import linear_shapes
from puna.model.linears.group import project_together
from puna.model.linears.kind import LinearKind, dense_linear
from puna.model.llama import Llama
from puna.model.loss import chunked_nats
from puna.model.visibility import ways_to_attend
from puna.model.walk import walk
from puna.topics.subject import Subject
from puna.topics.topic import Grid, Shown, Topic, Value
from puna.topics.words import Words

__all__ = ["TOPIC"]

_TOKENS, _IN, _OUT = 3, 4, 3
_ENTRIES = 6  # of a model's matrix: those with the largest gradients
_STEP = 1e-5


def _show(subject: Subject, words: Words) -> Shown:
    (d_out, d_in), llama = linear_shapes(subject.config)["o_proj"], subject.llama
    jacobian_numbers = subject.sizes["n"] * d_out * d_out * d_in
    numbers: dict[str, Value] = {"gradient_numbers": d_out * d_in, "jacobian_numbers": jacobian_numbers}
    is_dense = llama is not None and not any(isinstance(each, LinearKind) for each in llama.modules())
    if llama is not None and is_dense and len(subject.ids) > 1:
        numbers |= _of_a_pass(llama, subject.ids_BT, words)
    return Shown.of(model=numbers, linear=_of_one_linear(words))


def _of_a_pass(llama: Llama, ids_BT: Tensor, words: Words) -> dict[str, Value]:
    """The last layer's o_proj under the loss of the text; in float64, for a difference of losses has few digits left."""
    with torch.no_grad():
        *_, last = walk(llama, ids_BT[:, :-1])
    block, norm, head = deepcopy(last.block).double(), deepcopy(llama.norm).double(), deepcopy(llama.lm_head).double()
    for module in (block, norm, head):
        module.requires_grad_(requires_grad=False)
    weight_oi = block.self_attn.o_proj.weight.requires_grad_()
    attend = ways_to_attend(llama.config, ids_BT.shape[1] - 1, None, None, llama.device, torch.float64)[-1]
    x_BTD, inputs, outputs = last.x_BTD.double(), list[Tensor](), list[Tensor]()

    def watch(q_BHTE: Tensor, k_BGSE: Tensor, v_BGSE: Tensor, sink_H: Tensor | None) -> Tensor:
        inputs.append(attend(q_BHTE, k_BGSE, v_BGSE, sink_H))
        return inputs[-1]

    def loss() -> Tensor:
        nats = chunked_nats(head, norm(block(x_BTD, last.rotate, watch, None)), ids_BT[:, 1:])
        return nats.sum / nats.count

    block.self_attn.register_forward_hook(lambda _, __, y_BTD: outputs.append(y_BTD))
    dweight_oi, dy_BTD = torch.autograd.grad(loss(), (weight_oi, outputs[0]))
    by_hand_oi = _weight_gradient_by_hand(dy_BTD[0], inputs[0][0].transpose(0, 1).flatten(1))
    largest = dweight_oi.flatten().abs().topk(_ENTRIES).indices.tolist()
    return _side_by_side(dweight_oi, by_hand_oi, _central_differences(loss, weight_oi, largest), words)


def _of_one_linear(words: Words) -> dict[str, Value]:
    """Random numbers through the engine's Linear; L = |Y|^2 / 2, so that dY is Y."""
    x_TI = torch.randn(_TOKENS, _IN, dtype=torch.float64, requires_grad=True)
    linear = dense_linear(torch.randn(_OUT, _IN, dtype=torch.float64))

    def loss() -> Tensor:
        return project_together(x_TI, linear)[0].square().sum() / 2

    dweight_OI, dx_TI = torch.autograd.grad(loss(), (linear.weight, x_TI))
    dy_TO = linear(x_TI).detach()
    by_hand_OI = _weight_gradient_by_hand(dy_TO, x_TI.detach())
    dx_by_hand_TI = _input_gradient_by_hand(dy_TO, linear.weight.detach())
    central = _central_differences(loss, linear.weight, range(_OUT * _IN))
    return {
        "y_shape": list(dy_TO.shape),
        "jacobian_shape": [*dy_TO.shape, *linear.weight.shape],
        "weight_gradient_shape": list(dweight_OI.shape),
        "input_gradient_difference": float((dx_TI - dx_by_hand_TI).abs().max()),
        **_side_by_side(dweight_OI, by_hand_OI, central, words),
    }


def _weight_gradient_by_hand(dy_TO: Tensor, x_TI: Tensor) -> Tensor:
    return dy_TO.T @ x_TI


def _input_gradient_by_hand(dy_TO: Tensor, weight_OI: Tensor) -> Tensor:
    return dy_TO @ weight_OI


@torch.no_grad()
def _central_differences(loss: Callable[[], Tensor], weight_oi: Tensor, entries: Iterable[int]) -> dict[int, float]:
    """(L(w + step) - L(w - step)) / (2 step) of each entry, the others held."""
    numbers, found = weight_oi.view(-1), dict[int, float]()
    for entry in entries:
        kept = float(numbers[entry])
        numbers[entry] = kept + _STEP
        above = float(loss())
        numbers[entry] = kept - _STEP
        found[entry] = (above - float(loss())) / (2 * _STEP)
        numbers[entry] = kept
    return found


def _side_by_side(
    autograd_oi: Tensor, by_hand_oi: Tensor, central: Mapping[int, float], words: Words
) -> dict[str, Value]:
    """Three ways to one gradient; the differences are relative to its largest number."""
    largest, rows = float(autograd_oi.abs().max()), dict[str, list[float]]()
    for entry, c in central.items():
        place = divmod(entry, autograd_oi.shape[1])
        a, h = float(autograd_oi[place]), float(by_hand_oi[place])
        rows[f"dW[{place[0]}, {place[1]}]"] = [a, h, c, h - a, c - a]
    return {
        "by_hand_difference": float((by_hand_oi - autograd_oi).abs().max()) / largest,
        "central_difference": max(abs(row[-1]) for row in rows.values()) / largest,
        "gradient": Grid.of(words.of("autograd", "by_hand", "central", "by_hand_less", "central_less"), rows),
    }


TOPIC = Topic(
    name="backprop",
    formula=("Y = X W^T", "dW = dY^T X,  dX = dY W", "dW_ij ~ (L(W_ij + e) - L(W_ij - e)) / (2 e)"),
    symbols={"X": "n h*d_h", "W, dW": "d h*d_h", "Y, dY": "n d", "L": "nats"},
    show=_show,
    code=("puna/model/linears/group.py", "dense_products"),
    test=("tests/model/test_group.py", "test_together_equals_separately_in_values_and_gradients"),
)
