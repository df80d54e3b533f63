"""Blocks and tiles in fp8, and the products of a linear layer with them."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from schoolhouse.core.errors import ModelError
from schoolhouse.kernels.fp8 import (
    dequantize_blocks,
    dequantize_tiles,
    quantize_blocks,
    quantize_tiles,
)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def oracle(x, height):
    """Codes' values and scales block by block, from the paper's formula."""
    scales = torch.empty(-(-x.shape[0] // height), -(-x.shape[1] // 128))
    values = torch.empty(x.shape)
    for i, rows in enumerate(x.float().split(height)):
        for j, block in enumerate(rows.split(128, dim=1)):
            scales[i, j] = block.abs().max() / 448
            codes = (block / scales[i, j]).to(torch.float8_e4m3fn)
            values[height * i : height * i + len(rows), 128 * j : 128 * j + block.shape[1]] = (
                codes.float() * scales[i, j]
            )
    return values, scales


@pytest.mark.parametrize("shape", [(128, 128), (300, 200), (1, 1), (127, 129), (256, 384)])
def test_blocks_and_tiles_are_the_papers(shape):
    x = draw(*shape) * torch.logspace(-3, 3, shape[1])
    for height, quantize, undo in ((128, quantize_blocks, dequantize_blocks), (1, quantize_tiles, dequantize_tiles)):
        codes, scale = quantize(x)
        values, scales = oracle(x, height)
        assert codes.dtype == torch.float8_e4m3fn
        assert codes.shape == x.shape
        assert torch.equal(scale, scales)
        assert torch.equal(undo(codes, scale), values)
        assert torch.equal(undo(codes, scale, torch.bfloat16), values.bfloat16())


@given(
    rows=st.integers(1, 140),
    columns=st.integers(1, 260),
    power=st.integers(-40, 30),
    seed=st.integers(0, 2**31),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_every_number_is_off_by_a_sixteenth_of_itself_at_most(rows, columns, power, seed, dtype):
    x = (draw(rows, columns, seed=seed) ** 3 * 10.0**power).to(dtype)
    for quantize, undo, height in ((quantize_blocks, dequantize_blocks, 128), (quantize_tiles, dequantize_tiles, 1)):
        codes, scale = quantize(x)
        assert scale.shape == (-(-rows // height), -(-columns // 128))
        assert codes.float().abs().max() <= 448
        steps = scale.repeat_interleave(height, 0)[:rows].repeat_interleave(128, 1)[:, :columns]
        error = (undo(codes, scale) - x.float()).abs()
        # half a step of three bits behind the first; below the smallest normal number steps are 2^-9
        allowed = torch.maximum(x.float().abs() * 2.0**-4, steps * 2.0**-10) * (1 + 1e-5)
        assert bool((error <= allowed).all())


def test_what_fp8_holds_already_comes_back_bit_by_bit():
    codes = torch.arange(256, dtype=torch.uint8).repeat(128, 1).view(torch.float8_e4m3fn)
    codes = torch.where(codes.float().isfinite(), codes.float(), 448.0)
    weight = codes * torch.tensor([[0.25, 4.0]]).repeat_interleave(128, 1)
    again, scale = quantize_blocks(weight)
    assert scale.tolist() == [[0.25, 4.0]]
    assert torch.equal(again.float(), codes)


def test_zeros_and_the_smallest_numbers_stay_numbers():
    weight = torch.zeros(200, 130)
    weight[150, 3] = 1e-44  # below the normal numbers of fp32
    codes, scale = quantize_blocks(weight)
    assert bool((scale > 0).all())
    assert float((dequantize_blocks(codes, scale) - weight).abs().max()) <= 1e-40
    tiles, scale = quantize_tiles(weight)
    assert not tiles[:100].float().any()
    assert bool((1 / scale).isfinite().all())


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_is_refused_in_weights_and_seen_in_activations(bad):
    weight = draw(130, 130)
    weight[129, 129] = bad
    with pytest.raises(ModelError, match="not finite"):
        quantize_blocks(weight)
    tiles = dequantize_tiles(*quantize_tiles(weight))
    assert bool(tiles[129, 128:].isnan().all())
    assert bool(tiles[:129].isfinite().all())


@pytest.mark.parametrize("shape", [(0, 128), (0, 5), (3, 0)])
def test_nothing_is_nothing(shape):
    codes, scale = quantize_tiles(torch.zeros(shape))
    assert codes.shape == dequantize_tiles(codes, scale).shape == shape
    codes, scale = quantize_blocks(torch.zeros(shape))
    assert codes.shape == dequantize_blocks(codes, scale).shape == shape
