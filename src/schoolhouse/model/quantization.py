"""Models in codes and their checkpoints: which layers they are for, and what config.json says of them.

The format is compressed-tensors' `pack-quantized` (`weight_packed`, `weight_scale`, `weight_shape`). transformers reads
it; where the embedding is in codes, too, only if it de-quantizes what it loads, which config.json then asks for, and if
all codes are of one kind (its `dequantize` looks at one group).

Source: vllm-project/compressed-tensors 0.20, `quantization/quant_config.py`; transformers 5.23,
`integrations/compressed_tensors.py`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from schoolhouse.core.errors import ModelError
from schoolhouse.model.codes import INT8, Scheme
from schoolhouse.model.families import names_of
from schoolhouse.model.names import Names
from schoolhouse.model.quantized import Coded, QuantEmbedding, QuantLinear
from schoolhouse.model.transformer import Transformer

EMBEDDING, HEAD = "model.embed_tokens", "lm_head"
_LINEAR, _EMBEDDING = "Linear", "Embedding"  # what compressed-tensors calls kinds of layers


def linears_to_quantize(model: nn.Module, scheme: Scheme = INT8) -> Iterator[tuple[str, nn.Linear]]:
    """The layers that codes are for, by name: every `nn.Linear` but the output head, those of odd widths, and what
    makes keys and values from latents, which decoding multiplies in another order.
    """
    for name, module in model.named_modules():
        plain = isinstance(module, nn.Linear) and name != HEAD and not name.endswith(".kv_b_proj")
        if plain and scheme.fits(module.in_features):
            yield name, module


def ends_to_quantize(model: Transformer, scheme: Scheme) -> dict[str, nn.Embedding | nn.Linear]:
    """The embedding, and the head where it has a matrix of its own, if codes fit their rows."""
    modules = dict(model.named_modules())
    ends = {name: modules[name] for name in (EMBEDDING, HEAD) if name in modules}
    plain = {name: end for name, end in ends.items() if isinstance(end, nn.Embedding | nn.Linear)}
    return plain if scheme.fits(model.config.hidden_size) else {}


def schemes_of(model: nn.Module) -> dict[str, Scheme]:
    """The layers of a model that are in codes, and how they came to them."""
    return {name: module.scheme for name, module in model.named_modules() if isinstance(module, Coded)}


def quantization_config(model: Transformer, schemes: Mapping[str, Scheme]) -> dict[str, Any]:
    """What config.json says about a model whose layers of these names are, or are to be, in such codes."""
    names = names_of(model.config)
    linears = {name for name, m in model.named_modules() if isinstance(m, nn.Linear | QuantLinear)}
    # The head under its usual name in any case: transformers builds one of its own where it is tied.
    ignore = {HEAD, *map(names.module, linears)} - {names.module(name) for name in schemes}
    common = Counter(schemes[name] for name in linears & schemes.keys()).most_common(1)
    usual = common[0][0] if common else None
    groups: dict[Scheme, list[str]] = {}
    for name, scheme in schemes.items():
        if name == EMBEDDING:
            groups.setdefault(scheme, []).append(_EMBEDDING)
        elif scheme != usual:
            groups.setdefault(scheme, []).append(names.module(name))
    if usual is not None:
        groups[usual] = [_LINEAR, *groups.pop(usual, [])]  # last, for the first group that names a layer counts
    config = {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": {f"group_{i}": _group(s, named) for i, (s, named) in enumerate(groups.items())},
        "ignore": sorted(ignore),
        "kv_cache_scheme": None,
    }
    return config | ({"dequantize": True} if EMBEDDING in schemes else {})


def _group(scheme: Scheme, targets: list[str]) -> dict[str, Any]:
    weights = {
        "num_bits": scheme.bits,
        "type": "int",
        "symmetric": True,
        "strategy": "channel" if scheme.group is None else "group",
        "group_size": scheme.group,
        "block_structure": None,
        "dynamic": False,
        "actorder": None,
        "observer": "minmax",
        "observer_kwargs": {},
    }
    return {"targets": targets, "weights": weights, "input_activations": None, "output_activations": None}


class _Group(NamedTuple):
    """Kinds or names of layers, and how they came to their codes."""

    targets: list[str]
    scheme: Scheme


def replace_linears(model: Transformer, config: Mapping[str, Any]) -> None:
    """Put layers in codes in the places of those that a checkpoint's `quantization_config` says are stored so.

    Raises ModelError for a quantization that is not symmetric, of 8 or 4 bits, in compressed-tensors' packed form.
    """
    groups, names = _check_config(config), names_of(model.config)
    ignore = list(config.get("ignore") or [])
    for name, module in list(model.named_modules()):
        if not isinstance(module, nn.Linear | nn.Embedding) or _is_named(name, names, ignore):
            continue
        scheme = _scheme_for(name, module, names, groups)
        if scheme is None:
            continue
        width = module.in_features if isinstance(module, nn.Linear) else module.embedding_dim
        if not scheme.fits(width):
            raise ModelError(
                f"{name} is quantized with rows of {width} weights, which is no multiple of "
                f"{max(scheme.in_a_word, scheme.group or 1)}."
            )
        with torch.device(module.weight.device):
            if isinstance(module, nn.Linear):
                coded: Coded = QuantLinear(width, module.out_features, module.bias is not None, scheme)
            else:
                coded = QuantEmbedding(width, module.num_embeddings, scheme=scheme)
        put(model, name, coded)


def put(model: nn.Module, name: str, module: nn.Module) -> None:
    """Set the module of this name."""
    parent, _, own = name.rpartition(".")
    setattr(model.get_submodule(parent), own, module)


def _scheme_for(name: str, module: nn.Module, names: Names, groups: Sequence[_Group]) -> Scheme | None:
    """The first group's that names a layer or its kind."""
    kind = _LINEAR if isinstance(module, nn.Linear) else _EMBEDDING
    return next((scheme for targets, scheme in groups if kind in targets or _is_named(name, names, targets)), None)


def _check_config(config: Mapping[str, Any]) -> list[_Group]:
    """What is in which codes, after a look at everything that would change the meaning of the stored numbers."""
    groups = list((config.get("config_groups") or {}).values())
    _check({"quant_method": config.get("quant_method"), "config_groups": len(groups) or None})
    _check({"kv_cache_scheme": config.get("kv_cache_scheme")})
    return [_checked_group(config, group) for group in groups]


def _checked_group(config: Mapping[str, Any], group: Mapping[str, Any]) -> _Group:
    weights, targets = group.get("weights") or {}, list(group.get("targets") or [])
    plain = {_LINEAR, _EMBEDDING}
    _check(
        {
            "format": group.get("format") or config.get("format"),
            "targets": next((t for t in targets if t not in plain and not t.startswith("re:") and "." not in t), None),
            "num_bits": weights.get("num_bits"),
            "type": weights.get("type"),
            "strategy": weights.get("strategy"),
            "symmetric": weights.get("symmetric"),
            "input_activations": group.get("input_activations"),
            "output_activations": group.get("output_activations"),
        }
    )
    if weights["strategy"] == "channel":
        return _Group(targets, Scheme(int(weights["num_bits"])))
    size = weights.get("group_size")
    if not isinstance(size, int) or size < 2 or size % 2:
        raise ModelError(
            f"The checkpoint's quantization_config has group_size = {size!r}; it has to be an even number."
        )
    return _Group(targets, Scheme(int(weights["num_bits"]), size))


_READ: dict[str, tuple[Any, ...]] = {
    "quant_method": ("compressed-tensors",),
    "format": ("pack-quantized",),
    "config_groups": (1, 2, 3, 4),
    "targets": (None, HEAD),
    "num_bits": (8, 4),
    "type": ("int",),
    "strategy": ("channel", "group"),
    "symmetric": (True,),
    "input_activations": (None,),
    "output_activations": (None,),
    "kv_cache_scheme": (None,),
}


def _check(found: Mapping[str, Any]) -> None:
    for key, value in found.items():
        if value not in _READ[key]:
            raise ModelError(
                f"The checkpoint's quantization_config has {key} = {value!r}; read here is "
                f"{' or '.join(map(repr, _READ[key]))} (weights of 8 or 4 bits, symmetric, a scale for a row or a "
                "group of it, compressed-tensors pack-quantized). Take the checkpoint in bf16."
            )


def _is_named(name: str, names: Names, patterns: Sequence[str]) -> bool:
    """True for a layer in the list, under our name or theirs, or one that a `re:` entry matches from its start."""
    both = (name, names.module(name))
    return any(re.match(p[3:], own) if p.startswith("re:") else p == own for p in patterns for own in both)
