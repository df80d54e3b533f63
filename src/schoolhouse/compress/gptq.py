"""GPTQ: rounding weights one column after another, each time letting those to come make up for the error.

Source: arXiv 2210.17323, algorithm 1, with columns in the order of their weight ("act-order") and scales that are found
before the first column is rounded, so that a group keeps its place in the file.
"""

from __future__ import annotations

import torch
from torch import Tensor

from schoolhouse.model.codes import Scheme, best_scales, finite, round_by, spread

DAMPING = 0.01  # of the mean of the diagonal, added to it
BLOCK = 128  # columns after which the error is carried to the rest


def gptq(weight: Tensor, products: Tensor, scheme: Scheme) -> tuple[Tensor, Tensor]:
    """Codes (N, K) int8 and scales (N, G) bf16 that keep `weight` (N, K) times its inputs.

    products: (K, K), the sum of x x^T over the inputs x of the layer. Raises ModelError for weights not finite.
    """
    exact = finite(weight)
    scales = best_scales(exact.unflatten(1, (scheme.groups(exact.shape[1]), -1)), scheme)
    each = spread(scales, exact.shape[1]).float().expand_as(exact)
    order = products.diagonal().argsort(descending=True)
    codes = _rounded(exact[:, order], products[order][:, order], each[:, order], scheme)
    return codes[:, order.argsort()], scales


def _rounded(weights: Tensor, products: Tensor, scales: Tensor, scheme: Scheme) -> Tensor:
    """Codes of weights (N, K), whose columns are rounded from the first to the last."""
    weights, factor = weights.clone(), _factor(products)
    codes = torch.empty_like(weights, dtype=torch.int8)
    for start in range(0, weights.shape[1], BLOCK):
        end = min(start + BLOCK, weights.shape[1])
        block, errors = weights[:, start:end], torch.empty_like(weights[:, start:end])
        inner = factor[start:end, start:end]
        for j in range(end - start):
            scale = scales[:, start + j]
            codes[:, start + j] = round_by(block[:, j], scale, scheme)
            errors[:, j] = (block[:, j] - codes[:, start + j] * scale) / inner[j, j]
            block[:, j + 1 :].addr_(errors[:, j], inner[j, j + 1 :], alpha=-1)
        weights[:, end:].addmm_(errors, factor[start:end, end:], alpha=-1)
    return codes


def _factor(products: Tensor) -> Tensor:
    """The upper Cholesky factor of the inverse of the products, damped as far as it takes."""
    size, mean = len(products), products.diagonal().mean().clamp(min=1e-12)
    damping = DAMPING
    while True:
        damped = products + torch.eye(size, device=products.device) * mean * damping
        lower, failed = torch.linalg.cholesky_ex(damped)
        if not int(failed):
            upper, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
            if not int(failed):
                return upper
        damping *= 10
