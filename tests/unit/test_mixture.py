"""A mixture's kernels in training beside their twins: the router, the experts with a shared one."""

import pytest
import torch
from exactness import draw, near

from schoolhouse.kernels import native, products
from schoolhouse.kernels.experts import mix_experts, mix_experts_plain
from schoolhouse.kernels.fused import rms_norm_beside, turn_plain
from schoolhouse.kernels.latent import make_latents, spread_keys, spread_keys_plain
from schoolhouse.kernels.router import Rule, choose, route_tokens

needs_tiles = pytest.mark.skipif(not native.has_tiles(), reason=f"needs AMX: {native.status()}")

RULES = [
    (Rule(16, 2, 4, 2, False, True, 2.5), True),
    (Rule(16, 2, 1, 1, False, True, 1.0), True),
    (Rule(8, 3, 4, 2, True, False, 1.5), False),
    (Rule(40, 6, 1, 1, True, True, 1.0), False),
    (Rule(5, 2, 1, 1, False, False, 1.0), False),
]


def sent(tokens, rule, biased, width):
    x, weight = draw(tokens, width), draw(rule.experts, width, seed=1) / 8
    return x, weight, draw(rule.experts, seed=2).float() / 8 if biased else None


def routed(function, x, weight, bias, rule, dtype, scored):
    x, weight = (part.to(dtype, copy=True).requires_grad_() for part in (x, weight))
    chosen, shares, scores = function(x, weight, bias, rule)
    loss = (shares * draw(*shares.shape, seed=3)).sum()
    if scored:
        loss = loss + (scores * draw(*scores.shape, seed=4)).sum()
    loss.backward()
    return chosen, shares.detach(), scores.detach(), x.grad, weight.grad


@needs_tiles
@pytest.mark.parametrize("tokens", [1, 37, 300])
@pytest.mark.parametrize("width", [64, 40])
@pytest.mark.parametrize(("rule", "biased"), RULES)
@pytest.mark.parametrize("scored", [False, True])
def test_a_router_chooses_as_its_twin_and_has_its_gradients(tokens, width, rule, biased, scored):
    def plain(x, weight, bias, rule):
        return choose(x.float() @ weight.float().t() if x.dtype == torch.bfloat16 else x @ weight.t(), bias, rule)

    given = sent(tokens, rule, biased, width)
    got = routed(route_tokens, *given, rule, torch.bfloat16, scored)
    exact = routed(plain, *given, rule, torch.float64, scored)
    twin = routed(plain, *given, rule, torch.bfloat16, scored)
    assert torch.equal(got[0], exact[0])
    torch.testing.assert_close(got[1], exact[1], rtol=2e-5, atol=1e-6)
    torch.testing.assert_close(got[2], exact[2], rtol=2e-5, atol=1e-6)
    for mine, wanted, theirs in zip(got[3:], exact[3:], twin[3:], strict=True):
        near(mine, wanted, theirs)


@needs_tiles
@pytest.mark.parametrize(("width", "inner", "further"), [(64, 32, 32), (48, 40, 72), (33, 17, 96), (512, 384, 384)])
@pytest.mark.parametrize(("tokens", "in_place"), [(70, True), (700, True), (70, False)])
def test_experts_of_which_one_is_shared_are_the_twins(width, inner, further, tokens, in_place):
    experts, active = 4, 2
    chosen = draw(tokens, experts - 1, seed=2).topk(active).indices  # the last expert gets no token
    shapes = enumerate([(inner, width), (inner, width), (width, inner)], start=1)
    wide = [[draw(*shape, seed=10 * kind + e) / 8 for e in range(experts)] for kind, shape in shapes]
    shared = [draw(further, width, seed=50) / 8, draw(further, width, seed=51) / 8, draw(width, further, seed=52) / 8]
    weighed = draw(tokens, active, seed=1).float().sigmoid()
    given = [draw(tokens, width), weighed, *(m for kind in wide for m in kind), *shared]

    def plain(x, chosen, shares, gates, ups, downs, products, shared):
        others = torch.zeros(len(x), 1, dtype=torch.int64)
        one = mix_experts_plain(x, others, torch.ones(len(x), 1, dtype=shares.dtype), *([m] for m in shared))
        return mix_experts_plain(x, chosen, shares, gates, ups, downs) + one

    results = []
    for function, dtype in ((mix_experts, torch.bfloat16), (plain, torch.float64), (plain, torch.bfloat16)):
        leaves = [(x.double() if dtype == torch.float64 else x.clone()).detach().requires_grad_() for x in given]
        x, shares, *matrices = leaves
        for matrix in matrices:
            matrix.grad = torch.zeros_like(matrix)
            if in_place:
                products.sum_in_place(matrix)
        kinds = [matrices[i * experts : (i + 1) * experts] for i in range(3)]
        out = function(x, chosen, shares, *kinds, None, matrices[3 * experts :])
        (out * draw(tokens, width, seed=5).to(out.dtype)).sum().backward()
        results.append([out.detach(), *(leaf.grad for leaf in leaves)])
    for mine, exact, theirs in zip(*results, strict=True):
        error, allowed = (mine.double() - exact).norm(), (theirs.double() - exact).norm()
        assert error <= 2 * allowed + exact.norm() * 2**-8  # either way roundings add up by chance


@needs_tiles
def test_experts_have_the_same_bits_with_any_number_of_threads(threads_back):
    tokens, width, inner = 300, 96, 64
    kept = []
    for count in (1, 2):
        torch.set_num_threads(count)
        x = draw(tokens, width).requires_grad_()
        shares = draw(tokens, 2, seed=1).float().sigmoid().requires_grad_()
        shapes = enumerate([(inner, width), (inner, width), (width, inner)], start=1)
        kinds = [[(draw(*shape, seed=10 * kind + e) / 8).requires_grad_() for e in range(3)] for kind, shape in shapes]
        chosen = draw(tokens, 3, seed=2).topk(2).indices
        out = mix_experts(x, chosen, shares, *kinds)
        out.backward(draw(tokens, width, seed=5))
        rule, weight = Rule(16, 2, 4, 2, False, True, 2.5), draw(16, width, seed=6).requires_grad_()
        _, sent_by, scores = route_tokens(x, weight, None, rule)
        (sent_by.sum() + scores.square().sum()).backward()
        kept.append([out, x.grad, shares.grad, weight.grad, *(m.grad for kind in kinds for m in kind)])
    assert all(torch.equal(a, b) for a, b in zip(*kept, strict=True))


def both_ways(function, dtype, given, fixed):
    """What a function makes of leaves, and their gradients."""
    leaves = [x.to(dtype, copy=True).requires_grad_() for x in given]
    out = function(*leaves, *fixed)
    out = out if isinstance(out, tuple) else (out,)
    sum((part * draw(*part.shape, seed=9).to(dtype)).sum() for part in out).backward()
    return [*(part.detach() for part in out), *(leaf.grad for leaf in leaves)]


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize(("rank", "turning"), [(64, 16), (48, 40)])
@pytest.mark.parametrize("neighbours", [True, False])
def test_latents_and_their_gradients_are_the_twins(batch, rank, turning, neighbours):
    x, weight = draw(batch, 70, rank + turning), 1 + draw(rank, seed=1) / 8
    angles = 3 * draw(batch, 70, 1, turning // 2, seed=2).float()
    cos, sin = angles.cos().bfloat16(), angles.sin().bfloat16()

    def fast(x, weight):
        return make_latents(x, weight, 1e-6, cos, sin, neighbours=neighbours)

    def plain(x, weight):
        turned = turn_plain(x[:, :, None, rank:], cos.to(x.dtype), sin.to(x.dtype), neighbours=neighbours)[:, :, 0]
        wide = x[..., :rank]
        normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-6) * weight
        return torch.cat((normed, turned), dim=-1)

    results = [both_ways(f, d, (x, weight), ()) for f, d in
               ((fast, torch.bfloat16), (plain, torch.float64), (plain, torch.bfloat16))]  # fmt: skip
    for mine, exact, theirs in zip(*results, strict=True):
        near(mine, exact, theirs)


@pytest.mark.parametrize(("still", "turning", "depth"), [(32, 16, 32), (40, 24, 56), (3, 2, 5)])
def test_keys_of_all_heads_and_their_gradients_are_the_twins(still, turning, depth):
    both, key = draw(2, 35, 8, still + depth), draw(2, 35, 1, turning, seed=1)
    turns = [
        (spread_keys, torch.bfloat16), (spread_keys_plain, torch.float64), (spread_keys_plain, torch.bfloat16)
    ]  # fmt: skip
    results = [both_ways(function, dtype, (both, key), (still,)) for function, dtype in turns]
    for mine, exact, theirs in zip(*results, strict=True):
        near(mine, exact, theirs)
    assert torch.equal(results[0][0], results[2][0])


@pytest.mark.parametrize("shift", [0.0, 1.0])
def test_a_stream_beside_its_norm_gets_the_sum_of_both_gradients(shift):
    def beside(x, weight):
        return rms_norm_beside(x, weight, 1e-6, shift)

    def plain(x, weight):
        return x * 1, x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * (weight + shift)

    given = draw(1, 130, 96), draw(96, seed=1)
    turns = [(beside, torch.bfloat16), (plain, torch.float64), (plain, torch.bfloat16)]
    results = [both_ways(function, dtype, given, ()) for function, dtype in turns]
    for mine, exact, theirs in zip(*results, strict=True):
        near(mine, exact, theirs)
