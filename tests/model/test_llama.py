"""The whole model: what transformers' LlamaForCausalLM computes, and the laws of its embedding and its masks."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from torch.nn import functional as F

from puna.arch.modules import linear_paths
from puna.arch.rope_scaling import LinearScaling, Llama3Scaling, NoScaling, YarnScaling
from puna.model.llama import Llama

Build = Callable[..., Llama]

# A context of 64 makes llama3 scaling keep, blend and divide some of the tiny model's frequencies.
LLAMA3 = Llama3Scaling(factor=8.0, original_max_seq_len=64)
MODELS: dict[str, dict[str, Any]] = {
    "MHA": {"n_kv_heads": 4},
    "GQA 4 to 1": {"n_heads": 8, "n_kv_heads": 2, "head_dim": 8},
    "MQA": {"n_kv_heads": 1},
    "untied": {"tied_embeddings": False},
    "wide heads": {"head_dim": 26},
    "narrow heads": {"head_dim": 6, "tied_embeddings": False},
    "odd sizes": {"vocab_size": 509, "dim": 60, "ffn_dim": 101},
    "llama3 rope": {"rope_scaling": LLAMA3, "rope_theta": 500_000.0},
    "linear rope": {"rope_scaling": LinearScaling(factor=4.0)},
    "yarn rope": {"rope_scaling": YarnScaling(factor=4.0, original_max_seq_len=64)},
    "large eps": {"norm_eps": 1e-2},
}


def reference(model: Llama) -> transformers.LlamaForCausalLM:
    """transformers' Llama with the same weights, copied by name."""
    c = model.config
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": c.rope_theta}
    if isinstance(c.rope_scaling, LinearScaling):
        rope |= {"rope_type": "linear", "factor": c.rope_scaling.factor}
    elif isinstance(c.rope_scaling, Llama3Scaling):
        rope |= {
            "rope_type": "llama3",
            "factor": c.rope_scaling.factor,
            "low_freq_factor": c.rope_scaling.low_freq_factor,
            "high_freq_factor": c.rope_scaling.high_freq_factor,
            "original_max_position_embeddings": c.rope_scaling.original_max_seq_len,
        }
    elif isinstance(c.rope_scaling, YarnScaling):
        old = c.rope_scaling.original_max_seq_len
        rope |= {"rope_type": "yarn", "factor": c.rope_scaling.factor, "original_max_position_embeddings": old}
    config = transformers.LlamaConfig(
        vocab_size=c.vocab_size,
        hidden_size=c.dim,
        intermediate_size=c.ffn_dim,
        num_hidden_layers=c.n_layers,
        num_attention_heads=c.n_heads,
        num_key_value_heads=c.n_kv_heads,
        head_dim=c.head_dim,
        max_position_embeddings=c.max_seq_len,
        rms_norm_eps=c.norm_eps,
        tie_word_embeddings=c.tied_embeddings,
        rope_parameters=rope,
        attn_implementation="eager",
    )
    theirs = transformers.LlamaForCausalLM(config)
    names = {name: name if name.startswith("lm_head") else f"model.{name}" for name in model.state_dict()}
    theirs.load_state_dict({names[name]: weight for name, weight in model.state_dict().items()}, strict=True)
    return theirs.eval()


def ids_for(model: Llama, rows: int = 3, tokens: int = 37) -> Tensor:
    return torch.randint(0, model.config.vocab_size, (rows, tokens), generator=torch.Generator().manual_seed(5))


def assert_equal_logits(ours: Tensor, theirs: Tensor) -> None:
    assert float((ours - theirs).abs().max()) <= 1e-5 * float(theirs.abs().max())


@torch.no_grad()
@pytest.mark.parametrize("changes", MODELS.values(), ids=MODELS.keys())
@pytest.mark.parametrize("tokens", [1, 37, 200])
def test_logits_equal_transformers(build_llama: Build, changes: dict[str, Any], tokens: int) -> None:
    model = build_llama(**changes)
    ids = ids_for(model, tokens=tokens)
    assert_equal_logits(model(ids), reference(model)(ids).logits)


def test_the_compared_models_are_not_degenerate(build_llama: Build) -> None:
    """Deep enough in their softmaxes, and far enough in their frequencies, that a wrong constant would show."""
    plain, scaled = build_llama(), build_llama(rope_scaling=LLAMA3, rope_theta=500_000.0)
    kept = scaled.position.frequencies_P / build_llama(rope_theta=500_000.0).position.frequencies_P
    assert kept.max() == 1
    assert kept.min() == 1 / LLAMA3.factor
    assert ((kept > 1 / LLAMA3.factor) & (kept < 1)).any()
    assert plain(ids_for(plain)).std() > 0.5
    assert plain.config.rope_scaling == NoScaling()


@torch.no_grad()
@pytest.mark.parametrize("changes", [MODELS["GQA 4 to 1"], MODELS["llama3 rope"]], ids=["GQA 4 to 1", "llama3 rope"])
def test_rows_padded_on_the_left_give_transformers_logits(build_llama: Build, changes: dict[str, Any]) -> None:
    model, lengths, tokens = build_llama(**changes), [21, 13, 1], 21
    ids = ids_for(model, tokens=tokens)
    real = torch.arange(tokens) >= torch.tensor([[tokens - length] for length in lengths])
    positions = (real.long().cumsum(-1) - 1).clamp_min(0)
    theirs = reference(model)(ids, attention_mask=real.long(), position_ids=positions).logits
    ours = model.lm_head(model.hidden(ids, positions_BT=positions, documents_BT=real.long()))
    assert_equal_logits(ours[real], theirs[real])
    for row, length in enumerate(lengths):
        assert_equal_logits(ours[row, -length:], model(ids[row : row + 1, -length:])[0])


@torch.no_grad()
def test_rows_padded_on_the_right_give_transformers_logits(build_llama: Build) -> None:
    model, lengths, tokens = build_llama(), [21, 13, 1], 21
    ids = ids_for(model, tokens=tokens)
    real = torch.arange(tokens) < torch.tensor([[length] for length in lengths])
    ours = model(ids)
    assert_equal_logits(ours[real], reference(model)(ids, attention_mask=real.long()).logits[real])
    ids[~real] = 0
    assert torch.equal(model(ids)[real], ours[real])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_mask_in_the_type_of_the_products_serves_all_layers(build_llama: Build, dtype: torch.dtype) -> None:
    model, kept = build_llama(n_layers=3), []
    ids = ids_for(model, tokens=37)
    pack = lambda tensor: kept.append(tensor) or tensor  # noqa: E731
    products = torch.autocast("cpu", torch.bfloat16, dtype == torch.bfloat16)
    with products, torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model.hidden(ids, documents_BT=ids % 2)
    masks = [tensor for tensor in kept if tensor.shape == (3, 1, 37, 37)]
    assert [mask.dtype for mask in masks] == [dtype] * 3
    assert len({mask.data_ptr() for mask in masks}) == 1


@pytest.mark.parametrize("changes", [{}, {"tied_embeddings": False, "n_kv_heads": 1}], ids=["tied", "untied"])
def test_loss_and_gradients_equal_transformers(build_llama: Build, changes: dict[str, Any]) -> None:
    model = build_llama(**changes)
    theirs, ids = reference(model), ids_for(model)
    for forward in (model.forward, lambda ids: theirs(ids).logits):
        F.cross_entropy(forward(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten()).backward()
    reference_gradients = dict(theirs.named_parameters())
    for name, weight in model.named_parameters():
        expected = reference_gradients[name if name.startswith("lm_head") else f"model.{name}"].grad
        assert weight.grad is not None
        assert expected is not None
        assert float((weight.grad - expected).abs().max()) <= 2e-5 * float(expected.abs().max()), name


def test_in_float64_the_model_computes_and_answers_in_float64(tiny: Llama) -> None:
    ids = ids_for(tiny)
    single = tiny(ids)
    double = tiny.double()(ids)
    assert (single.dtype, double.dtype) == (torch.float32, torch.float64)
    assert 0 < (double - single).abs().max() < 1e-5 * double.abs().max()


def test_half_precision_weights_answer_in_float32(tiny: Llama) -> None:
    ids = ids_for(tiny)
    exact = tiny(ids)
    half = tiny.bfloat16()(ids)
    assert half.dtype == torch.float32
    assert (half - exact).abs().max() < 0.1 * exact.abs().max()


def gradient_rows(model: Llama, documents_BT: Tensor | None) -> Iterator[tuple[int, Tensor]]:
    """For each token i: the size of the gradient of its logits with respect to each input embedding."""
    rows_BTD = torch.randn(1, 12, model.config.dim, generator=torch.Generator().manual_seed(6)).requires_grad_()
    with model.embed_tokens.register_forward_hook(lambda *_: rows_BTD):
        hidden_BTD = model.hidden(torch.zeros(1, 12, dtype=torch.int64), documents_BT=documents_BT)
    logits_BTV = model.lm_head(hidden_BTD)
    for i in range(12):
        (gradient,) = torch.autograd.grad(logits_BTV[0, i].square().sum(), rows_BTD, retain_graph=True)
        yield i, gradient[0].abs().amax(-1)


def test_the_gradient_of_a_token_reaches_every_earlier_input_and_no_later_one(build_llama: Build) -> None:
    for i, gradient_T in gradient_rows(build_llama(tied_embeddings=False), None):
        assert not gradient_T[i + 1 :].any()
        assert gradient_T[: i + 1].gt(0).all()


def test_the_gradient_never_crosses_a_document(build_llama: Build) -> None:
    documents = torch.tensor([[0] * 5 + [1] * 3 + [2] * 4])
    for i, gradient_T in gradient_rows(build_llama(tied_embeddings=False), documents):
        same = documents[0] == documents[0, i]
        assert not gradient_T[~same].any()
        assert gradient_T[same][: i + 1 - int(same.long().argmax())].gt(0).all()


@torch.no_grad()
def test_packed_documents_equal_the_documents_alone(tiny: Llama) -> None:
    ids = ids_for(tiny, rows=1, tokens=20)
    documents = torch.tensor([[0] * 7 + [1] * 13])
    positions = torch.cat((torch.arange(7), torch.arange(13)))[None]
    packed = tiny.hidden(ids, positions_BT=positions, documents_BT=documents)
    alone = torch.cat((tiny.hidden(ids[:, :7]), tiny.hidden(ids[:, 7:])), dim=1)
    assert_equal_logits(packed, alone)


@torch.no_grad()
def test_moving_every_position_by_the_same_amount_changes_nothing(tiny: Llama) -> None:
    ids = ids_for(tiny)
    moved = tiny.hidden(ids, positions_BT=torch.arange(37)[None] + 100)
    torch.testing.assert_close(moved, tiny.hidden(ids), rtol=0, atol=1e-4)


@torch.no_grad()
def test_a_batch_gives_the_results_of_its_rows(tiny: Llama) -> None:
    ids = ids_for(tiny)
    assert_equal_logits(tiny(ids), torch.cat([tiny(row[None]) for row in ids]))


def test_the_embedding_is_the_one_hot_product(tiny: Llama) -> None:
    ids = ids_for(tiny)
    one_hot = F.one_hot(ids, tiny.config.vocab_size).float()
    assert torch.equal(tiny.embed_tokens(ids), one_hot @ tiny.embed_tokens.weight)


def test_the_rows_of_absent_tokens_get_no_gradient(build_llama: Build) -> None:
    model = build_llama(tied_embeddings=False)
    ids = ids_for(model)
    model(ids).square().sum().backward()
    assert model.embed_tokens.weight.grad is not None
    present = torch.zeros(model.config.vocab_size, dtype=torch.bool).index_fill(0, ids.flatten(), value=True)
    assert not model.embed_tokens.weight.grad[~present].any()
    assert model.embed_tokens.weight.grad[present].abs().amax(-1).gt(0).all()


def test_a_tied_gradient_is_the_gathers_part_plus_the_heads_part(build_llama: Build) -> None:
    tied, untied = build_llama().double(), build_llama(tied_embeddings=False).double()
    weights = tied.state_dict()
    untied.load_state_dict(weights)
    for model in (tied, untied):
        model(ids_for(model)).square().sum().backward()
    gather, head, both = untied.embed_tokens.weight.grad, untied.lm_head.weight.grad, tied.embed_tokens.weight.grad
    assert gather is not None
    assert head is not None
    torch.testing.assert_close(gather + head, both, rtol=1e-10, atol=1e-10)


def test_parameters_are_named_as_hugging_face_names_them(build_llama: Build) -> None:
    model = build_llama(tied_embeddings=False, n_layers=1)
    norms = {"layers.0.input_layernorm.weight", "layers.0.post_attention_layernorm.weight", "norm.weight"}
    linears = {f"{path}.weight" for path in linear_paths(model.config)}
    assert set(model.state_dict()) == {"embed_tokens.weight", "lm_head.weight"} | norms | linears


def test_a_tied_model_has_one_table(tiny: Llama) -> None:
    assert tiny.lm_head.weight is tiny.embed_tokens.weight
    assert tiny.double().lm_head.weight is tiny.embed_tokens.weight
