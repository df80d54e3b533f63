"""Training through rounding: the network holds what codes will stand for, and its masters take the steps.

A gradient is taken at the rounded weights and moves the fp32 master behind them, as if rounding were not there (the
straight-through estimator, arXiv 1308.3432). Replies are sampled by the rounded network, too.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from schoolhouse.core.errors import RecipeError
from schoolhouse.model.codes import quantize_rows, scheme_for, spread
from schoolhouse.model.quantization import ends_to_quantize, linears_to_quantize
from schoolhouse.model.transformer import Transformer

Rounding = Callable[[str, Tensor], Tensor]
"""A parameter's name and its fp32 master to what the network holds."""


def rounding_for(model: Transformer, to: str, group: int | None) -> Rounding:
    """What `compress.quantize` with this format and group, to nearest, makes of a checkpoint of the masters.

    The checkpoint will be in bf16, so that masters are rounded to it first. Raises RecipeError if no layer fits.
    """
    scheme = scheme_for(to, group)
    layers = {name for name, _ in linears_to_quantize(model, scheme)}
    coded = {f"{name}.weight" for name in layers | ends_to_quantize(model, scheme).keys()}
    if not layers:
        raise RecipeError(f"No layer of this network can be stored so ({scheme}): take a smaller group.")

    def held(name: str, master: Tensor) -> Tensor:
        if name not in coded:
            return master
        codes, scales = quantize_rows(master.to(torch.bfloat16), scheme=scheme)
        return codes.float() * spread(scales, codes.shape[1]).float()

    return held
