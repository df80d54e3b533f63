"""The fast kernels against their plain twins and torch's own."""

import pytest
import torch

from schoolhouse.kernels.attention import Scoring, attend, causal_bias
from schoolhouse.kernels.causal import BLOCK, attend_texts
from schoolhouse.kernels.experts import mix_experts, mix_experts_plain
from schoolhouse.kernels.fused import rms_norm, rms_norm_plain
from schoolhouse.kernels.loss import BLOCK_ROWS, token_logprobs, token_logprobs_plain


def draw(*shape: int, seed: int = 0, scale: float = 1.0) -> torch.Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def head_and_targets(rows: int, words: int = 300):
    hidden, weight = draw(rows, 16), draw(words, 16, seed=1)
    targets = torch.randint(0, words, (rows,), generator=torch.Generator().manual_seed(2))
    return hidden, weight, targets


def attend_each(q, k, v, lengths, scoring):
    """The plain twin of `attend_texts`."""
    out = []
    for q_own, k_own, v_own in zip(*(x.split([n for n in lengths if n]) for x in (q, k, v)), strict=True):
        bias = causal_bias(len(q_own), len(q_own), q.dtype, scoring.window)
        out.append(attend(q_own[None], k_own[None].transpose(1, 2), v_own[None].transpose(1, 2), bias, scoring)[0])
    return torch.cat(out)


@pytest.mark.parametrize(
    "scoring", [Scoring(0.2), Scoring(0.2, window=7), Scoring(0.2, window=100), Scoring(0.2, cap=2.0)]
)
@pytest.mark.parametrize("heads", [(4, 4), (6, 2)])
@pytest.mark.parametrize("lengths", [[1, 2 * BLOCK + 7, 0, 64], [BLOCK]])
def test_attention_in_texts_and_its_gradients_are_the_twins(scoring, heads, lengths):
    results = []
    for function in (attend_texts, attend_each):
        count = sum(lengths)
        q, k, v = draw(count, heads[0], 16), draw(count, heads[1], 16, seed=1), draw(count, heads[1], 12, seed=2)
        for tensor in (q, k, v):
            tensor.requires_grad_()
        out = function(q, k, v, lengths, scoring)
        (out * draw(*out.shape, seed=3)).sum().backward()
        results.append((out.detach(), q.grad, k.grad, v.grad))
    for got, wanted in zip(*results, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)


def test_attention_in_texts_keeps_no_scores():
    kept = []
    q, k, v = (draw(2 * BLOCK, 2, 8, seed=i).requires_grad_() for i in range(3))
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):
        attend_texts(q, k, v, [2 * BLOCK], Scoring(0.3)).sum()
    assert max(kept) == q.numel()


@pytest.mark.parametrize("rows", [1, BLOCK_ROWS, 2 * BLOCK_ROWS + 7])
def test_token_logprobs_and_gradients_are_the_twins(rows):
    results = []
    for function in (token_logprobs, token_logprobs_plain):
        hidden, weight, targets = head_and_targets(rows)
        hidden.requires_grad_(), weight.requires_grad_()
        logprobs, entropy = function(hidden, weight, targets)
        (logprobs * draw(rows, seed=3)).sum().backward()
        results.append((logprobs.detach(), entropy, hidden.grad, weight.grad))
    for got, wanted in zip(*results, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)


def test_token_logprobs_know_a_head_with_a_bias_and_a_cap():
    results = []
    for function in (token_logprobs, token_logprobs_plain):
        hidden, weight, targets = head_and_targets(BLOCK_ROWS + 5)
        bias = draw(len(weight), seed=4)
        for tensor in (hidden, weight, bias):
            tensor.requires_grad_()
        logprobs, entropy = function(hidden, weight, targets, bias, 2.5)
        (logprobs * draw(len(targets), seed=3)).sum().backward()
        results.append((logprobs.detach(), entropy, hidden.grad, weight.grad, bias.grad))
    for got, wanted in zip(*results, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)


def test_token_logprobs_serve_a_frozen_head_and_frozen_states():
    for frozen in (0, 1):
        tensors = list(head_and_targets(9))
        tensors[1 - frozen].requires_grad_()
        token_logprobs(*tensors)[0].sum().backward()
        assert tensors[frozen].grad is None
        assert tensors[1 - frozen].grad.abs().sum() > 0


def test_token_logprobs_of_extreme_logits_stay_finite():
    hidden = torch.tensor([[200.0], [-200.0]])
    logprobs, entropy = token_logprobs(hidden, torch.tensor([[1.0], [0.0], [-1.0]]), torch.tensor([0, 0]))
    torch.testing.assert_close(logprobs, torch.tensor([0.0, -400.0]))
    torch.testing.assert_close(entropy, torch.zeros(2))


def test_token_logprobs_in_bf16_are_within_rounding():
    hidden, weight, targets = head_and_targets(BLOCK_ROWS + 3)
    hidden, weight = hidden.bfloat16(), weight.bfloat16()
    exact, _ = token_logprobs_plain(hidden.float(), weight.float(), targets)
    got, _ = token_logprobs(hidden, weight, targets)
    assert got.dtype == torch.float32
    # A bf16 number has 8 bits: a logit is off by at most 2^-8 of its size; the chosen one and the largest both are.
    largest = (hidden.float() @ weight.float().t()).abs().amax(-1)
    assert ((got - exact).abs() <= 2 * 2**-8 * largest + 1e-5).all()


@pytest.mark.parametrize("shape", [(5, 24), (2, 3, 24)])
def test_rms_norm_and_gradients_are_the_twins(shape):
    results = []
    for function in (rms_norm, rms_norm_plain):
        x, weight = draw(*shape, scale=3.0).requires_grad_(), draw(24, seed=1).requires_grad_()
        out = function(x, weight, 1e-2)
        (out * draw(*shape, seed=2)).sum().backward()
        results.append((out.detach(), x.grad, weight.grad))
    for got, wanted in zip(*results, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)


def test_rms_norm_without_gradients_is_the_same():
    x, weight = draw(7, 24), draw(24, seed=1)
    torch.testing.assert_close(rms_norm(x, weight, 1e-2), rms_norm_plain(x, weight, 1e-2), rtol=1e-6, atol=1e-6)
    with torch.no_grad():
        inside = rms_norm(x.bfloat16().requires_grad_(), weight.bfloat16(), 1e-2)
    outside = rms_norm(x.bfloat16().requires_grad_(), weight.bfloat16(), 1e-2)
    assert inside.dtype == outside.dtype == torch.bfloat16
    # Each rounds at most the normed value and the product: an ulp or two of 2^-8.
    torch.testing.assert_close(inside, outside.detach(), rtol=2**-7, atol=1e-6)


def test_rms_norm_passes_the_slope_through_a_frozen_weight():
    x = draw(4, 8).requires_grad_()
    rms_norm(x, torch.ones(8), 1e-6).sum().backward()
    plain = draw(4, 8).requires_grad_()
    rms_norm_plain(plain, torch.ones(8), 1e-6).sum().backward()
    torch.testing.assert_close(x.grad, plain.grad, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("window", [None, 1, 3])
@pytest.mark.parametrize(("queries", "keys"), [(6, 6), (2, 6), (1, 5)])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (6, 2), (4, 1)])
def test_attend_is_torchs_attention(heads, kv_heads, queries, keys, window):
    q, k, v = draw(2, queries, heads, 8), draw(2, kv_heads, keys, 8, seed=1), draw(2, kv_heads, keys, 8, seed=2)
    place = torch.arange(keys)
    seen = place[None] <= place[keys - queries :, None]
    if window:
        seen &= place[None] > place[keys - queries :, None] - window
    wanted = torch.nn.functional.scaled_dot_product_attention(
        q.transpose(1, 2), k, v, attn_mask=seen, enable_gqa=True, scale=0.3
    )
    got = attend(q, k, v, causal_bias(queries, keys, torch.float32, window), Scoring(0.3, window))
    torch.testing.assert_close(got, wanted.transpose(1, 2), rtol=1e-5, atol=1e-5)


def test_attend_with_a_bias_of_each_row():
    q, k, v = draw(2, 1, 2, 8), draw(2, 1, 4, 8, seed=1), draw(2, 1, 4, 8, seed=2)
    bias = torch.tensor([[[0.0, 0.0, float("-inf"), float("-inf")]], [[0.0, 0.0, 0.0, 0.0]]])
    got = attend(q, k, v, bias, Scoring(1.0))
    alone = attend(q[:1], k[:1, :, :2], v[:1, :, :2], torch.zeros(1, 1, 2), Scoring(1.0))
    torch.testing.assert_close(got[:1], alone, rtol=1e-6, atol=1e-6)
    assert (got[1] - alone[0]).abs().max() > 1e-3


@pytest.mark.parametrize(("tokens", "experts", "active"), [(1, 4, 2), (40, 6, 3), (64, 16, 1), (300, 4, 2)])
def test_mixed_experts_and_their_gradients_are_the_twins(tokens, experts, active):
    results = []
    for function in (mix_experts, mix_experts_plain):
        x, shares = draw(tokens, 12), draw(tokens, active, seed=1).sigmoid()
        chosen = draw(tokens, experts - 1, seed=2).topk(active).indices  # the last expert gets no token
        matrices = [
            [draw(*shape, seed=10 * kind + e) for e in range(experts)]
            for kind, shape in enumerate([(7, 12), (7, 12), (12, 7)], start=1)
        ]
        leaves = [x, shares, *(m for kind in matrices for m in kind)]
        for leaf in leaves:
            leaf.requires_grad_()
        out = function(x, chosen, shares, *matrices)
        (out * draw(tokens, 12, seed=5)).sum().backward()
        results.append([out.detach(), *(leaf.grad for leaf in leaves)])
    for got, wanted in zip(*results, strict=True):
        got = torch.zeros_like(wanted) if got is None else got  # an expert without a token
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)


def test_capped_attention_is_the_formula():
    q, k, v = draw(2, 3, 4, 8), draw(2, 2, 3, 8, seed=1), draw(2, 2, 3, 6, seed=2)
    bias = causal_bias(3, 3, torch.float32)
    got = attend(q, k, v, bias, Scoring(0.3, cap=1.5))
    assert got.shape == (2, 3, 4, 6)
    keys, values = (x.repeat_interleave(2, dim=1) for x in (k, v))
    scores = 1.5 * torch.tanh(torch.einsum("bthd,bhsd->bhts", q, keys) * 0.3 / 1.5) + bias[:, None]
    torch.testing.assert_close(got, torch.einsum("bhts,bhsd->bthd", scores.softmax(-1), values))
