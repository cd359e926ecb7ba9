"""Streamed layers: the resident path to the bit, two layers' weights on the device, nothing written to the host's."""

import copy
import math
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from torch import nn

from puna.adaptation.merge import merge
from puna.adaptation.streaming import stream_layers
from puna.adaptation.targets import adapter_of, attach, named_loras
from puna.arch.modules import EMBEDDING, HEAD, LINEARS, linear_shapes, match_linears
from puna.errors import UsageError
from puna.model.batch import Batch
from puna.model.linears.adapter import LoraSettings
from puna.model.linears.int8 import Int8WeightLinear
from puna.model.linears.kind import dense_weight
from puna.model.linears.low_rank import LowRankLinear
from puna.model.linears.nf4 import Nf4Linear
from puna.model.surgery import named_linears, replace_linears
from puna.planning.memory import bus_bytes_per_step, peak_memory
from puna.planning.settings import LoraTraining, Settings
from puna.training.activations import checkpointed_blocks
from puna.training.config import StepBudget, TrainingConfig
from puna.training.optimizer import build_optimizer, trainable
from puna.training.step import batch_nats, train_step
from tests.fused import fuse

LAYERS = 4
SETTINGS = LoraSettings(rank=4, alpha=8.0, targets=LINEARS)
TRAINING = TrainingConfig(budget=StepBudget(steps=3))
BASES = {
    "dense": None,
    "bfloat16": None,
    "int8": lambda _, old: Int8WeightLinear.from_dense(dense_weight(old)),
    "nf4": lambda _, old: Nf4Linear.from_dense(dense_weight(old)),
    "low rank": lambda _, old: LowRankLinear(old.weight.detach()[:, :8].clone(), old.weight.detach()[:8].clone()),
}


def batch(seed: int, rows: int = 2, seq: int = 12) -> Batch:
    ids = torch.randint(512, (rows, seq + 1), generator=torch.Generator().manual_seed(seed))
    documents = torch.arange(seq).div(5, rounding_mode="floor").expand(rows, -1)
    return Batch(ids_BT=ids[:, :-1], targets_BT=ids[:, 1:], documents_BT=documents)


@pytest.fixture
def build(build_llama):
    """`build(base, settings, **changes)`: a model with an adapter that is no longer fresh."""

    def adapted(base="dense", settings=SETTINGS, **changes):
        model = build_llama(**{"n_layers": LAYERS, **changes})
        if base == "fused":
            fuse(model)
        elif BASES[base] is not None:
            replace_linears(model, LINEARS, BASES[base])
        if base == "bfloat16":
            model.to(torch.bfloat16)
        attach(model, settings, seed=0)
        generator = torch.Generator().manual_seed(7)
        with torch.no_grad():
            for _, lora in named_loras(model):
                lora.B.add_(torch.empty(lora.B.shape).normal_(generator=generator) * 0.1)
        return model

    return adapted


def learned(model, *, checkpointing=False, precision="float32"):
    """The losses, the gradients of each of 3 steps (the first of two micro-batches), and the adapter at the end."""
    optimizer, seen = build_optimizer(model, TRAINING), []
    with checkpointed_blocks(model, is_on=checkpointing):
        for step in range(3):
            batches = [batch(step), batch(9)][: 1 if step else 2]
            outcome = train_step(model, optimizer, batches, rate=1e-2, clip=1.0, precision=precision)
            seen += [torch.tensor([outcome.nats, outcome.gradient_norm], dtype=torch.float64)]
            seen += [weight.grad.clone() for weight in trainable(model).values()]
    return seen + [weight.detach().clone() for weight in trainable(model).values()]


def assert_same(first, second):
    assert len(first) == len(second) > 0
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("base", ["dense", "int8", "nf4"])
def test_three_steps_are_those_of_the_resident_layers_to_the_bit(build, base, tied, checkpointing):
    model = build(base, tied_embeddings=tied)
    streamed = {count: copy.deepcopy(model) for count in (0, 1, 3, LAYERS)}
    expected = learned(model, checkpointing=checkpointing)
    for count, other in streamed.items():
        stream_layers(other, count, "cpu")
        assert_same(learned(other, checkpointing=checkpointing), expected)


@pytest.mark.parametrize(
    ("base", "changes", "precision", "checkpointing"),
    [
        ("dense", {}, "bfloat16", False),
        ("bfloat16", {}, "float32", False),
        ("nf4", {}, "bfloat16", False),
        ("low rank", {}, "bfloat16", False),
        ("fused", {}, "bfloat16", False),
        ("fused", {"targets": ("down_proj",)}, "float32", False),
        ("dense", {"targets": match_linears("mlp")}, "float32", False),  # q, k and v without an adapter are one node
        ("dense", {"targets": ("q_proj", "up_proj")}, "bfloat16", True),
        ("dense", {}, "bfloat16", True),
        ("dense", {"magnitudes": True}, "bfloat16", False),
        ("nf4", {"start": "pissa"}, "float32", False),
        ("dense", {"targets": (EMBEDDING, *LINEARS, HEAD)}, "float32", True),
    ],
)
def test_so_are_those_of_other_adapters_and_precisions(build, base, changes, precision, checkpointing):
    model = build(base, replace(SETTINGS, **changes), tied_embeddings=False)
    other = copy.deepcopy(model)
    stream_layers(other, LAYERS, "cpu", embedding=True)
    expected = learned(model, checkpointing=checkpointing, precision=precision)
    assert_same(learned(other, checkpointing=checkpointing, precision=precision), expected)


def bases(model, first):
    """The frozen Linears of the layers from `first` on."""
    for path, linear in named_linears(model):
        if int(path.split(".")[1]) >= first:
            yield getattr(linear, "base", linear)


def storages(model, first):
    """The host's frozen storages of these layers: place and contents."""
    tensors = {t for base in bases(model, first) for t in (*base.parameters(), *base.buffers())}
    return [(tensor.data_ptr(), tensor.clone()) for tensor in tensors]


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("base", ["dense", "int8", "nf4", "fused"])
def test_two_layers_at_most_are_on_the_device_and_the_host_keeps_its_own(build, base, checkpointing):
    model, seen = build(base), []
    before = storages(model, 1)
    stream = stream_layers(model, LAYERS - 1, "cpu")
    each = sum(tensor.nbytes for _, tensor in before) // (LAYERS - 1)
    assert stream.layer_bytes == (each,) * (LAYERS - 1)
    assert stream.held_bytes == 0

    def look(*_):
        seen.append(stream.held_bytes)

    for block in model.layers:
        for part in (block.self_attn, block.mlp):
            part.register_forward_hook(look)
    for weight in trainable(model).values():
        weight.register_hook(look)
    learned(model, checkpointing=checkpointing)
    assert set(seen) <= {0, 2 * each}  # the next copy has begun before a layer computes; 0: before the first
    assert len(seen) > 4 * 14 * LAYERS
    for (place, tensor), (now, same) in zip(before, storages(model, 1), strict=True):
        assert place == now
        assert torch.equal(tensor, same)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("count", [1, 2, 3, LAYERS])
def test_a_step_copies_each_layer_twice_but_for_two_at_each_turn(build, count, checkpointing):
    model = build()
    stream = stream_layers(model, count, "cpu")
    each, copied = sum(stream.layer_bytes[:1]), []
    with checkpointed_blocks(model, is_on=checkpointing):
        for step in range(3):
            before = stream.copied_bytes
            batch_nats(model, batch(step)).sum.backward()
            copied.append((stream.copied_bytes - before) // each)
    turn = max(0, count - 2)
    assert copied == [min(count, 2) + 2 * turn, 2 * turn, 2 * turn]


@pytest.mark.parametrize("count", [1, 2, 3, LAYERS])
@pytest.mark.parametrize("base", ["dense", "bfloat16", "int8", "nf4"])
def test_the_plan_counts_what_a_step_copies_and_what_is_away(build, base, count):
    model = build(base)
    precision = "float32" if base == "dense" else base
    is_wide = base in ("int8", "nf4")
    resident = Settings(method=LoraTraining(), seq=12, batch=2, base=precision, own_loop=True, is_wide=is_wide)
    plan = replace(resident, streamed_layers=count)
    stream = stream_layers(model, count, "cpu")
    for step in range(2):  # the first finds nothing on the device
        before = stream.copied_bytes
        batch_nats(model, batch(step)).sum.backward()
    assert stream.copied_bytes - before == bus_bytes_per_step(model.config, plan)
    weights = [peak_memory(model.config, settings).weights for settings in (resident, plan)]
    assert weights[0] - weights[1] == sum(stream.layer_bytes) - stream.held_bytes


@pytest.mark.parametrize(
    ("base", "precision"), [("dense", "float32"), ("dense", "bfloat16"), ("int8", "float32"), ("nf4", "bfloat16")]
)
@pytest.mark.parametrize("targets", [LINEARS, ("q_proj",)], ids=["all", "q_proj"])
def test_autograd_keeps_no_weight_of_a_layer_whose_turn_is_over(build, base, precision, targets):
    every = replace(SETTINGS, targets=(EMBEDDING, *targets))  # then the first layer's input learns too
    resident = build(base, every, n_layers=6)
    alone = ("k_proj", "v_proj") if targets == ("q_proj",) else ()  # no node of ours multiplies them
    shapes = linear_shapes(resident.config)
    is_rounded = (base, precision) == ("dense", "bfloat16")
    casts = 6 * 2 * sum(math.prod(shapes[name]) for name in alone) if is_rounded else 0
    streamed = copy.deepcopy(resident)
    stream = stream_layers(streamed, 6, "cpu")
    frozen = {place for place, _ in storages(resident, 0)}

    def kept(model) -> list[torch.UntypedStorage]:
        found: dict[int, torch.UntypedStorage] = {}

        def note(tensor):
            found[tensor.untyped_storage()._cdata] = tensor.untyped_storage()
            return tensor

        context = torch.autocast("cpu", torch.bfloat16) if precision == "bfloat16" else nullcontext()
        with context, torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            model.hidden(batch(0).ids_BT)
        return list(found.values())

    activations = sum(storage.nbytes() for storage in kept(resident) if storage.data_ptr() not in frozen) - casts
    assert stream.held_bytes == 0
    assert sum(storage.nbytes() for storage in kept(streamed)) == activations + 2 * stream.layer_bytes[0]


def test_only_the_streamed_weights_and_the_table_stay_in_the_host(build):
    model = build(tied_embeddings=False)
    stream_layers(model, 3, "meta", embedding=True)
    places = {name: weight.device.type for name, weight in model.named_parameters()}
    stay = {"embed_tokens.weight", *(f"{path}.base.weight" for path, _ in named_linears(model) if path[7] in "123")}
    assert len(stay) == 1 + 3 * len(LINEARS)
    assert {name for name, place in places.items() if place == "cpu"} == stay
    rows = model.embed_tokens(torch.arange(5))
    assert (rows.shape, rows.device.type) == ((5, model.config.dim), "meta")


def test_evaluating_between_steps_changes_nothing(build):
    model = build()
    other = copy.deepcopy(model)
    stream_layers(other, 4, "cpu")
    for step in range(2):
        results = []
        for each in (model, other):
            with torch.no_grad():
                logits = each(batch(step).ids_BT)
            batch_nats(each, batch(step)).sum.backward()
            results.append([logits, *(weight.grad.clone() for weight in trainable(each).values())])
        assert_same(*results)


def test_a_way_back_that_was_broken_off_leaves_no_trace(build):
    model = build()
    other = copy.deepcopy(model)
    stream = stream_layers(other, 4, "cpu")

    def fail(_):
        raise RuntimeError("broken off")

    nats = batch_nats(other, batch(0)).sum
    handle = trainable(other)["layers.2.mlp.up_proj.A"].register_hook(fail)
    with pytest.raises(RuntimeError, match="broken off"):
        nats.backward()
    handle.remove()
    for weight in trainable(other).values():
        weight.grad = None
    assert stream.held_bytes <= 2 * stream.layer_bytes[0]
    assert_same(learned(other), learned(model))


def test_the_adapter_comes_out_and_merges_as_from_a_resident_model(build):
    model = build(tied_embeddings=False)
    other = copy.deepcopy(model)
    stream_layers(other, 4, "cpu", embedding=True)
    assert set(other.state_dict()) == set(model.state_dict())
    for path, factors in adapter_of(model).tensors.items():
        assert_same(adapter_of(other).tensors[path], factors)
    merge(other)
    merge(model)
    assert_same(list(other.state_dict().values()), list(model.state_dict().values()))


def test_what_cannot_be_streamed_is_refused_and_changes_nothing(build, tiny):
    model = build()
    modules = [type(module) for module in model.modules()]
    with pytest.raises(UsageError, match=r"expected 0 to 4, got 6"):
        stream_layers(model, 6, "cpu")
    with pytest.raises(UsageError, match=r"expected 0 to 4, got -1"):
        stream_layers(model, -1, "cpu")
    with pytest.raises(UsageError, match=r"expected a head of its own.*tied"):
        stream_layers(model, 1, "cpu", embedding=True)
    with pytest.raises(UsageError, match="expected a CUDA device, got cpu"):
        stream_layers(model, 1, "cpu", pinned=True)
    with pytest.raises(UsageError, match=r"layers\.1\.self_attn\.q_proj: expected frozen weights"):
        stream_layers(tiny, 1, "cpu")
    assert [type(module) for module in model.modules()] == modules
    stream_layers(model, 1, "cpu")
    with pytest.raises(UsageError, match="got one that streams"):
        stream_layers(model, 1, "cpu")


class Side:
    """In place of CUDA's streams, and of their events: says in which order they would be told what."""

    def __init__(self, said):
        self.said = said

    def wait_stream(self, other):
        self.said.append("follows the products")

    def record_event(self):
        self.said.append(f"copy {sum(line.startswith('copy') for line in self.said)}")
        return self.said[-1]

    def wait_event(self, event):
        self.said.append(f"products wait for {event}")


def test_a_copy_follows_what_was_computed_before_and_a_layer_waits_for_its_own(build, monkeypatch):
    model = build()
    other = copy.deepcopy(model)
    stream, said = stream_layers(other, 3, "cpu"), []
    stream._side = Side(said)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Side(said))
    monkeypatch.setattr(torch.cuda, "stream", nullcontext)
    for layer in (1, 2, 3):
        mlp = other.layers[layer].mlp
        mlp.register_forward_hook(lambda *_, layer=layer: said.append(f"{layer} forward"))
        mlp.down_proj.B.register_hook(lambda _, layer=layer: said.append(f"{layer} back"))
    batch_nats(other, batch(0)).sum.backward()
    follow, wait = "follows the products", "products wait for copy"
    up = [follow, "copy 0", follow, "copy 1", f"{wait} 0", "1 forward", follow, "copy 2", f"{wait} 1", "2 forward"]
    turn = [f"{wait} 2", "3 forward", "3 back"]
    assert said == [*up, *turn, follow, "copy 3", "2 back", f"{wait} 3", "1 back"]
    stream._drop(0)
    said.clear()
    stream._copy(0)
    stream._drop(0)  # without having computed: memory that a copy still fills is not given back
    assert said == [follow, "copy 0", "products wait for copy 0"]
    batch_nats(model, batch(0)).sum.backward()
    assert_same(*([weight.grad for weight in trainable(each).values()] for each in (model, other)))


@pytest.mark.gpu
@pytest.mark.parametrize("base", ["dense", "int8", "nf4"])
def test_on_a_gpu_the_same_is_learned_with_weights_in_locked_memory(build, base):
    model = build(base, tied_embeddings=False)
    other = copy.deepcopy(model)
    stream = stream_layers(other, LAYERS, "cuda", embedding=True)
    assert all(t.is_pinned() for linear in bases(other, 0) for t in (*linear.parameters(), *linear.buffers()))
    for mine, theirs in zip(learned(other), learned(model.cuda()), strict=True):
        torch.testing.assert_close(mine, theirs)
    assert stream.held_bytes == 2 * stream.layer_bytes[0]
    assert isinstance(other.embed_tokens, nn.Embedding)
    assert other.embed_tokens.weight.device.type == "cpu"
