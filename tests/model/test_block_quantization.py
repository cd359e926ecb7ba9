"""GGUF's block types byte for byte as the reference library has them."""

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Type
from gguf import quants

from puna.model.block_quantization import dequantize_blocks, quantize_blocks

WRITTEN = ("Q8_0", "Q4_0")
ROW_BYTES = {"Q8_0": 34, "Q4_0": 18, "Q4_K": 144, "Q6_K": 210}


def rows() -> torch.Tensor:
    """Random, zero, huge, tiny, negative, constant rows, and quotients that end in .5 exactly."""
    x = torch.randn(40, 512, generator=torch.Generator().manual_seed(0))
    x[0] = 0
    x[1] *= 1e4
    x[2] *= 1e-30
    x[3] = torch.arange(512) / 2
    x[4] = -x[3]
    x[5, ::32] = 127
    x[5, 1::2] = 0.5
    x[6] = 3.25
    x[7, :32] = 0
    x[8] = -0.0
    x[9] *= 1e-6
    return x


@pytest.mark.parametrize("kind", WRITTEN)
def test_codes_are_byte_equal_to_the_reference(kind):
    assert np.array_equal(quantize_blocks(kind, rows()).numpy(), quants.quantize(rows().numpy(), Type[kind]))


@pytest.mark.parametrize("kind", ROW_BYTES)
def test_values_are_equal_to_the_reference_for_any_codes(kind):
    generator = torch.Generator().manual_seed(1)
    codes = torch.randint(0, 256, (400, 2 * ROW_BYTES[kind]), dtype=torch.uint8, generator=generator)
    with np.errstate(invalid="ignore"):
        expected = quants.dequantize(codes.numpy(), Type[kind])
    assert np.isfinite(expected).mean() > 0.9
    assert np.array_equal(dequantize_blocks(kind, codes).numpy(), expected, equal_nan=True)


@pytest.mark.parametrize("kind", WRITTEN)
def test_values_that_were_rounded_are_rounded_to_the_same_codes_again(kind):
    codes = quantize_blocks(kind, rows()[[1, 3, 4, 5, 6, *range(10, 40)]])  # no scales below float16's, no -0
    assert torch.equal(quantize_blocks(kind, dequantize_blocks(kind, codes)), codes)


@pytest.mark.parametrize("kind", WRITTEN)
def test_slices_and_further_axes_change_nothing(kind, monkeypatch):
    whole = quantize_blocks(kind, rows())
    monkeypatch.setattr("puna.model.block_quantization._SLICE", 1500)
    assert torch.equal(quantize_blocks(kind, rows()), whole)
    assert torch.equal(quantize_blocks(kind, rows().view(4, 10, 512)), whole.view(4, 10, -1))
    assert torch.equal(dequantize_blocks(kind, whole.view(4, 10, -1)).view(40, 512), dequantize_blocks(kind, whole))


def test_a_cast_to_bfloat16_rounds_as_the_reference_does():
    bits = torch.randint(-(2**31), 2**31 - 1, (200_000,), dtype=torch.int32, generator=torch.Generator().manual_seed(2))
    x = bits.view(torch.float32)
    x = x[x.isfinite()]
    expected = quants.quantize(x.numpy()[None], Type.BF16).view(np.int16)[0]
    assert np.array_equal(x.to(torch.bfloat16).view(torch.int16).numpy(), expected)


@pytest.mark.parametrize(("kind", "error"), [("Q8_0", 0.5 / 127), ("Q4_0", 1 / 8)])
def test_the_error_is_at_most_half_a_step_and_the_rounding_of_the_scale(kind, error):
    x = torch.randn(64, 256, generator=torch.Generator().manual_seed(3))
    largest = x.unflatten(1, (-1, 32)).abs().amax(-1, keepdim=True)
    got = dequantize_blocks(kind, quantize_blocks(kind, x)).unflatten(1, (-1, 32))
    assert ((got - x.unflatten(1, (-1, 32))).abs() <= largest * (error + 2**-10)).all()
