"""AWQ: before rounding, weights of loud input channels are made larger, and what feeds them smaller by as much.

The product stays what it was, and rounding hurts the channels less that matter most. Source: arXiv 2306.00978, eq. 4
and 5; the error is that of each layer's output, summed over the layers that share an input.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from schoolhouse.core.errors import ModelError
from schoolhouse.model.codes import Scheme, quantize_rows, spread
from schoolhouse.model.layers import GatedFeedForward, RMSNormPlusOne
from schoolhouse.model.transformer import DecoderLayer

GRID = 20  # exponents tried, from 0 to before 1
_BEHIND_NORM = ("q_proj", "k_proj", "v_proj", "q_a_proj", "kv_a_proj_with_mqa")


def best_factors(layers: Sequence[nn.Linear], products: Tensor, sizes: Tensor, scheme: Scheme) -> Tensor:
    """What to multiply the channels of an input by that these layers share. (K,) fp32, about 1.

    products: (K, K), the sum of x x^T over the inputs; sizes: (K,), the mean of |x|.
    """
    best, least = torch.ones_like(sizes), float("inf")
    for step in range(GRID):
        factors = sizes.clamp(min=1e-6) ** (step / GRID)
        factors = factors / (factors.max() * factors.min()).sqrt()
        error = sum(_error(layer.weight.float(), factors, products, scheme) for layer in layers)
        if error < least:
            best, least = factors, error
    return best


def _error(weight: Tensor, factors: Tensor, products: Tensor, scheme: Scheme) -> float:
    """The squared error of the layer's output if its weights are rounded after they were scaled."""
    codes, scales = quantize_rows(weight * factors, torch.float32, scheme)
    change = codes * spread(scales, weight.shape[1]) / factors - weight
    return float(((change @ products) * change).sum())


def scale_channels(before: nn.Module, layers: Sequence[nn.Linear], factors: Tensor) -> None:
    """Multiply the layers' input channels by `factors`, and divide what makes that input by them."""
    for layer in layers:
        layer.weight.data = (layer.weight.float() * factors).to(layer.weight.dtype)
    weight = before.weight
    assert isinstance(weight, Tensor)
    plus = 1.0 if isinstance(before, RMSNormPlusOne) else 0.0  # it scales by 1 + weight
    shape = (-1, 1) if weight.ndim == 2 else (-1,)
    weight.data = ((weight.float() + plus) / factors.view(shape) - plus).to(weight.dtype)
    bias = getattr(before, "bias", None)
    if isinstance(bias, Tensor):
        bias.data = (bias.float() / factors).to(bias.dtype)


def shared_inputs(layer: DecoderLayer, chosen: Sequence[nn.Linear]) -> list[tuple[nn.Module, list[nn.Linear]]]:
    """What feeds which of the chosen layers, where a factor can be handed from one to the others.

    Raises ModelError for a block in which a norm feeds more than the layers behind it.
    """
    if layer.block != "sequential":
        raise ModelError(
            "method 'awq' hands factors from a norm to the layers behind it, and this network's blocks are not built "
            "so (attention and feed-forward one after the other, a norm before each): take method 'gptq'."
        )
    behind = [getattr(layer.self_attn, name) for name in _BEHIND_NORM if hasattr(layer.self_attn, name)]
    pairs: list[tuple[nn.Module, list[nn.Linear]]] = [(layer.input_layernorm, behind)]
    mlp = layer.mlp
    if isinstance(mlp, GatedFeedForward):
        pairs += [(layer.post_attention_layernorm, [mlp.gate_proj, mlp.up_proj]), (mlp.up_proj, [mlp.down_proj])]
    wanted = {id(linear) for linear in chosen}
    return [(before, after) for before, after in pairs if all(id(linear) in wanted for linear in after)]
