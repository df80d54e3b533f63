"""Blocks and tiles in fp8, the products of a linear layer with them, and a network that is trained so."""

import pytest
import torch
from checkpoints import deepseek
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from schoolhouse.core.errors import ModelError
from schoolhouse.kernels.experts import mix_experts
from schoolhouse.kernels.fp8 import dequantize_blocks, dequantize_tiles, quantize_blocks, quantize_tiles, round_blocks
from schoolhouse.kernels.fp8_linear import FP8_PRODUCTS, has_scaled_products, linear, scaled_product
from schoolhouse.model.fp8_linear import Fp8Linear, train_in_fp8
from schoolhouse.model.layers import Linear
from schoolhouse.model.weights import load_model, save_model
from schoolhouse.train.optimizer import Optimizer


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


def rounded(x, height, dtype):
    return oracle(x, height)[0].to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("tokens", "inner", "outer"), [(1, 5, 3), (130, 300, 140), (256, 128, 128)])
def test_the_three_products_are_the_papers(tokens, inner, outer, dtype):
    x, weight = draw(tokens, inner).to(dtype).requires_grad_(), draw(outer, inner, seed=1).to(dtype).requires_grad_()
    grad = draw(tokens, outer, seed=2).to(dtype)
    out = linear(x, weight)
    out.backward(grad)
    kept = oracle(x.detach(), 1)[0]
    assert torch.equal(out, rounded(x.detach(), 1, dtype) @ rounded(weight.detach(), 128, dtype).t())
    assert torch.equal(x.grad, rounded(grad, 1, dtype) @ rounded(weight.detach().t(), 128, dtype).t())
    assert torch.equal(weight.grad, rounded(grad.t(), 1, dtype) @ rounded(kept.t(), 1, dtype).t())


def test_they_are_near_the_plain_ones_and_not_the_same():
    leaves = [draw(2, 70, 300), draw(140, 300, seed=1), draw(140, seed=2)]
    grad = draw(2, 70, 140, seed=3)
    results = []
    for function in (linear, F.linear):
        own = [leaf.clone().requires_grad_() for leaf in leaves]
        out = function(*own)
        out.backward(grad)
        results.append([out.detach(), *(leaf.grad for leaf in own)])
    *others, (bias, plain_bias) = zip(*results, strict=True)
    assert torch.equal(bias, plain_bias)
    for got, wanted in others:
        # a number is off by 2^-4 at most, and by 2.6% in root mean square; two or three of these in a product
        assert got.shape == wanted.shape
        assert 0.01 < float((got - wanted).norm() / wanted.norm()) < 0.06


@pytest.mark.parametrize(("tokens", "inner"), [(0, 5), (4, 0)])
def test_a_product_of_nothing(tokens, inner):
    x, weight = torch.zeros(tokens, inner, requires_grad=True), torch.zeros(3, inner, requires_grad=True)
    out = linear(x, weight)
    out.sum().backward()
    assert out.shape == (tokens, 3)
    assert not out.any()
    assert x.grad.shape == x.shape
    assert weight.grad.shape == weight.shape
    assert not weight.grad.any()


def test_only_what_is_asked_for_is_computed():
    x, weight = draw(4, 8), draw(3, 8, seed=1).requires_grad_()
    linear(x, weight).sum().backward()
    assert x.grad is None
    assert weight.grad is not None


@pytest.mark.parametrize("blocks", [True, False])
@pytest.mark.parametrize("shape", [(128, 128, 128), (1, 5, 3), (300, 640, 200), (0, 128, 128)])
def test_torch_takes_the_layout_of_the_scaled_product(shape, blocks):
    rows, inner, outer = shape  # without memory or a processor for it, torch still checks all shapes and strides
    a = quantize_tiles(torch.zeros(rows, inner, device="meta"))
    b = (round_blocks if blocks else quantize_tiles)(torch.zeros(outer, inner, device="meta"))
    for dtype in (torch.bfloat16, torch.float32):
        out = scaled_product(a, b, dtype, blocks=blocks)
        assert out.shape == (rows, outer)
        assert out.dtype == dtype


def test_torch_refuses_another_layout():
    codes, scale = quantize_tiles(torch.zeros(256, 256, device="meta"))
    kind = F.ScalingType.BlockWise1x128
    with pytest.raises(RuntimeError, match="1x128"):
        F.scaled_mm(codes, codes.t(), scale, kind, scale, kind)


def test_a_processor_without_such_products_is_known():
    assert not has_scaled_products(torch.device("cpu"))


@pytest.mark.skipif(
    not (torch.cuda.is_available() and has_scaled_products(torch.device("cuda"))), reason="no Hopper with CUDA 12.9"
)
@pytest.mark.parametrize(("tokens", "inner", "outer"), [(1, 5, 3), (130, 300, 140), (256, 1024, 384)])
def test_scaled_products_are_the_simulated_ones(tokens, inner, outer):
    results = []
    for device in ("cpu", "cuda"):
        x = draw(tokens, inner).to(device).requires_grad_()
        weight = draw(outer, inner, seed=1).to(device).requires_grad_()
        out = linear(x, weight)
        out.backward(draw(tokens, outer, seed=2).to(device))
        results.append([t.cpu() for t in (out.detach(), x.grad, weight.grad)])
    for wanted, got in zip(*results, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-3 * float(wanted.abs().max()))


def one_by_one(x, chosen, shares, gates, ups, downs):
    """Experts whose three layers are `linear`."""
    out = torch.zeros_like(x)
    for number, (gate, up, down) in enumerate(zip(gates, ups, downs, strict=True)):
        tokens, place = (chosen == number).nonzero(as_tuple=True)
        inner = F.silu(linear(x[tokens], gate)) * linear(x[tokens], up)
        out = out.index_add(0, tokens, linear(inner, down) * shares[tokens, place, None])
    return out


def test_experts_multiply_as_layers_do():
    results = []
    for function in (lambda *given: mix_experts(*given, FP8_PRODUCTS), one_by_one, mix_experts):
        x, shares = draw(300, 140), draw(300, 2, seed=1).sigmoid()
        chosen = draw(300, 3, seed=2).topk(2).indices  # the last expert gets no token
        shapes = enumerate([(150, 140), (150, 140), (140, 150)], start=1)
        matrices = [[0.1 * draw(*shape, seed=10 * kind + e) for e in range(4)] for kind, shape in shapes]
        leaves = [x, shares, *(m for kind in matrices for m in kind[:3])]
        for leaf in leaves:
            leaf.requires_grad_()
        out = function(x, chosen, shares, *matrices)
        out.backward(draw(300, 140, seed=5))
        results.append([out.detach(), *(leaf.grad for leaf in leaves)])
    for got, wanted, plain in zip(*results, strict=True):
        # a last bit of what the backward pass computes anew may push a few numbers to their other code
        assert float((got - wanted).norm() / wanted.norm()) < 2e-3
        assert 0.01 < float((got - plain).norm() / plain.norm()) < 0.12


def loss_of(model, ids):
    return F.cross_entropy(model(ids).logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


def test_a_network_is_trained_in_fp8_from_outside(tmp_path):
    model = deepseek(num_nextn_predict_layers=1)
    ids = torch.randint(0, 300, (4, 32), generator=torch.Generator().manual_seed(0))
    before, weights = loss_of(model, ids).item(), dict(model.named_parameters())
    optimizer = Optimizer(model)
    count = train_in_fp8(model)
    kinds = {name: type(module) for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    assert sorted(n for n, kind in kinds.items() if kind is Linear) == ["lm_head", "model.layers.2.eh_proj"]
    assert count == len(kinds) - 2
    assert all(parameter is weights[name] for name, parameter in model.named_parameters())
    first = loss_of(model, ids)
    assert 0 < abs(first.item() - before) < 0.05 * before
    first.backward()
    for _ in range(8):
        optimizer.step(1e-2)
        loss = loss_of(model, ids)
        loss.backward()
    assert loss.item() < 0.8 * before
    save_model(model, tmp_path, dtype=None)
    again = load_model(tmp_path).state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in model.state_dict().items())


def test_gradients_of_a_network_point_where_the_plain_ones_do():
    ids = torch.randint(0, 300, (4, 32), generator=torch.Generator().manual_seed(0))
    # dense, so that no token is sent to other experts; weights of the usual size, so that no error grows
    plain, fp8 = (deepseek(first_k_dense_replace=2, initializer_range=0.02) for _ in range(2))
    train_in_fp8(fp8)
    for model in (plain, fp8):
        loss_of(model, ids).backward()
    for (name, a), b in zip(plain.named_parameters(), fp8.parameters(), strict=True):
        assert float(F.cosine_similarity(a.grad.flatten(), b.grad.flatten(), dim=0)) > 0.99, name
        assert not torch.equal(a.grad, b.grad)


def test_experts_of_a_network_multiply_in_fp8():
    layer = deepseek().model.layers[1].mlp
    x = draw(2, 9, 32)
    with torch.no_grad():
        wanted = layer(x)
        assert train_in_fp8(layer.experts) == 24
        assert all(type(expert.down_proj) is Fp8Linear for expert in layer.experts)
        got = layer(x)
    assert 0 < float((got - wanted).norm() / wanted.norm()) < 0.1
