"""Names of tensors: ours are Llama's and DeepSeek's; a family that names or joins them otherwise says so as data.

The same table is applied both ways, in reading and in writing. Knows no torch: splitting and joining are left to
`model/weights.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

_LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)")


@dataclass(frozen=True)
class Joined:
    """Several of our tensors in one of theirs, row below row.

    by_group: not one whole part after another, but for each key/value head its queries, then its key, then its value.
    """

    parts: tuple[str, ...]
    by_group: bool = False


@dataclass(frozen=True)
class Names:
    """How a family calls what we call otherwise. inner: (pattern, replacement) for names within a layer."""

    layers: str = "model.layers"
    outer: Mapping[str, str] = field(default_factory=dict)
    inner: tuple[tuple[str, str], ...] = ()
    joined: Mapping[str, Joined] = field(default_factory=dict)
    derived: tuple[str, ...] = ()  # patterns of stored tensors that follow from the config

    def stored(self, name: str) -> str:
        """The stored tensor that holds one of ours."""
        module, _, leaf = name.rpartition(".")
        found = _LAYER.fullmatch(module)
        if not found:
            return f"{self.outer.get(module, module)}.{leaf}"
        number, inner = found.groups()
        for theirs, join in self.joined.items():
            if inner in join.parts:
                return f"{self.layers}.{number}.{theirs}.{leaf}"
        for pattern, replacement in self.inner:
            renamed, count = re.subn(f"^{pattern}$", replacement, inner)
            if count:
                return f"{self.layers}.{number}.{renamed}.{leaf}"
        return f"{self.layers}.{number}.{inner}.{leaf}"

    def module(self, name: str) -> str:
        """The stored module that one of ours is, or is a part of."""
        return self.stored(f"{name}.weight").rpartition(".")[0]

    def holders(self, names: Iterable[str]) -> dict[str, list[str]]:
        """Stored names with those of ours that each holds, in the order in which it joins them."""
        out: dict[str, list[str]] = {}
        for name in names:
            out.setdefault(self.stored(name), []).append(name)
        for stored, held in out.items():
            join = self.join(stored)
            if join is not None:
                held.sort(key=lambda name: join.parts.index(_part(name)))
        return out

    def join(self, stored: str) -> Joined | None:
        """How a stored tensor is joined; None for one that is one of ours."""
        return next((j for theirs, j in self.joined.items() if f".{theirs}." in stored), None)


def _part(name: str) -> str:
    """The module within its layer."""
    found = _LAYER.fullmatch(name.rpartition(".")[0])
    assert found is not None
    return found[2]


LLAMA = Names(derived=(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq",))

PHI = Names(
    outer={"model.norm": "model.final_layernorm"},
    inner=(
        (r"self_attn\.o_proj", "self_attn.dense"),
        (r"mlp\.up_proj", "mlp.fc1"),
        (r"mlp\.down_proj", "mlp.fc2"),
    ),
    derived=(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq",),
)

PHI3 = Names(
    joined={
        "self_attn.qkv_proj": Joined(("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
        "mlp.gate_up_proj": Joined(("mlp.gate_proj", "mlp.up_proj")),
    }
)

_GROUPED = Joined(("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), by_group=True)

_WIDE = ((r"mlp\.up_proj", "mlp.dense_h_to_4h"), (r"mlp\.down_proj", "mlp.dense_4h_to_h"))

FALCON = Names(
    layers="transformer.h",
    outer={"model.embed_tokens": "transformer.word_embeddings", "model.norm": "transformer.ln_f"},
    inner=((r"self_attn\.o_proj", "self_attention.dense"), *_WIDE),
    joined={"self_attention.query_key_value": _GROUPED},
)

FALCON_TWO_NORMS = Names(
    layers=FALCON.layers,
    outer=FALCON.outer,
    inner=(*FALCON.inner, (r"input_layernorm", "ln_attn"), (r"post_attention_layernorm", "ln_mlp")),
    joined=FALCON.joined,
)

GPT_NEOX = Names(
    layers="gpt_neox.layers",
    outer={
        "model.embed_tokens": "gpt_neox.embed_in",
        "model.norm": "gpt_neox.final_layer_norm",
        "lm_head": "embed_out",
    },
    inner=((r"self_attn\.o_proj", "attention.dense"), *_WIDE),
    joined={"attention.query_key_value": _GROUPED},
    derived=(r"gpt_neox\.layers\.\d+\.attention\.(bias|masked_bias|rotary_emb\.inv_freq)",),
)

GPTJ = Names(
    layers="transformer.h",
    outer={"model.embed_tokens": "transformer.wte", "model.norm": "transformer.ln_f"},
    inner=(
        (r"input_layernorm", "ln_1"),
        (r"self_attn\.o_proj", "attn.out_proj"),
        (r"self_attn\.(\w+)", r"attn.\1"),
        (r"mlp\.up_proj", "mlp.fc_in"),
        (r"mlp\.down_proj", "mlp.fc_out"),
    ),
    derived=(r"transformer\.h\.\d+\.attn\.(bias|masked_bias|embed_positions)",),
)

MIXTRAL = Names(
    inner=(
        (r"mlp\.gate", "block_sparse_moe.gate"),
        (r"mlp\.experts\.(\d+)\.gate_proj", r"block_sparse_moe.experts.\1.w1"),
        (r"mlp\.experts\.(\d+)\.up_proj", r"block_sparse_moe.experts.\1.w3"),
        (r"mlp\.experts\.(\d+)\.down_proj", r"block_sparse_moe.experts.\1.w2"),
    )
)
