"""The stage `compress.latent`: grouped-query attention turned into latent attention, whose cache is shorter.

All key heads become one turning key that every query head reads in its own part, and what need not turn goes with the
values into one latent. Nothing is lost while all of it is kept; how much is, `turning` and `rank` say, and what that
costs `train.distill` heals. The result is a DeepSeek V3 checkpoint without experts.

How it is cut. Heads are mixed frequency by frequency so that the first few hold most of what keys carry, which rotary
positions do not notice (TransMLA, arXiv 2502.07864: RoRoPE); pairs that lose least by it stop turning (MHA2MLA, arXiv
2502.14837: partial RoPE), for many carry much and yet hardly turn within a text; they and the values share one basis,
balanced by their size (TransMLA: balanced keys and values). The norm over latents must do nothing at first: one latent,
constant and far larger than the rest, keeps its denominator still.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from pydantic import Field
from torch import Tensor, nn

from schoolhouse.compress.calibrate import Seen, read_texts, unquantized
from schoolhouse.core.artifact import Artifact, Draft
from schoolhouse.core.config import Ref, StageConfig
from schoolhouse.core.errors import ModelError, RecipeError
from schoolhouse.core.run import Run
from schoolhouse.model.attention import Causal
from schoolhouse.model.config import FULL, ModelConfig
from schoolhouse.model.families import from_hf
from schoolhouse.model.layers import Rotary
from schoolhouse.model.rope_rules import ORIGINAL
from schoolhouse.model.transformer import Transformer
from schoolhouse.model.weights import load_model, save_model

LOUD = 4096.0  # the constant latent beside the others: they change the norm by a part in 10^7


class Config(StageConfig):
    """Whose attention becomes latent, and how much of a token is remembered: `rank` + `turning` numbers a layer."""

    model: Ref  # a Llama, Mistral or Qwen2 checkpoint
    data: Ref  # the stage whose conversations it is shown, for example `prepare.traces`
    texts: int = Field(128, ge=1)  # how many of its conversations
    rank: int = Field(ge=4, multiple_of=2)  # numbers of the latent, one of which is constant
    turning: int = Field(ge=2, multiple_of=2)  # numbers of the key that turns with the position
    context: int | None = Field(None, ge=2)  # tokens of the texts it will read; without it of the longest shown


def run(config: Config, inputs: Mapping[str, Artifact], run: Run, out: Draft) -> None:
    """Write the converted checkpoint.

    Raises ModelError for a network that latent attention cannot express, RecipeError for sizes beyond what it has.
    """
    source = inputs[config.model].path
    unquantized(source)
    texts = read_texts(inputs[config.data], source, config.texts)
    model = load_model(source, run.runtime.dtype, run.runtime.device)
    check_shape(model.config, config.rank, config.turning)
    run.log.info(f"looking at {sum(map(len, texts)):,} tokens of {len(texts)} conversations")
    context = config.context or max(map(len, texts))
    latent = to_latent(model, moments(model, texts), config.rank, config.turning, context)
    save_model(latent, out.path, like=source)
    before, after = (m.config.kv_bytes_per_token() for m in (model, latent))
    out.meta |= {
        "num_params": latent.config.num_params(),
        "cache_bytes_per_token": after,
        "source_cache_bytes_per_token": before,
        "turns_within": context,
        "runtime": run.runtime.describe(),
    }
    run.log.info(
        f"cache {after:,} bytes a token instead of {before:,} ({after / before:.0%}); pairs turn that tell places "
        f"apart within {context:,} tokens (`context`); let train.distill heal it"
    )


def check_shape(shape: ModelConfig, rank: int, turning: int) -> None:
    """Raise ModelError or RecipeError for what cannot be expressed."""
    plain = (
        shape.mla is None and shape.moe is None and shape.norm == "rms" and shape.block == "sequential"
        and shape.gated_mlp and not (shape.mlp_bias or shape.qk_norm or shape.head_bias or shape.rope_interleave)
        and shape.rotary_dim is None and shape.sliding_window is None and shape.attn_logit_softcapping is None
        and shape.final_logit_softcapping is None and shape.query_pre_attn_scalar is None
        and not shape.scale_embeddings and Rotary(shape).factor[FULL] == 1.0
    )  # fmt: skip
    if not plain:
        raise ModelError(
            f"A {shape.model_type} like this has parts that latent attention as DeepSeek stores it cannot express "
            "(norms over heads, windows, experts, caps, another block): take a Llama, Mistral or Qwen2."
        )
    keys = shape.num_key_value_heads * shape.head_dim
    if turning > keys:
        raise RecipeError(f"turning is {turning}, all keys of a layer have {keys} numbers: no more can turn.")
    if rank > 2 * keys - turning + 2:
        raise RecipeError(
            f"rank is {rank}: {2 * keys - turning} numbers of keys and values are left beside {turning} that turn, and "
            "with the constant one more; a larger latent would hold nothing."
        )


@torch.no_grad()
def moments(model: Transformer, texts: Sequence[Sequence[int]]) -> list[Tensor]:
    """Of each layer the mean of x x^T over what its attention reads, with a 1 behind each x: (D + 1, D + 1) fp32."""
    size, device = model.config.hidden_size + 1, model.head_weight.device
    blank = torch.zeros(size, device=device)
    seen = [Seen(torch.outer(blank, blank), blank.clone()) for _ in range(model.config.num_hidden_layers)]
    handles = [
        layer.get_submodule("self_attn").register_forward_pre_hook(
            lambda _module, args, own=own: own.add(torch.cat((args[0].float(), torch.ones_like(args[0][..., :1])), -1))
        )
        for layer, own in zip(model.model.layers, seen, strict=False)
    ]
    try:
        for text in texts:
            model.hidden(torch.tensor([text], device=device), Causal(1, len(text), device))
    finally:
        for handle in handles:
            handle.remove()
    return [own.products / max(1, own.count) for own in seen]


@dataclass(frozen=True)
class _Heads:
    """One layer's keys with their heads mixed. Pairs of numbers, as rotary positions turn them, are (2, half)."""

    mix: Tensor  # (half, Hk, Hk): of each frequency the old heads (rows) in the new ones (columns)
    keys: Tensor  # (Hk, 2, half, D + 1), the new heads
    worth: Tensor  # (half, Hk), the energy of each pair, times that of the queries that meet it: what scores vary by


@torch.no_grad()
def to_latent(model: Transformer, seen: Sequence[Tensor], rank: int, turning: int, context: int) -> Transformer:
    """The network with latent attention; seen: what `moments` gave; context: tokens of the texts that it will read."""
    shape, state = model.config, model.state_dict()
    layers = [_mixed(state, i, shape, seen[i]) for i in range(shape.num_hidden_layers)]
    worth = torch.stack([heads.worth / heads.worth.sum() for heads in layers]).mean(0)
    worth = worth * _turned(Rotary(shape).frequencies[FULL], context)[:, None].to(worth)
    counts = torch.zeros(shape.head_dim // 2, dtype=torch.int64)  # of each frequency, how many heads go on turning
    best = worth.flatten().topk(turning // 2).indices.cpu() // shape.num_key_value_heads
    counts += torch.bincount(best, minlength=len(counts))
    config = _config(shape, counts, rank, turning)
    with torch.device("meta"):
        latent = Transformer(config)
    new = {name: tensor for name, tensor in state.items() if ".self_attn." not in name}
    for i, heads in enumerate(layers):
        new |= _attention(state, i, latent.config, shape, heads, counts, seen[i])
    dtype = model.head_weight.dtype
    latent.load_state_dict({name: tensor.to(dtype).contiguous() for name, tensor in new.items()}, assign=True)
    return latent.eval()


def _turned(frequencies: Tensor, context: int) -> Tensor:
    """How much of a score a pair that stops turning gets wrong, 0 to 2: the mean of 1 - cos over distances of 1 to
    `context` tokens, as many of them between 1 and 2 as between 100 and 200, since near ones are looked at most.
    """
    distances = torch.logspace(0, math.log2(context), 512, base=2, dtype=torch.float64)
    return (1 - torch.cos(frequencies.double().cpu()[:, None] * distances)).mean(-1)


def _projected(state: Mapping[str, Tensor], layer: int, name: str) -> Tensor:
    """The rows of a projection with their bias behind them: (N, D + 1) fp32."""
    prefix = f"model.layers.{layer}.self_attn.{name}"
    weight = state[f"{prefix}.weight"].float()
    bias = state.get(f"{prefix}.bias")
    last = weight.new_zeros(len(weight)) if bias is None else bias.float()
    return torch.cat((weight, last[:, None]), dim=1)


def _mixed(state: Mapping[str, Tensor], layer: int, shape: ModelConfig, seen: Tensor) -> _Heads:
    groups, half = shape.num_key_value_heads, shape.head_dim // 2
    keys = _projected(state, layer, "k_proj").view(groups, 2, half, -1)
    queries = _projected(state, layer, "q_proj").view(-1, 2, half, keys.shape[-1])
    energy = torch.einsum("gcfd,de,hcfe->fgh", keys, seen, keys)  # (half, Hk, Hk)
    carried, mix = torch.linalg.eigh(energy.double())
    carried, mix = carried.flip(-1).clamp(min=0).float(), mix.flip(-1).float()
    asked = torch.einsum("gcfd,de,gcfe->f", queries, seen, queries)
    return _Heads(mix, torch.einsum("fgs,gcfd->scfd", mix, keys), carried * asked[:, None])


def _attention(
    state: Mapping[str, Tensor], layer: int, latent: ModelConfig, shape: ModelConfig, heads: _Heads, counts: Tensor,
    seen: Tensor,
) -> dict[str, Tensor]:  # fmt: skip
    """The tensors of one layer's latent attention."""
    assert latent.mla is not None
    groups, half, head = shape.num_key_value_heads, shape.head_dim // 2, shape.head_dim
    turns = torch.arange(groups)[None] < counts[:, None]  # (half, Hk)
    freq, slot = turns.nonzero(as_tuple=True)
    still_freq, still_slot = (~turns).nonzero(as_tuple=True)
    key = heads.keys[slot, :, freq].transpose(0, 1).flatten(0, 1)  # (Dr, D + 1)
    rest = heads.keys[still_slot, :, still_freq].flatten(0, 1)  # (2 n, D + 1), both numbers of a pair together
    values = _projected(state, layer, "v_proj")
    down, up = _basis(rest, values, seen, latent.mla.kv_lora_rank - 1)

    group = torch.arange(shape.num_attention_heads) // (shape.num_attention_heads // groups)
    # What each query head sees of a pair that no longer turns: the old head's part of the new ones, summed.
    open_freq = (counts < groups).nonzero().flatten()
    seen_by = heads.mix[still_freq][:, group, :].gather(2, still_slot[:, None, None].expand(-1, len(group), 1))[..., 0]
    place = (still_freq[:, None] == open_freq[None]).float()  # (n, open)
    pairs = up[: len(rest)].view(len(still_freq), 2, up.shape[1])
    still = torch.einsum("nh,no,ncr->hcor", seen_by, place, pairs).flatten(1, 2)  # (H, Dn, R - 1)
    if not len(open_freq):
        still = up.new_zeros(len(group), latent.mla.qk_nope_head_dim, up.shape[1])
    value = up[len(rest) :].view(groups, head, -1)[group]
    up = torch.cat((still, value), dim=1).flatten(0, 1)  # (H (Dn + Dv), R - 1)

    queries = _projected(state, layer, "q_proj").view(len(group), 2, half, -1)
    turned = (
        queries[:, :, freq]
        * heads.mix[freq][:, group, :]
        .gather(2, slot[:, None, None].expand(-1, len(group), 1))[..., 0]
        .t()[:, None, :, None]
    )  # (H, 2, Dr / 2, D + 1)
    kept = queries[:, :, open_freq].flatten(1, 2)
    if not len(open_freq):
        kept = queries.new_zeros(len(group), latent.mla.qk_nope_head_dim, queries.shape[-1])
    query = torch.cat((kept, turned.flatten(1, 2)), dim=1).flatten(0, 1)
    query = query * (latent.mla.qk_head_dim / head) ** 0.5  # scores are divided by the root of the new width
    prefix = f"model.layers.{layer}.self_attn."
    out = _asking(query, latent, seen) | _remembering(down, key, up, latent, seen)
    out["o_proj.weight"] = state[f"{prefix}o_proj.weight"]
    out["o_proj.bias"] = state.get(f"{prefix}o_proj.bias", query.new_zeros(shape.hidden_size))
    return {prefix + name: tensor for name, tensor in out.items()}


def _basis(rest: Tensor, values: Tensor, seen: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """What makes latents (rank, D + 1), and still keys and values of them (n, rank): their largest common parts."""
    sizes = [float(torch.einsum("nd,de,ne->", part, seen, part)) if len(part) else 0.0 for part in (rest, values)]
    balance = math.sqrt(sizes[1] / sizes[0]) if sizes[0] > 1e-6 * sizes[1] else 1.0  # keys of no size stay so
    both = torch.cat((rest * balance, values))
    _, vectors = torch.linalg.eigh((both @ seen @ both.t()).double())
    basis = vectors.flip(-1)[:, :rank].float()
    down = nn.functional.pad(basis.t() @ both, (0, 0, 0, rank - basis.shape[1]))
    up = nn.functional.pad(basis, (0, rank - basis.shape[1]))
    up[: len(rest)] /= balance
    return down, up


def _still_norm(down: Tensor, seen: Tensor) -> tuple[Tensor, Tensor, float]:
    """Rows (n, D + 1) behind a norm that does nothing: with a constant row, the norm's weight, and what is left to
    divide by afterwards. Both are powers of two, which every number type holds, and what is left is nearly 1: behind
    louder numbers would stand smaller weights, which the steps of an optimizer tear apart.
    """
    usual = math.sqrt(max(float(torch.einsum("nd,de,ne->", down, seen, down)), 1e-12))
    loud = 2.0 ** math.ceil(math.log2(LOUD * usual))
    constant = torch.zeros_like(down[:1])
    constant[0, -1] = loud
    root = math.sqrt(len(down) + 1)
    whole = 2.0 ** round(math.log2(root))
    weight = down.new_full((len(down) + 1,), loud / whole)
    weight[-1] = 0.0
    return torch.cat((down, constant)), weight, root / whole


def _remembering(down: Tensor, key: Tensor, up: Tensor, latent: ModelConfig, seen: Tensor) -> dict[str, Tensor]:
    rows, weight, divide = _still_norm(down, seen)
    rows = torch.cat((rows, key))
    return {
        "kv_a_proj_with_mqa.weight": rows[:, :-1],
        "kv_a_proj_with_mqa.bias": rows[:, -1],
        "kv_a_layernorm.weight": weight,
        "kv_b_proj.weight": nn.functional.pad(up / divide, (0, 1)),
    }


def _asking(query: Tensor, latent: ModelConfig, seen: Tensor) -> dict[str, Tensor]:
    """Queries straight from the stream; a bias has no place there, so that queries with one pass a latent, too."""
    assert latent.mla is not None
    if latent.mla.q_lora_rank is None:
        return {"q_proj.weight": query[:, :-1]}
    width = query.shape[1] - 1
    copy = torch.eye(width + 1, device=query.device)[:width]
    rows, weight, divide = _still_norm(torch.cat((copy, torch.zeros_like(copy[:1]))), seen)
    weight[-1] = weight[0] / rows[-1, -1]  # the constant, which carries the bias, becomes as large as the rest does: 1
    up = torch.cat((query[:, :-1], torch.zeros_like(query[:, :1]), query[:, -1:]), dim=1) / divide
    return {
        "q_a_proj.weight": rows[:, :-1],
        "q_a_proj.bias": rows[:, -1],
        "q_a_layernorm.weight": weight,
        "q_b_proj.weight": up,
    }


def _config(shape: ModelConfig, counts: Tensor, rank: int, turning: int) -> ModelConfig:
    """A DeepSeek V3 without experts whose pairs turn as fast as those that were kept."""
    frequencies = Rotary(shape).frequencies[FULL].double().repeat_interleave(counts)
    plain = shape.rope_theta ** -(torch.arange(0, turning, 2, dtype=torch.float64) / turning)
    factors = (plain / frequencies).tolist()
    still = 2 * int((counts < shape.num_key_value_heads).sum())
    return from_hf(
        {
            "model_type": "deepseek_v3",
            "vocab_size": shape.vocab_size,
            "hidden_size": shape.hidden_size,
            "intermediate_size": shape.intermediate_size,
            "num_hidden_layers": shape.num_hidden_layers,
            "num_attention_heads": shape.num_attention_heads,
            "rms_norm_eps": shape.rms_norm_eps,
            "max_position_embeddings": shape.max_position_embeddings,
            "hidden_act": shape.hidden_act,
            "tie_word_embeddings": shape.tie_word_embeddings,
            "initializer_range": shape.initializer_range,
            "bos_token_id": shape.bos_token_id,
            "eos_token_id": list(shape.eos_token_id) if isinstance(shape.eos_token_id, tuple) else shape.eos_token_id,
            "pad_token_id": shape.pad_token_id,
            "rope_theta": shape.rope_theta,
            "rope_scaling": {
                "rope_type": "longrope",
                "short_factor": factors,
                "long_factor": factors,
                "factor": 1.0,
                "attention_factor": 1.0,
                ORIGINAL: shape.max_position_embeddings,
            },
            "rope_interleave": False,
            "attention_bias": True,
            "q_lora_rank": shape.hidden_size + 2 if shape.attention_bias else None,
            "kv_lora_rank": rank,
            "qk_nope_head_dim": still or 2,
            "qk_rope_head_dim": turning,
            "v_head_dim": shape.head_dim,
            "num_nextn_predict_layers": 0,
            "n_routed_experts": 1,
            "num_experts_per_tok": 1,
            "moe_intermediate_size": shape.intermediate_size,
            "n_group": 1,
            "topk_group": 1,
            "first_k_dense_replace": shape.num_hidden_layers,
        }
    )
