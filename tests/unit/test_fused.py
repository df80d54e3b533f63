"""The small operations of training in C++, and their gradients, against fp64 and torch's own way in bf16."""

from functools import partial

import pytest
import torch
from exactness import draw, near
from torch.nn import functional as F

from schoolhouse.kernels import native
from schoolhouse.kernels.fused import gated, gated_slopes, rms_norm, turn, turn_plain
from schoolhouse.kernels.loss import BLOCK_ROWS, _figures, _slopes, token_logprobs

pytestmark = pytest.mark.skipif(native.library() is None, reason=native.status())


def with_gradients(function, *tensors, dtype=torch.bfloat16, seed=9):
    """What a function gives of tensors in a type, and their gradients by a drawn slope."""
    leaves = [t.to(dtype).requires_grad_() for t in tensors]
    out = function(*leaves)
    slope = draw(*out.shape, seed=seed).to(dtype)
    return [out.detach(), *torch.autograd.grad(out, leaves, slope)]


def assert_near(function, plain, *tensors):
    """The function, in C++, is as near to fp64 as plain torch is; so are all its gradients."""
    got = with_gradients(function, *tensors)
    exact, rounded = (with_gradients(plain, *tensors, dtype=t) for t in (torch.float64, torch.bfloat16))
    for one, right, other in zip(got, exact, rounded, strict=True):
        assert one.dtype == torch.bfloat16
        assert one.shape == right.shape
        if one.numel():
            near(one, right, other)


@pytest.mark.parametrize("shape", [(1, 16), (0, 32), (63, 576), (2, 130, 32), (65, 48)])
@pytest.mark.parametrize("shift", [0.0, 1.0])
def test_a_norm_and_its_gradients_are_exact(shape, shift):
    assert_near(
        lambda x, w: rms_norm(x, w, 1e-5, shift),
        lambda x, w: x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5) * (w + shift),
        3 * draw(*shape), draw(shape[-1], seed=1),
    )  # fmt: skip


def test_a_norm_of_another_width_takes_the_plain_way():
    def exact(x, weight):
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5) * weight

    assert_near(lambda x, w: rms_norm(x, w, 1e-5), exact, draw(5, 24), draw(24, seed=1))


def test_a_norm_passes_the_slope_through_a_frozen_weight():
    x, weight = draw(70, 32).requires_grad_(), draw(32, seed=1)
    rms_norm(x, weight, 1e-5).backward(draw(70, 32, seed=2))
    both = [x.detach().clone().requires_grad_(), weight.clone().requires_grad_()]
    rms_norm(*both, 1e-5).backward(draw(70, 32, seed=2))
    assert torch.equal(x.grad, both[0].grad)
    assert weight.grad is None


def test_the_weights_gradient_of_many_rows_keeps_its_precision():
    x, weight, slope = draw(20_000, 16), torch.ones(16).bfloat16().requires_grad_(), draw(20_000, 16, seed=1)
    rms_norm(x, weight, 1e-5).backward(slope)
    wide = x.double()
    exact = (slope.double() * wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-5)).sum(0)
    torch.testing.assert_close(weight.grad.double(), exact, rtol=2**-8, atol=1e-3)


@pytest.mark.parametrize("shape", [(1,), (0, 16), (3, 5, 33), (40, 576)])
def test_a_gate_and_its_gradients_are_exact(shape):
    assert_near(gated, lambda g, u: F.silu(g) * u, draw(*shape), draw(*shape, seed=1))
    assert_near(gated, lambda g, u: F.silu(g) * u, 40 * draw(*shape), draw(*shape, seed=1))


@pytest.mark.parametrize("neighbours", [False, True])
@pytest.mark.parametrize(
    ("still", "pairs", "behind"), [(0, 32, 0), (0, 8, 0), (0, 20, 0), (12, 16, 0), (0, 5, 7), (3, 17, 2)]
)
@pytest.mark.parametrize("tokens", [(1, 1), (2, 9), (3, 0)])
def test_a_rotation_and_its_gradient_are_exact(neighbours, still, pairs, behind, tokens):
    angles = 6 * torch.rand(*tokens, 1, pairs, generator=torch.Generator().manual_seed(3))
    cos, sin = angles.cos().bfloat16(), angles.sin().bfloat16()
    how = {"still": still, "neighbours": neighbours}
    assert_near(
        lambda x: turn(x, cos, sin, **how),
        lambda x: turn_plain(x, cos.to(x.dtype), sin.to(x.dtype), **how),
        draw(*tokens, 3, still + 2 * pairs + behind),
    )


def test_a_rotation_back_undoes_it():
    angles = 6 * torch.rand(1, 8, 1, 16)
    x = draw(1, 8, 2, 40).requires_grad_()
    for neighbours in (False, True):
        out = turn(x, angles.cos().bfloat16(), angles.sin().bfloat16(), still=8, neighbours=neighbours)
        (back,) = torch.autograd.grad(out, x, out.detach())
        torch.testing.assert_close(back, x.detach(), rtol=2**-6, atol=2**-6)


def test_tensors_may_lie_apart():
    wide, weight = draw(4, 6, 3, 96), draw(48, seed=1)
    angles = 6 * torch.rand(4, 6, 1, 24, generator=torch.Generator().manual_seed(3))
    cos, sin = angles.cos().bfloat16(), angles.sin().bfloat16()
    for x in (wide[..., 16:64], wide[..., ::2], wide.transpose(0, 1)[..., :48].transpose(0, 1), wide[:, :1, :, :48]):
        length = x.shape[1]
        turned = partial(turn, cos=cos[:, :length], sin=sin[:, :length])
        for function in (lambda x: rms_norm(x, weight, 1e-5), lambda x: gated(x, x), turned):
            slope = draw(1, seed=2).expand(x.shape)
            results = []
            for tensor in (x, x.contiguous()):
                leaf = tensor.detach().requires_grad_()
                out = function(leaf)
                results.append((out.detach(), torch.autograd.grad(out, leaf, slope)[0]))
            assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_angles_of_one_text_serve_many():
    x, angles = draw(3, 5, 2, 32), torch.rand(1, 5, 1, 16)
    cos, sin = angles.cos().bfloat16(), angles.sin().bfloat16()
    torch.testing.assert_close(turn(x, cos, sin)[2], turn(x[2:], cos, sin)[0], rtol=2**-6, atol=2**-6)


def head(rows, words, width=32):
    weight = 0.5 * draw(words, width, seed=1)
    return draw(rows, width), weight, torch.randint(0, words, (rows,), generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize(("rows", "words"), [(1, 5), (33, 300), (BLOCK_ROWS + 7, 48), (2, 5000), (0, 40)])
@pytest.mark.parametrize(("with_bias", "cap"), [(False, None), (True, None), (False, 5.0), (True, 5.0)])
def test_log_probabilities_and_their_gradients_are_exact(rows, words, with_bias, cap):
    hidden, weight, targets = head(rows, words)
    tensors = [hidden, weight] + ([draw(words, seed=3)] if with_bias else [])
    entropies = {}

    def by(function):
        def run(hidden, weight, bias=None):
            out, entropies[function, hidden.dtype] = function(hidden, weight, targets, bias, cap)
            return out

        return run

    def step_by_step(hidden, weight, targets, bias, cap):
        logits = hidden @ weight.t()
        logits = logits if bias is None else logits + bias
        logits = logits if cap is None else torch.tanh(logits / cap) * cap
        logp = torch.log_softmax(logits.to(torch.promote_types(logits.dtype, torch.float32)), dim=-1)
        return logp.gather(1, targets[:, None]).squeeze(1), -(logp.exp() * logp).sum(-1).detach()

    def slopes(function, dtype):
        leaves = [t.to(dtype).requires_grad_() for t in tensors]
        out = by(function)(*leaves)
        return [out.detach(), *torch.autograd.grad(out, leaves, draw(rows, seed=4).to(out.dtype))]

    got, exact = slopes(token_logprobs, torch.bfloat16), slopes(step_by_step, torch.float64)
    plain = slopes(step_by_step, torch.bfloat16)
    for one, right, other in zip(got, exact, plain, strict=True):
        if one.numel():
            near(one, right, other)
    if rows:
        found = [entropies[function, dtype] for function, dtype in entropies]
        near(found[0], found[1], found[2])


def test_sure_and_hopeless_tokens_have_finite_figures():
    hidden = torch.tensor([[200.0], [-200.0]]).bfloat16().requires_grad_()
    weight = torch.tensor([[1.0], [0.0], [-1.0]]).bfloat16()
    logprobs, entropy = token_logprobs(hidden, weight, torch.tensor([0, 0]))
    torch.testing.assert_close(logprobs.detach(), torch.tensor([0.0, -400.0]))
    torch.testing.assert_close(entropy, torch.zeros(2))
    logprobs.sum().backward()
    torch.testing.assert_close(hidden.grad.float(), torch.tensor([[0.0], [2.0]]))


@pytest.mark.parametrize("target", [-1, 40])
def test_a_target_outside_of_the_vocabulary_is_an_error(target):
    hidden, weight, _ = head(2, 40)
    with pytest.raises(IndexError, match="the head has 40 rows"):
        token_logprobs(hidden, weight, torch.tensor([3, target]))


def test_numbers_that_are_none_stay_seen():
    x = draw(70, 32)
    x[0, 3] = float("nan")
    _, to_x, to_weight = with_gradients(lambda x, w: rms_norm(x, w, 1e-5), x, draw(32, seed=1))
    assert to_x[0].isnan().all()
    assert not to_x[1:].isnan().any()
    assert to_weight.isnan().all()
    _, to_gate, to_up = with_gradients(gated, x, draw(70, 32, seed=1))
    assert to_gate[0, 3].isnan()
    assert to_up[0, 3].isnan()
    assert int(to_gate.isnan().sum()) == 1
    hidden, weight, targets = head(3, 40)
    hidden[1, 0] = float("nan")
    logprobs, to_hidden, _ = with_gradients(lambda h, w: token_logprobs(h, w, targets)[0].bfloat16(), hidden, weight)
    assert logprobs.isnan().tolist() == [False, True, False]
    assert to_hidden.isnan().all(dim=1).tolist() == [False, True, False]


def test_they_give_the_same_bits_with_any_number_of_threads(threads_back):
    x, weight = draw(500, 64), draw(64, seed=1)
    angles = torch.rand(1, 500, 1, 16, generator=torch.Generator().manual_seed(3))
    cos, sin = angles.cos().bfloat16(), angles.sin().bfloat16()
    hidden, rows, targets = head(300, 777)
    found = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results = with_gradients(lambda x, w: rms_norm(x, w, 1e-5), x, weight) + with_gradients(gated, x, x + 1)
        results += with_gradients(partial(turn, cos=cos, sin=sin), x.view(1, 500, 2, 32))
        torch.set_num_threads(1)  # torch's own products may differ
        logits = hidden @ rows.t()
        torch.set_num_threads(threads)
        results += loss_of(logits, targets)
        found.append(results)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def loss_of(logits, targets):
    """Figures and slopes of logits that are there already."""
    out = [torch.empty(len(logits)) for _ in range(3)]
    _figures(logits, targets, out)
    slopes = logits.clone()
    _slopes(slopes, targets, draw(len(logits), seed=5).float(), out[1], None)
    return [*out, slopes]


def test_slopes_of_the_gate_alone_are_those_of_the_graph():
    gate, up, slope = draw(9, 33), draw(9, 33, seed=1), draw(9, 33, seed=9)
    for got, wanted in zip(gated_slopes(slope, gate, up), with_gradients(gated, gate, up)[1:], strict=True):
        assert torch.equal(got, wanted)
