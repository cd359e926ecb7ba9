"""The tensors of a pass: the ledger's rows 001-03, 001-04, 001-11, 002-02, 004-03, 004-04 and 004-06."""

from math import prod

import pytest

from puna.arch.presets import find_preset
from puna.planning.counting import linear_parameters
from puna.topics.explain import explain


@pytest.fixture(scope="module")
def tiny():
    return explain("tensors", model="tiny").numbers["model"]


@pytest.fixture(scope="module")
def eight():
    return explain("tensors", model="llama-3-8b").numbers["model"]


def test_the_8b_has_its_layers_its_width_and_its_four_shapes(eight):
    assert (eight["layers"], eight["width"], eight["parameters"]) == (32, 4096, 8_030_261_248)
    shapes = dict(zip(eight["linears"].rows, (shape for shape, *_ in eight["linears"].values), strict=True))
    wanted = {"q_proj": "4096 × 4096", "k_proj": "1024 × 4096", "v_proj": "1024 × 4096", "o_proj": "4096 × 4096"}
    assert wanted.items() <= shapes.items()


def test_the_linears_hold_the_planners_weights_at_two_flops_each_and_token(tiny):
    config, tokens = find_preset("tiny").config, 8
    *layer, (_, head_weights, head_flops) = tiny["linears"].values
    assert config.n_layers * sum(weights for _, weights, _ in layer) == linear_parameters(config)
    assert all(flops == 2 * tokens * weights for _, weights, flops in layer)
    assert head_flops == 2 * tokens * head_weights


def test_every_tensor_of_a_pass_has_the_shape_of_its_axes_and_its_bytes(tiny):
    sizes = {"1": 1, "n": 8, "d": 64, "h": 4, "g": 2, "d_h": 16, "h*d_h": 64, "g*d_h": 32, "f": 176, "V": 512}
    assert len(tiny["tensors"].rows) == 18
    for axes, shape, dtype, size_bytes in tiny["tensors"].values:
        found = [int(each) for each in shape.split(" × ")]
        assert found == [sizes[axis] for axis in axes.split()]
        assert size_bytes == prod(found) * {"int64": 8, "float32": 4}[dtype]


def test_the_pass_begins_with_the_embedding_and_ends_with_a_norm_and_the_head(tiny, eight):
    rows = tiny["tensors"].rows
    assert (rows[:2], rows[-2:]) == (["ids", "embed_tokens"], ["norm", "lm_head"])
    assert eight["tensors"].rows == rows


def test_nearly_all_the_work_is_products(tiny, eight):
    assert tiny["products_share"] == pytest.approx(0.9562, abs=1e-4)
    assert eight["products_share"] > 0.999
    assert sum(share for _, share in tiny["work"].values) == pytest.approx(1)


def test_the_head_is_its_matrix_times_the_last_vectors(tiny):
    assert tiny["linear_difference"] <= 1e-6
