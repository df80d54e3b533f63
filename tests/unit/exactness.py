"""Numbers in bf16, and how near to the exact result an operation on them has to come."""

import torch


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).bfloat16()


def near(got, exact, plain):
    """No further from the exact result than plain bf16 is, give or take one rounding of the largest number."""
    error, allowed = (got.double() - exact).abs().max(), (plain.double() - exact).abs().max()
    assert error <= allowed + exact.abs().max() * 2**-8
