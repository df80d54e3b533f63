"""Divergences over a whole vocabulary, and their slopes."""

import pytest
import torch

from schoolhouse.kernels.divergence import divergence_plain, token_divergence

KINDS = ["reverse", "forward", "jsd"]


def draw(seed, rows=300, width=8, words=50):
    generator = torch.Generator().manual_seed(seed)
    hidden, weight = torch.randn(rows, width, generator=generator), torch.randn(words, width, generator=generator)
    return hidden, weight, torch.randn(words, generator=generator)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cap", [None, 4.0])
@pytest.mark.parametrize("biased", [False, True])
def test_value_and_gradients_are_those_of_the_plain_twin(kind, cap, biased):
    hidden, weight, bias = (x.requires_grad_() for x in draw(0))
    master = torch.randn(300, 50, generator=torch.Generator().manual_seed(1))
    upstream = torch.rand(300, generator=torch.Generator().manual_seed(2))
    used = (hidden, weight, bias) if biased else (hidden, weight)

    def logits():
        raw = hidden @ weight.t() + (bias if biased else 0)
        return raw if cap is None else torch.tanh(raw / cap) * cap

    wanted = divergence_plain(logits(), master, kind)
    gradients = torch.autograd.grad((wanted * upstream).sum(), used)
    got = token_divergence(hidden, weight, bias if biased else None, cap, lambda rows: master[rows], kind)
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-6)
    for found, exact in zip(torch.autograd.grad((got * upstream).sum(), used), gradients, strict=True):
        torch.testing.assert_close(found, exact, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_nothing_at_the_master_and_never_below(kind):
    hidden, weight, _ = draw(0)
    same = token_divergence(hidden, weight, None, None, lambda rows: hidden[rows] @ weight.t(), kind)
    assert float(same.abs().max()) < 1e-5
    other = token_divergence(hidden, weight, None, None, lambda rows: hidden[rows].flip(0) @ weight.t(), kind)
    assert float(other.min()) >= 0
    assert float(other.max()) > 0.1


def test_the_middle_is_the_same_from_both_sides_and_bounded():
    hidden, weight, _ = draw(0)
    own, master = 9 * hidden @ weight.t(), 9 * hidden.flip(0) @ weight.t()
    torch.testing.assert_close(divergence_plain(own, master, "jsd"), divergence_plain(master, own, "jsd"))
    assert float(divergence_plain(own, master, "jsd").max()) <= torch.log(torch.tensor(2.0)) + 1e-5


def test_in_bf16_it_is_the_same_within_rounding():
    hidden, weight, _ = (x.bfloat16() for x in draw(0))
    master = torch.randn(300, 50, generator=torch.Generator().manual_seed(1)).bfloat16()
    got = token_divergence(hidden, weight, None, None, lambda rows: master[rows], "reverse")
    wanted = divergence_plain(hidden.float() @ weight.float().t(), master, "reverse")
    torch.testing.assert_close(got, wanted, rtol=0.05, atol=0.02)
