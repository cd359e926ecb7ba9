"""Mixed precision: products in 16 bits, and what adds up or is small in 32."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from puna.arch.config import ModelConfig
from puna.arch.modules import parameter_count
from puna.model.batch import Batch
from puna.model.llama import Llama
from puna.model.positions import rope_angles, rope_frequencies
from puna.planning.settings import ADAM_BFLOAT16, ADAM_FLOAT32, ADAM_MIXED
from puna.topics.subject import Subject
from puna.topics.topic import Grid, Rows, Shown, Topic, Value, watching
from puna.topics.words import Words
from puna.training.checkpoint import TrainState
from puna.training.config import StepBudget, TrainingConfig
from puna.training.faults import after_overflow
from puna.training.optimizer import build_optimizer
from puna.training.step import autocast, batch_nats, train_step

__all__ = ["TOPIC"]

_HALF, _BRAIN, _WIDE = torch.float16, torch.bfloat16, torch.float32
_RATE = 1e-5  # as in fine-tuning
_KINDS = ("weights", "gradients", "moments", "products", "logits", "stream", "norms", "softmax", "angles", "loss")


def _show(subject: Subject, words: Words) -> Shown:
    numbers: dict[str, Value] = {}
    if subject.llama is not None and len(subject.ids) > 1:
        numbers |= _of_a_step(subject.llama, subject.ids_BT, words)
    numbers["state_bytes"] = _states(subject.config, words)
    return Shown.of(model=numbers, example=_example(words))


def _of_a_step(llama: Llama, ids_BT: Tensor, words: Words) -> dict[str, Value]:
    """The text's loss in each type, and one real step in bfloat16 in which the first layer learns."""
    batch = Batch(ids_BT=ids_BT[:, :-1], targets_BT=ids_BT[:, 1:])
    llama.requires_grad_(requires_grad=False)
    learning = [each for each in llama.layers[0].parameters() if each.is_floating_point()]
    for each in learning:
        each.requires_grad_()
    nats = _nats_and_gradients(llama, batch)
    gradients_N = torch.cat([each.grad.flatten() for each in learning if each.grad is not None])
    before = [each.detach().clone() for each in learning]
    types = _types_of_a_step(llama, batch, learning[0])
    updates = [new.detach() - old for new, old in zip(learning, before, strict=True)]
    rows: Rows = {
        words.numbers[kind]: [_name(types[kind]), types[kind].itemsize, words.numbers[f"why_{kind}"]]
        for kind in _KINDS
        if kind in types  # a model may have no norms
    }
    return nats | {
        "small_gradients_share": _share_below(gradients_N, 1),
        "small_scaled_gradients_share": _share_below(gradients_N, TrainState().loss_scale),
        "lost_updates_share": _share_lost(before, updates),
        "types": Grid.of(words.of("type", "bytes", "why"), rows),
    }


def _nats_and_gradients(llama: Llama, batch: Batch) -> dict[str, Value]:
    """Mean nats in each type; the gradients that stay are those of float32."""
    found = dict[str, Value]()
    for precision in ("float16", "bfloat16", "float32"):
        llama.zero_grad()
        with autocast(precision, llama.device):
            nats = batch_nats(llama, batch)
        (nats.sum / nats.count).backward()
        found[f"{precision}_nats"] = float(nats.sum.detach() / nats.count)
    return found


def _types_of_a_step(llama: Llama, batch: Batch, weight: nn.Parameter) -> dict[str, torch.dtype]:
    """Read off a step as it runs; that of the softmax's sums off its kernel, which no hook sees into."""
    block, types = llama.layers[0], dict[str, torch.dtype]()
    places = {"norms": llama.config.norm_names[0], "products": "self_attn"}
    watched = {kind: block.get_submodule(path) for kind, path in places.items()}
    watched |= {"stream": block, "logits": llama.lm_head}
    optimizer = build_optimizer(llama, TrainingConfig(budget=StepBudget(steps=1)))
    with watching(watched, lambda kind, _, made: types.update({kind: made.dtype})):
        train_step(llama, optimizer, [batch], rate=_RATE, clip=1.0, precision="bfloat16")
    with torch.no_grad(), autocast("bfloat16", llama.device):
        types["loss"] = batch_nats(llama, batch).sum.dtype
        types["angles"] = rope_angles(rope_frequencies(llama.config), torch.arange(2)[None])[0].dtype
    narrow = torch.zeros(3, 1, 1, 2, 8, dtype=types["products"])  # queries, keys, values
    types["softmax"] = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(*narrow)[1].dtype  # of its sums
    assert weight.grad is not None
    moment = optimizer.state[weight]["exp_avg"]
    return types | {"weights": weight.dtype, "gradients": weight.grad.dtype, "moments": moment.dtype}


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _share_below(gradients_N: Tensor, scale: float) -> float:
    """Of the gradients that are not 0, what float16 holds with fewer bits or not at all."""
    there = gradients_N[gradients_N != 0]
    return float(((there * scale).to(_HALF).abs() < torch.finfo(_HALF).smallest_normal).float().mean())


def _share_lost(weights: Sequence[Tensor], updates: Sequence[Tensor]) -> float:
    """Of the updates that are not 0, those that would leave a bfloat16 weight as it was."""
    pairs = ((old.to(_BRAIN), update.to(_BRAIN)) for old, update in zip(weights, updates, strict=True))
    return float(torch.cat([(old + update == old)[update != 0] for old, update in pairs]).float().mean())


def _states(config: ModelConfig, words: Words) -> Grid:
    """What AdamW holds of one parameter, and of all."""
    rows = dict[str, list[float]]()
    for name, way in {"all_wide": ADAM_FLOAT32, "mixed": ADAM_MIXED, "all_narrow": ADAM_BFLOAT16}.items():
        each = way.weight + way.gradient + way.states
        rows[words.numbers[name]] = [way.weight, way.gradient, way.states, each, each * parameter_count(config)]
    return Grid.of(words.of("weight", "gradient", "states", "sum", "model"), rows)


def _example(words: Words) -> dict[str, Value]:
    """W <- W - eta g, in 16 bits alone and in float32; and a gradient too small for float16."""
    gradient, scale = torch.tensor(2.0**-26), TrainState().loss_scale
    limits = {_name(dtype): _limits(torch.finfo(dtype)) for dtype in (_HALF, _BRAIN, _WIDE)}
    return {
        "sum_float16": float(torch.ones((), dtype=_HALF) + 2.0**-11),
        "sum_float32": float(torch.ones((), dtype=_WIDE) + 2.0**-11),
        "sum_bfloat16": float(torch.ones((), dtype=_BRAIN) + 2.0**-8),
        "gradient_float16": float(gradient.to(_HALF)),
        "gradient_scaled": float((gradient * scale).to(_HALF).float() / scale),
        "first_scale": int(scale),
        "scale_after_overflow": int(after_overflow(TrainState()).loss_scale),
        "limits": Grid.of(words.of("largest", "smallest_normal", "smallest", "spacing"), limits),
    }


def _limits(found: torch.finfo) -> list[str]:
    numbers = (found.smallest_normal, found.smallest_normal * found.eps, found.eps)
    return [f"{found.max:.5g}", *(f"{each:.2g}" for each in numbers)]


TOPIC = Topic(
    name="precision",
    formula=(
        "w16 = round(w),  g16 = d(S loss) / d w16,  g = g16 / S",
        "m <- b1 m + (1 - b1) g,  v <- b2 v + (1 - b2) g^2",
        "w <- w - lr (m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + eps) + decay w)",
        "g not finite: no step, S <- S / 2;  2,000 good steps: S <- 2 S",
    ),
    symbols={
        "w": "float32",
        "w16": "float16, bfloat16",
        "g16": "float16, bfloat16",
        "g": "float32",
        "m, v": "float32",
        "S": "2^16",
    },
    show=_show,
    code=("puna/training/step.py", "train_step"),
    test=("tests/training/test_precision.py", "test_without_a_float32_copy_a_small_update_is_lost"),
)
