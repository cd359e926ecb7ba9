from dataclasses import astuple, replace

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from puna.adaptation.targets import attach as put_beside
from puna.arch.config import ModelConfig
from puna.arch.modules import ADAPTABLE, LINEARS, linear_paths, linear_shapes
from puna.arch.presets import PRESETS
from puna.model import loss as loss_module
from puna.model.linears.adapter import LoraOverride, LoraSettings
from puna.model.linears.lora import lora_linear
from puna.model.llama import Llama
from puna.model.loss import chunked_nats
from puna.model.positions import rope_angles
from puna.model.surgery import get_linear, replace_linear
from puna.planning.counting import linear_parameters, parameter_count
from puna.planning.memory import (
    LOSS_CHUNK_LEAST_TOKENS,
    LOSS_CHUNK_LOGITS,
    layer_activations,
    nf4_bytes,
    peak_memory,
    weight_bytes,
)
from puna.planning.settings import (
    ADAM_8BIT,
    ADAM_BFLOAT16,
    ADAM_FLOAT32,
    FullTraining,
    Inference,
    LoraTraining,
    Settings,
)

GIB = 2**30
EIGHT = PRESETS["llama-3-8b"].config
ODD = ModelConfig(
    vocab_size=512, dim=64, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=24, ffn_dim=176, max_seq_len=256
)

# GiB without runtime: no checkpoint naive, chunked; checkpoint naive, chunked
PEAKS = {
    ("bfloat16", 1, 2048): (28.30, 27.08, 18.53, 17.31),
    ("bfloat16", 2, 2048): (41.02, 37.35, 21.48, 17.81),
    ("bfloat16", 1, 8192): (66.45, 57.89, 27.37, 19.30),
    ("int8", 1, 2048): (21.81, 20.58, 12.03, 10.81),
    ("int8", 2, 2048): (34.52, 30.85, 14.98, 11.31),
    ("int8", 1, 8192): (59.96, 51.40, 20.87, 12.92),
    ("nf4", 1, 2048): (18.65, 17.43, 8.88, 7.66),
    ("nf4", 2, 2048): (31.37, 27.70, 11.83, 8.16),
    ("nf4", 1, 8192): (56.81, 48.24, 17.72, 9.77),
}
COLUMNS = [(False, "naive"), (False, "chunked"), (True, "naive"), (True, "chunked")]


def lora(seq=2048, batch=1, base="bfloat16", **method):
    return Settings(method=LoraTraining(**method), seq=seq, batch=batch, base=base)


@pytest.mark.parametrize(("base", "batch", "seq"), PEAKS)
def test_peaks_equal_the_reference_table(base, batch, seq):
    wanted = lora(seq, batch, base)
    peaks = [peak_memory(EIGHT, replace(wanted, checkpointing=c, loss=loss), 0).total / GIB for c, loss in COLUMNS]
    assert peaks == pytest.approx(PEAKS[base, batch, seq], abs=0.005001)


def test_stored_weights_of_8b_are_the_known_ones():
    gigabytes = {base: round(weight_bytes(EIGHT, base) / 1e9, 3) for base in ("bfloat16", "int8", "nf4")}
    assert gigabytes == {"bfloat16": 16.061, "int8": 9.087, "nf4": 5.702}
    assert round(nf4_bytes(parameter_count(EIGHT)) / 1e9, 3) == 4.143
    rest = 2 * (parameter_count(EIGHT) - linear_parameters(EIGHT))
    plain = nf4_bytes(linear_parameters(EIGHT), double_quantised=False)
    assert plain == 0.5625 * linear_parameters(EIGHT)
    assert round((rest + plain) / 1e9, 3) == 6.028


@pytest.mark.parametrize(("adam", "gib"), [(ADAM_FLOAT32, 0.625), (ADAM_8BIT, 0.390625), (ADAM_BFLOAT16, 0.3125)])
def test_adapter_states_are_the_known_ones(adam, gib):
    memory = peak_memory(EIGHT, lora(adam=adam))
    assert (memory.adapters + memory.gradients + memory.optimizer) / GIB == gib


@pytest.mark.parametrize("base", ["float32", "bfloat16"])
def test_full_training_holds_16_bytes_a_parameter(base):
    memory = peak_memory(EIGHT, Settings(method=FullTraining(), seq=2048, batch=1, base=base))
    assert memory.weights + memory.gradients + memory.optimizer == 16 * 8_030_261_248
    assert memory.adapters == 0


def test_a_layer_of_8b_keeps_the_known_bytes_per_token():
    assert sum(layer_activations(EIGHT, lora()).values()) == 168_288
    assert layer_activations(EIGHT, replace(lora(), unfused=("heads",)))["repeated_keys_values"] == 12_288
    assert layer_activations(EIGHT, replace(lora(), unfused=("norms",)))["norm_inputs_float32"] == 4 * 4096
    assert layer_activations(EIGHT, replace(lora(), unfused=("softmax",)))["scores"] == 32 * 2048 * 6


@pytest.mark.parametrize(
    ("dropped", "bytes_less"),
    [
        (("down_proj",), 2 * 14_336),
        (("q_proj", "k_proj", "v_proj"), 2 * 4096),
        (("gate_proj", "up_proj"), 2 * 4096),
        (("o_proj",), 0),
        (("q_proj", "k_proj"), 0),
    ],
)
def test_fewer_targets_store_less(dropped, bytes_less):
    targets = tuple(name for name in LINEARS if name not in dropped)
    less = sum(layer_activations(EIGHT, lora(targets=targets)).values())
    assert 168_288 - less == bytes_less + 2 * 16 * len(dropped)


@pytest.mark.parametrize("method", [Inference(), FullTraining(), LoraTraining()])
@pytest.mark.parametrize("base", ["float32", "bfloat16"])
def test_the_terms_add_up_and_more_tokens_never_need_less(method, base):
    totals = []
    for seq in (1, 64, 256):
        memory = peak_memory(ODD, Settings(method=method, seq=seq, batch=2, base=base))
        *terms, total = astuple(memory)
        assert sum(terms) == total
        assert min(terms) >= 0
        totals.append(total)
    assert totals == sorted(totals)


def test_the_phases_do_not_coincide():
    memory = peak_memory(EIGHT, replace(lora(seq=8192, base="int8"), checkpointing=True), 0)
    kept, block, loss = 8192 * 262_144, 8192 * (168_288 + 57_344) + 2 * 4096 * 14_336, 1024 * 1_282_560
    assert memory.activations + memory.logits == kept + max(block, loss)


def test_inference_holds_weights_the_cache_and_the_last_logits():
    memory = peak_memory(EIGHT, Settings(method=Inference(), seq=8192, batch=4, base="int8"))
    assert memory.weights == weight_bytes(EIGHT, "int8")
    assert memory.kv_cache == 4 * GIB
    assert memory.logits == 4 * 128_256 * 6
    assert memory.gradients == memory.optimizer == memory.adapters == 0


@pytest.mark.parametrize("kind", [{}, {"magnitudes": True}, {"start": "olora"}], ids=["lora", "dora", "olora"])
@pytest.mark.parametrize("targets", [None, LINEARS, ("q_proj", "v_proj"), ("gate_proj",), ("o_proj", "down_proj")])
def test_a_float32_layer_keeps_exactly_the_planned_bytes(targets, kind):
    model, tokens = Llama(ODD), 40
    ratios = 0
    method = FullTraining()
    if targets is not None:
        method = LoraTraining(
            rank=8,
            targets=targets,
            ranks={"down_proj": 5, "q_proj": 3},
            magnitudes="magnitudes" in kind,
            starts="start" in kind,
        )
        overrides = [LoraOverride(target=name, rank=rank) for name, rank in method.ranks.items() if name in targets]
        attach(model, targets, 8, overrides=tuple(overrides), **kind)
        ratios = 2 * 4 * sum(linear_shapes(ODD)[name][0] for name in targets) * method.magnitudes
    x = torch.randn(1, tokens, ODD.dim, requires_grad=True)
    cos, sin = rope_angles(model.frequencies_P, torch.arange(tokens)[None])
    owned = storages([*model.parameters(), *model.buffers(), cos, sin])
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor) or tensor, lambda tensor: tensor):
        model.layers[0](x, cos, sin, None, None)
    kept = {place: size for place, size in storages(saved).items() if place not in owned}
    settings = Settings(method=method, seq=tokens, batch=1, base="float32")
    per_token = sum(layer_activations(ODD, settings).values())
    assert sum(kept.values()) - ratios == tokens * per_token


@pytest.mark.parametrize("targets", [None, LINEARS, ("q_proj", "v_proj")])
def test_a_planned_float32_step_is_near_the_allocated_peak(targets):
    config, batch, seq = PRESETS["small"].config, 2, 256
    model = Llama(config)
    if targets is not None:
        attach(model, targets, 16)
    method = FullTraining() if targets is None else LoraTraining(targets=targets)
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained, fused=True)
    ids = torch.zeros(batch, seq, dtype=torch.int64)

    def step():
        nats = chunked_nats(model.lm_head, model.hidden(ids), ids)
        (nats.sum / nats.count).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    step()
    held = 4 * sum(weight.numel() for weight in model.parameters()) + 8 * sum(weight.numel() for weight in trained)
    planned = peak_memory(config, Settings(method=method, seq=seq, batch=batch, base="float32"), 0).total
    assert planned == pytest.approx(held + allocated_peak(step), rel=0.1)


@pytest.mark.parametrize("kind", [{}, {"magnitudes": True}, {"start": "pissa"}], ids=["lora", "dora", "pissa"])
def test_an_attached_adapter_holds_exactly_the_planned_numbers(build_llama, kind):
    targets = LINEARS if kind else ADAPTABLE
    overrides = (LoraOverride(target="down_proj", rank=2),)
    model = build_llama()
    frozen = sum(weight.numel() for weight in model.parameters())
    put_beside(model, LoraSettings(rank=3, alpha=3, targets=targets, overrides=overrides, **kind), seed=0)
    held = [*model.parameters(), *model.buffers()]
    method = LoraTraining(
        rank=3, targets=targets, ranks={"down_proj": 2}, magnitudes="magnitudes" in kind, starts="start" in kind
    )
    planned = peak_memory(model.config, Settings(method=method, seq=8, batch=1, base="float32"))
    trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    assert planned.gradients == 4 * trained
    assert planned.adapters == 4 * (sum(part.numel() for part in held) - frozen - model.frequencies_P.numel())


def test_packed_documents_keep_one_mask_for_all_layers_and_angles_of_each_row():
    model, batch, seq = Llama(ODD), 3, 40
    ids = torch.zeros(batch, seq, dtype=torch.int64)
    documents, positions = torch.arange(seq).expand(batch, seq) // 9, torch.arange(seq).expand(batch, seq) % 9

    def kept(*packing):
        saved = []
        pack = lambda tensor: saved.append(tensor) or tensor  # noqa: E731
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            model.hidden(ids, *packing)
        return sum(storages([*saved, *model.parameters()]).values())

    settings = Settings(method=FullTraining(), seq=seq, batch=batch, base="float32")
    more = peak_memory(ODD, replace(settings, packed=True)).total - peak_memory(ODD, settings).total
    assert kept(positions, documents) - kept() == more == 4 * batch * seq * seq + 4 * (batch - 1) * seq * ODD.head_dim


def test_the_planned_chunk_of_the_loss_is_the_real_one():
    assert loss_module._CHUNK_LOGITS == LOSS_CHUNK_LOGITS
    assert loss_module._CHUNK_TOKENS == LOSS_CHUNK_LEAST_TOKENS


def attach(model, targets, rank, **changes):
    model.requires_grad_(False)
    settings = LoraSettings(rank=rank, alpha=rank, targets=targets, **changes)
    for path in list(linear_paths(model.config, targets)):
        replace_linear(model, path, lora_linear(get_linear(model, path), settings, path=path))


def storages(tensors):
    return {part.untyped_storage().data_ptr(): part.untyped_storage().nbytes() for part in tensors}


def is_free(targets, group):
    return targets is None or not set(targets) & set(group)


def allocated_peak(step):
    """The largest sum of live bytes that the allocator handed out during a step."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        step()
    events = [event for event in record.profiler.kineto_results.events() if event.name() == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak
