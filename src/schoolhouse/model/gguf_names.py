"""What GGUF calls the families and their tensors: data, read in both directions. Knows no torch.

A stored tensor of GGUF holds one of a checkpoint's, except where `*` stands for the number of an expert (all experts of
a layer lie in one tensor), and where two of GGUF's share one of a checkpoint's (the halves of MLA's kv_b).

Source: `gguf.constants` and `gguf.tensor_mapping` of the gguf package 0.19; llama.cpp's converter (ggml-org/llama.cpp:
conversion/), for which family is written as which and what its tensors go through.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

ANY = "*"
"""Stands for the number of an expert in a checkpoint's key."""

_IN_LAYER = re.compile(r"blk\.(\d+)\.(.+)")
_KEY_IN_LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)")
_EXPERT = re.compile(r"\.experts\.(\d+)\.")

_OUTER = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_NORMS = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
_ATTENTION = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
}
_HEAD_NORMS = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
_FEED_FORWARD = {"ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}
_EXPERTS = {
    "ffn_gate_inp": "mlp.gate",
    "ffn_gate_exps": "mlp.experts.*.gate_proj",
    "ffn_up_exps": "mlp.experts.*.up_proj",
    "ffn_down_exps": "mlp.experts.*.down_proj",
}
_DENSE = _NORMS | _ATTENTION | _FEED_FORWARD
_GEMMA_NORMS = {
    "attn_norm": "input_layernorm",
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_DEEPSEEK = (
    _NORMS
    | _FEED_FORWARD
    | _EXPERTS
    | {
        "attn_q": "self_attn.q_proj",
        "attn_q_a": "self_attn.q_a_proj",
        "attn_q_a_norm": "self_attn.q_a_layernorm",
        "attn_q_b": "self_attn.q_b_proj",
        "attn_kv_a_mqa": "self_attn.kv_a_proj_with_mqa",
        "attn_kv_a_norm": "self_attn.kv_a_layernorm",
        "attn_k_b": "self_attn.kv_b_proj",
        "attn_v_b": "self_attn.kv_b_proj",
        "attn_output": "self_attn.o_proj",
        "ffn_gate_shexp": "mlp.shared_experts.gate_proj",
        "ffn_up_shexp": "mlp.shared_experts.up_proj",
        "ffn_down_shexp": "mlp.shared_experts.down_proj",
    }
)


@dataclass(frozen=True)
class Architecture:
    """One family in GGUF.

    name: GGUF's; parts: GGUF's module within a layer, and the checkpoint's; whole: whole names within a layer; old:
    parts of older files, read only; permuted: rows of q and k stand in pairs; plus_one: norms are stored with the one
    that the family adds to them; written: whether it can be exported.
    """

    name: str
    parts: Mapping[str, str]
    whole: Mapping[str, str] = field(default_factory=dict)
    old: Mapping[str, str] = field(default_factory=dict)
    permuted: bool = False
    plus_one: bool = False
    written: bool = False

    def key(self, name: str) -> str | None:
        """The checkpoint's key of a tensor of GGUF, experts as `*`; None for one without a place in this family."""
        if name in _OUTER:
            return _OUTER[name]
        found = _IN_LAYER.fullmatch(name)
        if not found:
            return None
        layer, rest = f"model.layers.{int(found[1])}", found[2]
        if rest in self.whole:
            return f"{layer}.{self.whole[rest]}"
        part, _, leaf = rest.rpartition(".")
        module = self.parts.get(part) or self.old.get(part)
        return f"{layer}.{module}.{leaf}" if module and leaf in ("weight", "bias") else None

    def names(self, key: str) -> list[str]:
        """The tensors of GGUF that hold one of a checkpoint's: one, or two for MLA's kv_b; none if it has no place."""
        outer = [name for name, theirs in _OUTER.items() if theirs == key]
        found = _KEY_IN_LAYER.fullmatch(key)
        if outer or not found:
            return outer
        rest = _EXPERT.sub(f".experts.{ANY}.", f".{found[2]}")[1:]
        whole = [name for name, theirs in self.whole.items() if theirs == rest]
        module, _, leaf = rest.rpartition(".")
        parts = [f"{part}.{leaf}" for part, theirs in self.parts.items() if theirs == module]
        return [f"blk.{found[1]}.{name}" for name in whole or parts]


_DEEPSEEK2 = Architecture(
    "deepseek2",
    _DEEPSEEK,
    whole={"exp_probs_b.bias": "mlp.gate.e_score_correction_bias"},
    old={"attn_kv_b": "self_attn.kv_b_proj"},
    written=True,
)
_LLAMA = Architecture("llama", _DENSE, permuted=True, written=True)

ARCHITECTURES: dict[str, Architecture] = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "mixtral": Architecture(
        "llama",
        _NORMS
        | _ATTENTION
        | {
            "ffn_gate_inp": "block_sparse_moe.gate",
            "ffn_gate_exps": "block_sparse_moe.experts.*.w1",
            "ffn_up_exps": "block_sparse_moe.experts.*.w3",
            "ffn_down_exps": "block_sparse_moe.experts.*.w2",
        },
        permuted=True,
    ),
    "qwen2": Architecture("qwen2", _DENSE, written=True),
    "qwen3": Architecture("qwen3", _DENSE | _HEAD_NORMS, written=True),
    "qwen3_moe": Architecture("qwen3moe", _NORMS | _ATTENTION | _HEAD_NORMS | _EXPERTS, written=True),
    "deepseek_v2": _DEEPSEEK2,
    "deepseek_v3": _DEEPSEEK2,
    "gemma2": Architecture("gemma2", _GEMMA_NORMS | _ATTENTION | _FEED_FORWARD, plus_one=True),
    "gemma3_text": Architecture("gemma3", _GEMMA_NORMS | _ATTENTION | _HEAD_NORMS | _FEED_FORWARD, plus_one=True),
    "phi3": Architecture(
        "phi3",
        _NORMS
        | {"attn_qkv": "self_attn.qkv_proj", "attn_output": "self_attn.o_proj"}
        | {"ffn_up": "mlp.gate_up_proj", "ffn_down": "mlp.down_proj"},
    ),
}
"""The families that can be read from GGUF, by `model_type`; those with `written` can be exported, too."""


def known() -> str:
    """GGUF's names of the architectures that can be read, for messages."""
    return ", ".join(sorted({row.name for row in ARCHITECTURES.values()}))


def written() -> str:
    """The families that can be exported, for messages."""
    return ", ".join(model_type for model_type, row in ARCHITECTURES.items() if row.written)
