"""The parts that every family shares: norms, rotary positions, feed-forward.

Shape letters, used all over the house: `B` batch, `T` query tokens, `S` cached tokens, `D` hidden, `H` heads,
`Hk` key/value heads, `Dh` head dim, `Dn Dr Dv` MLA's still, turning and value dims, `R` latent rank, `F` FFN width,
`E` experts, `A` active experts, `V` vocabulary, `N` tokens of a packed row, `P` prompts, `G` group.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from schoolhouse.core.errors import ModelError
from schoolhouse.kernels.fused import gated, rms_norm, rms_norm_beside
from schoolhouse.kernels.native import takes
from schoolhouse.kernels.packed_experts import LANES, feed_forward
from schoolhouse.kernels.packed_weight import PackedWeight, can_pack, linear
from schoolhouse.model.config import FULL, SLIDING, ModelConfig
from schoolhouse.model.rope_rules import ORIGINAL

Rope = tuple[Tensor, Tensor]
"""Cosines and sines of each token's angles, each (B, T, 1, number of pairs)."""

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_new": partial(F.gelu, approximate="tanh"),
    "gelu_pytorch_tanh": partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
}
"""Activations by their name in `hidden_act`."""


class RMSNorm(nn.Module):
    """Scale each vector to unit root mean square, then by a learnt weight. Source: arXiv 1910.07467, eq. 4."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., D) to the same shape and dtype; the mean square is taken in fp32."""
        return rms_norm(x, self.weight, self.eps)

    def beside(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x and its norm, for a stream that goes on."""
        return rms_norm_beside(x, self.weight, self.eps)


class RMSNormPlusOne(RMSNorm):
    """RMSNorm whose weight is what is added to one, multiplied in fp32: Gemma's. Source: transformers 5.23, Gemma 3."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__(size, eps)
        nn.init.zeros_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., D) to the same shape and dtype."""
        return rms_norm(x, self.weight, self.eps, shift=1.0)

    def beside(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """See `RMSNorm.beside`."""
        return rms_norm_beside(x, self.weight, self.eps, shift=1.0)


def make_norm(config: ModelConfig, size: int) -> nn.Module:
    """The norm that this model uses, over vectors of a size."""
    if config.norm == "layer":
        return nn.LayerNorm(size, config.rms_norm_eps)
    kind = RMSNormPlusOne if config.norm == "rms_plus_one" else RMSNorm
    return kind(size, config.rms_norm_eps)


def activation(config: ModelConfig) -> Callable[[Tensor], Tensor]:
    """The feed-forward's activation. ModelError for a name that is not known."""
    if config.hidden_act not in ACTIVATIONS:
        raise ModelError(f"hidden_act is {config.hidden_act!r}; known are {', '.join(ACTIVATIONS)}.")
    return ACTIVATIONS[config.hidden_act]


class Linear(nn.Linear):
    """`nn.Linear` that can keep a copy of its weights, laid out for fast products without gradients."""

    packed: PackedWeight | None = None

    @property
    def is_packed(self) -> bool:
        """True if there is nothing to pack: the copy holds, or no kernel would take it."""
        return self.packed.is_of(self.weight) if self.packed else not can_pack(self.weight)

    def pack(self) -> None:
        """Make that copy anew."""
        self.packed = PackedWeight(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., K) to (..., N)."""
        return linear(x, self.weight, self.bias, self.packed)


class GatedFeedForward(nn.Module):
    """Feed-forward with a gate: down(act(gate(x)) * up(x)). Source: arXiv 2002.05202, eq. 6."""

    def __init__(self, config: ModelConfig, width: int | None = None) -> None:
        super().__init__()
        d, f, bias = config.hidden_size, width or config.intermediate_size, config.mlp_bias
        self.activation = activation(config)
        self.gate_proj = Linear(d, f, bias=bias)
        self.up_proj = Linear(d, f, bias=bias)
        self.down_proj = Linear(f, d, bias=bias)

    def forward(self, x: Tensor, stream: Tensor | None = None) -> Tensor:
        """x: (..., D) to the same shape, on top of the stream if that is given."""
        copies = self._copies() if takes(x) and not torch.is_grad_enabled() and x.shape[:-1].numel() else []
        if copies:
            gate, up, down = copies
            return feed_forward(x, gate, up, down, stream)
        out = self._by_operations(x)
        return out if stream is None else added(out, stream)

    def _by_operations(self, x: Tensor) -> Tensor:
        gate, up = self.gate_proj(x), self.up_proj(x)
        return self.down_proj(gated(gate, up) if self.activation is F.silu else self.activation(gate) * up)

    def _copies(self) -> list[PackedWeight]:
        """Copies of gate, up and down that hold, where one call does what follows from them; else nothing."""
        linears = (self.gate_proj, self.up_proj, self.down_proj)
        if self.activation is not F.silu or self.gate_proj.in_features % LANES or self.gate_proj.out_features % 2:
            return []
        held = [m.packed for m in linears if isinstance(m, Linear) and m.bias is None and m.is_packed]
        copies = [copy for copy in held if copy is not None]
        return copies if len(copies) == len(linears) else []


def added(new: Tensor, x: Tensor) -> Tensor:
    """Their sum, in the place of the new one where no gradient wants it: fresh memory costs more than the sum."""
    return x + new if torch.is_grad_enabled() else new.add_(x)


class FeedForward(nn.Module):
    """Feed-forward without a gate: down(act(up(x))). Source: arXiv 1706.03762, section 3.3."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        d, f, bias = config.hidden_size, config.intermediate_size, config.mlp_bias
        self.activation = activation(config)
        self.up_proj = Linear(d, f, bias=bias)
        self.down_proj = Linear(f, d, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., D) to the same shape."""
        return self.down_proj(self.activation(self.up_proj(x)))


class Rotary:
    """The angles of a model's rotary positions, for each type of layer. Holds no parameters.

    Source: arXiv 2104.09864, eq. 15; `llama3` as transformers 5.23 computes it; YaRN, arXiv 2309.00071, section 3.4;
    longrope, arXiv 2402.13753, section 3.2 and the original context's factors.
    """

    def __init__(self, config: ModelConfig) -> None:
        scaling = config.rope_scaling or {}
        self.frequencies = {FULL: _scaled(_plain(config, config.rope_theta), config)}
        self.factor = {FULL: _sharpness(scaling)}
        if config.rope_local_theta is not None:
            self.frequencies[SLIDING], self.factor[SLIDING] = _plain(config, config.rope_local_theta), 1.0

    def tables(self, positions: Tensor, dtype: torch.dtype) -> dict[str, Rope]:
        """Cosines and sines at positions (B, T) int64."""
        return {kind: self._table(kind, positions, dtype) for kind in self.frequencies}

    def _table(self, kind: str, positions: Tensor, dtype: torch.dtype) -> Rope:
        angles = positions[..., None].float() * self.frequencies[kind].to(positions.device)  # (B, T, pairs)
        cos, sin = angles.cos() * self.factor[kind], angles.sin() * self.factor[kind]
        return cos[:, :, None].to(dtype), sin[:, :, None].to(dtype)


def rotary_width(config: ModelConfig) -> int:
    """How many numbers of a head turn with the position."""
    if config.mla is not None:
        return config.mla.qk_rope_head_dim
    return config.head_dim if config.rotary_dim is None else config.rotary_dim


def _plain(config: ModelConfig, theta: float) -> Tensor:
    """Angle per position of each pair: (pairs,) float32."""
    width = rotary_width(config)
    half = torch.arange(0, width, 2, dtype=torch.float32) / width
    return 1.0 / (theta**half)


def _scaled(frequencies: Tensor, config: ModelConfig) -> Tensor:
    scaling = config.rope_scaling
    if scaling is None:
        return frequencies
    kind = scaling.get("rope_type", scaling.get("type"))
    if kind == "linear":
        return frequencies / _number(scaling, "factor")
    if kind == "llama3":
        return _llama3_frequencies(frequencies, scaling)
    if kind == "yarn":
        return _yarn_frequencies(frequencies, config, scaling)
    if kind == "longrope":
        return _longrope_frequencies(frequencies, scaling)
    raise ModelError(f"rope_scaling has type {kind!r}: this decoder knows 'linear', 'llama3', 'yarn' and 'longrope'.")


def _number(scaling: Mapping[str, Any], key: str, default: float | None = None) -> float:
    value = scaling.get(key)
    return default if value is None and default is not None else float(scaling[key])


def _llama3_frequencies(frequencies: Tensor, scaling: Mapping[str, Any]) -> Tensor:
    """Slow waves are stretched by `factor`, fast ones kept, those between are mixed."""
    factor, original = _number(scaling, "factor"), _number(scaling, ORIGINAL)
    low, high = _number(scaling, "low_freq_factor"), _number(scaling, "high_freq_factor")
    turns = original * frequencies / (2 * math.pi)  # full turns within the original context
    keep = ((turns - low) / (high - low)).clamp(0.0, 1.0)
    return frequencies * keep + frequencies / factor * (1 - keep)


def _yarn_frequencies(frequencies: Tensor, config: ModelConfig, scaling: Mapping[str, Any]) -> Tensor:
    """Pairs that turn less than `beta_slow` times in the original context are stretched, above `beta_fast` kept."""
    width = rotary_width(config)
    original, factor = _number(scaling, ORIGINAL), _number(scaling, "factor")

    def pair(turns: float) -> float:
        return width * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(config.rope_theta))

    low, high = pair(_number(scaling, "beta_fast", 32.0)), pair(_number(scaling, "beta_slow", 1.0))
    if scaling.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, width - 1)
    place = torch.arange(width // 2, dtype=torch.float32)
    stretch = ((place - low) / max(high - low, 0.001)).clamp(0.0, 1.0)
    return frequencies / factor * stretch + frequencies * (1 - stretch)


def _longrope_frequencies(frequencies: Tensor, scaling: Mapping[str, Any]) -> Tensor:
    """Each pair is slowed by a factor of its own; texts here stay within the original context, whose factors count."""
    factors = torch.tensor(scaling["short_factor"], dtype=torch.float32)
    if factors.shape != frequencies.shape:
        raise ModelError(
            f"rope_scaling has {len(factors)} numbers in short_factor; {len(frequencies)} pairs of a head turn."
        )
    return frequencies / factors


def _sharpness(scaling: Mapping[str, Any]) -> float:
    """What cosines and sines are multiplied by, to keep the softmax as sharp as it was in the original context."""
    if scaling.get("rope_type") != "longrope":
        return yarn_factor(scaling)
    if scaling.get("attention_factor") is not None:
        return _number(scaling, "attention_factor")
    factor, original = _number(scaling, "factor"), _number(scaling, ORIGINAL)
    return math.sqrt(1.0 + math.log(factor) / math.log(original)) if factor > 1 else 1.0


def _yarn_mscale(factor: float, mscale: float = 1.0) -> float:
    return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1 else 1.0


def yarn_factor(scaling: Mapping[str, Any]) -> float:
    """What YaRN multiplies cosines and sines by, to keep the softmax as sharp as it was: 1 without YaRN."""
    if scaling.get("rope_type", scaling.get("type")) != "yarn":
        return 1.0
    if scaling.get("attention_factor") is not None:
        return _number(scaling, "attention_factor")
    factor, mscale, over_all = _number(scaling, "factor"), scaling.get("mscale"), scaling.get("mscale_all_dim")
    if mscale and over_all:
        return _yarn_mscale(factor, float(mscale)) / _yarn_mscale(factor, float(over_all))
    return _yarn_mscale(factor)


def softmax_scale(config: ModelConfig) -> float:
    """What attention's scores are multiplied by; MLA under YaRN has a factor of its own.

    Source: DeepSeek V3's reference code: (Dn + Dr)^-1/2 * m^2 with m = 0.1 * mscale_all_dim * ln(factor) + 1.
    """
    scale = config.softmax_width**-0.5
    scaling = config.rope_scaling or {}
    if config.mla is not None and scaling.get("mscale_all_dim"):
        scale *= _yarn_mscale(_number(scaling, "factor"), _number(scaling, "mscale_all_dim")) ** 2
    return scale
