"""Our own layers and loop, tensor by tensor: what autograd keeps of a layer, and the allocator's peak of a step."""

from contextlib import nullcontext
from dataclasses import replace
from functools import partial

import pytest
import torch

from puna.arch.attention_pattern import Blocks, Causal, Hybrid, SlidingWindow
from puna.arch.config import ModelConfig
from puna.arch.modules import LINEARS, linear_paths, linear_shapes
from puna.model.attention import attend_causally
from puna.model.banded_attention import BandedAttention, HeadParts
from puna.model.linears.adapter import LoraOverride, LoraSettings
from puna.model.linears.int8 import Int8Linear, Int8WeightLinear
from puna.model.linears.lora import lora_linear
from puna.model.linears.narrow import NarrowLinear
from puna.model.linears.nf4 import Nf4Linear
from puna.model.llama import Llama
from puna.model.loss import chunked_nats
from puna.model.surgery import get_linear, replace_linear
from puna.model.visibility import ways_to_attend
from puna.planning.activations import layer_bytes
from puna.planning.local_attention import mask_bytes
from puna.planning.memory import peak_memory
from puna.planning.settings import FullTraining, LoraTraining, Settings
from puna.training.activations import checkpointed_blocks
from tests.allocated import allocated_peak
from tests.variants import VARIANTS

MODEL = ModelConfig(
    vocab_size=512, dim=64, n_layers=3, n_heads=4, n_kv_heads=2, head_dim=24, ffn_dim=176, max_seq_len=256
)
KINDS = {"lora": {}, "dora": {"magnitudes": True}, "olora": {"start": "olora"}}
QUANTISED = {"int8": Int8WeightLinear, "nf4": Nf4Linear}
WIDE = ("bfloat16 wide", "int8 wide", "nf4 wide", "integers wide")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("targets", [None, LINEARS, ("q_proj", "v_proj"), ("gate_proj",), ("o_proj", "down_proj")])
@pytest.mark.parametrize("base", ["float32", "autocast", "bfloat16", "int8", "nf4", *WIDE])
def test_a_layer_keeps_exactly_the_planned_bytes(base, targets, kind):
    is_wide, in_integers = base.endswith(" wide"), base.startswith("integers")
    base = base.removesuffix(" wide").replace("integers", "int8")
    if targets is None and (kind != "lora" or base in QUANTISED or is_wide):
        return  # what is rounded is not trained, and full training has no kinds
    tokens, autocast = 40, base == "autocast"
    model, settings = built(
        "float32" if autocast else base, targets, kind, tokens=tokens, autocast=autocast, is_wide=is_wide,
        integer_products=in_integers,
    )  # fmt: skip
    x = torch.randn(1, tokens, MODEL.dim, dtype=model.embed_tokens.weight.dtype, requires_grad=True)
    rotate = model.position.rotation(torch.arange(tokens)[None])
    owned = storages([*model.parameters(), *model.buffers(), *rotate.keywords.values()])
    saved = []
    keep = torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: saved.append(tensor) or tensor, lambda tensor: tensor
    )
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast), keep:
        model.layers[0](x, rotate, attend_causally, None)
    kept = {place: size for place, size in storages(saved).items() if place not in owned}
    ratios = 0
    if targets is not None and kind == "dora":  # its row lengths in float32, and m / |W| in the products' type
        ratios = (4 + settings.product_bytes) * sum(linear_shapes(MODEL)[name][0] for name in targets)
    assert sum(kept.values()) - ratios == layer_bytes(MODEL, settings, MODEL.pattern)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(("targets", "vocabulary"), [(None, 512), (None, 16_384), (LINEARS, 512), (LINEARS, 16_384)])
def test_a_planned_step_is_near_the_allocated_peak(targets, vocabulary, checkpointing):
    config = ModelConfig(
        vocab_size=vocabulary, dim=128, n_layers=4, n_heads=2, n_kv_heads=1, head_dim=64, ffn_dim=352, max_seq_len=256
    )
    model, settings = built("float32", targets, "lora", tokens=512, config=config, checkpointing=checkpointing)
    ids = torch.zeros(2, 256, dtype=torch.int64)
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained, fused=True)

    def step():
        optimizer.zero_grad(set_to_none=True)
        with checkpointed_blocks(model) if checkpointing else nullcontext():
            nats = chunked_nats(model.lm_head, model.hidden(ids), ids)
            (nats.sum / nats.count).backward()
        optimizer.step()

    step()
    optimizer.zero_grad(set_to_none=True)
    held = 4 * sum(weight.numel() for weight in model.parameters()) + 8 * sum(weight.numel() for weight in trained)
    assert peak_memory(config, settings, 0).total == pytest.approx(held + allocated_peak(step), rel=0.08)


PATTERNS = [
    SlidingWindow(window=16),
    SlidingWindow(window=40, sinks=3),
    SlidingWindow(window=40, learnable_sink=True),
    SlidingWindow(window=200, learnable_sink=True),
    Blocks(size=32),
    Blocks(size=32, shifted=True),
    Blocks(size=33, shifted=True),
    SlidingWindow(window=7, sinks=1),
    Hybrid(window=24, windows=1, sinks=1),
]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("pattern", PATTERNS, ids=repr)
def test_layers_that_see_locally_keep_exactly_the_planned_bytes(pattern, packed):
    config, rows, tokens = replace(MODEL, pattern=pattern), 2, 100
    model, x = Llama(config), torch.randn(rows, tokens, MODEL.dim, requires_grad=True)
    rotate = model.position.rotation(torch.arange(tokens)[None])
    documents = torch.arange(tokens).div(30, rounding_mode="floor").expand(rows, -1) if packed else None
    ways = ways_to_attend(config, tokens, documents, None, torch.device("cpu"), torch.float32)
    settings = Settings(
        method=FullTraining(), seq=tokens, batch=rows, base="float32", own_loop=True, packed=packed, loss="chunked"
    )
    masks = {place: size for attend in ways for place, size in mask_storages(attend).items()}
    outside = storages([*model.parameters(), *model.buffers(), *rotate.keywords.values()]).keys() | masks.keys()
    for layer, (block, attend) in enumerate(zip(model.layers, ways, strict=True)):
        kept = storages(kept_by(block, x, rotate, attend))
        assert sum(kept[place] for place in kept.keys() - outside) == layer_bytes(
            config, settings, pattern.of_layer(layer)
        )
    if not config.sink_layers:  # which join theirs with the logits anew in each layer
        assert sum(masks.values()) == mask_bytes(config, settings)


@pytest.mark.parametrize("name", [name for name in VARIANTS if name != "batch_norm"])
def test_layers_of_variants_keep_exactly_the_planned_bytes(name):
    config, tokens = replace(MODEL, **VARIANTS[name]), 40
    model, x = Llama(config), torch.randn(1, tokens, MODEL.dim, requires_grad=True)
    rotate = model.position.rotation(torch.arange(tokens)[None])
    angles = rotate.keywords.values() if config.position == "rope" else ()
    (attend, *_) = ways_to_attend(config, tokens, None, None, torch.device("cpu"), torch.float32)
    settings = Settings(method=FullTraining(), seq=tokens, batch=1, base="float32", own_loop=True, loss="chunked")
    outside = storages([*model.parameters(), *model.buffers(), *angles]).keys()
    kept = storages(kept_by(model.layers[0], x, rotate, attend))
    assert sum(kept[place] for place in kept.keys() - outside) == layer_bytes(config, settings, Causal())


def kept_by(block, *inputs):
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda each: saved.append(each) or each, lambda each: each):
        block(*inputs, None)
    return saved


def mask_storages(attend):
    """Of what a way to attend holds."""
    if isinstance(attend, HeadParts):
        return {place: size for way in attend.ways for place, size in mask_storages(way).items()}
    if isinstance(attend, BandedAttention):
        return storages(attend.masks)
    return storages([attend.keywords["mask"]]) if isinstance(attend, partial) else {}


def built(base, targets, kind, *, tokens, config=MODEL, **changes):
    """A model of that base with that adapter, and the settings that plan it."""
    model, method = Llama(config), FullTraining()
    if base != "float32" and not changes.get("is_wide"):
        model = model.to(torch.bfloat16)
    if base in QUANTISED:
        for path in list(linear_paths(config)):
            rounded = Int8Linear if changes.get("integer_products") else QUANTISED[base]
            replace_linear(model, path, rounded.from_dense(get_linear(model, path).weight))
    elif changes.get("is_wide"):
        for path in list(linear_paths(config)):
            replace_linear(model, path, NarrowLinear(get_linear(model, path).weight.detach().bfloat16()))
    if targets is not None:
        ranks = {name: rank for name, rank in (("down_proj", 5), ("q_proj", 3)) if name in targets}
        method = LoraTraining(rank=8, targets=targets, ranks=ranks, magnitudes=kind == "dora", starts=kind == "olora")
        overrides = tuple(LoraOverride(target=name, rank=rank) for name, rank in ranks.items())
        adapter = LoraSettings(rank=8, alpha=8, targets=targets, overrides=overrides, **KINDS[kind])
        model.requires_grad_(requires_grad=False)
        for path in list(linear_paths(config, targets)):
            replace_linear(model, path, lora_linear(get_linear(model, path), adapter, path=path))
    seq, batch = (tokens // 2, 2) if tokens > 40 else (tokens, 1)
    return model, Settings(method=method, seq=seq, batch=batch, base=base, own_loop=True, **changes)


def storages(tensors):
    return {part.untyped_storage().data_ptr(): part.untyped_storage().nbytes() for part in tensors}
