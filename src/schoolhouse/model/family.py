"""What a family of models is: a row of data, with what a row can't say as two small functions.

`read` turns the values of a `config.json` (their keys renamed, defaults filled in, nulls left out) into fields of
`ModelConfig`; `write` gives back the keys that hold them. The rows lie in `model/known/`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from schoolhouse.core.errors import ModelError
from schoolhouse.model import names as tensor_names
from schoolhouse.model.config import FULL, SLIDING, ModelConfig
from schoolhouse.model.names import Names

SIZES = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
PLAIN = ("rms_norm_eps", "max_position_embeddings", "hidden_act", "tie_word_embeddings", "initializer_range")
TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")

Values = dict[str, Any]


@dataclass(frozen=True)
class Family:
    """One row of the table.

    keys: their name of a field, where it is not ours; defaults: fields of absent keys; reads: further keys; inert: keys
    that change nothing, with the reason; only_at: keys that must have one value, with the reason; fields: those that
    `read` or plain keys give beside the common ones; fixed: fields that all models of the family share; written:
    further fields that are written under their name; unwritten: common ones that are not.
    """

    architecture: str
    defaults: Mapping[str, Any]
    keys: Mapping[str, str] = field(default_factory=dict)
    reads: frozenset[str] = frozenset()
    inert: Mapping[str, str] = field(default_factory=dict)
    only_at: Mapping[str, tuple[Any, str]] = field(default_factory=dict)
    fields: tuple[str, ...] = ()
    fixed: Mapping[str, Any] = field(default_factory=dict)
    written: tuple[str, ...] = ()
    unwritten: frozenset[str] = frozenset()
    rope_theta: float = 10000.0
    read: Callable[[Values], Values] | None = None
    write: Callable[[ModelConfig], Values] | None = None
    writes_head_dim: bool = False
    names: Names | Callable[[ModelConfig], Names] = tensor_names.LLAMA


def size(values: Mapping[str, Any], key: str) -> int:
    """A whole number above 0. ModelError that names the key if it is absent or something else."""
    if key not in values:
        raise ModelError(f"config.json has no {key}.")
    value = values[key]
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ModelError(f"config.json sets {key} to {value!r}: a whole number above 0 is needed.")
    return value


DROPOUT = "dropout is off in use"
NO_GROUPS = frozenset({"num_key_value_heads"})
EXPERT_LOSS = {
    "output_router_logits": "what another program's forward pass returns",
    "router_aux_loss_coef": "the weight of a loss in another program's training",
}


def layer_windows(kinds: list[str], window: int | None) -> Values:
    """`sliding_window` and `layer_types` of a list of layer types."""
    wrong = sorted({str(kind) for kind in kinds} - {FULL, SLIDING})
    if wrong:
        raise ModelError(f"config.json has layer_types {wrong}: known are {FULL} and {SLIDING}.")
    if SLIDING not in kinds:
        return {"sliding_window": None, "layer_types": None}
    if window is None:
        raise ModelError("config.json has layers that slide, and no sliding_window to say how far.")
    return {"sliding_window": window, "layer_types": tuple(kinds) if FULL in kinds else None}


def partial_rotary(values: Values, default: float, key: str = "partial_rotary_factor") -> int | None:
    """Numbers of a head that turn; None for all."""
    modern: Values = values.get("rope_parameters") or {}
    share = float(modern.get("partial_rotary_factor", values.get(key, default)) or default)
    width = size(values, "hidden_size") // size(values, "num_attention_heads")
    turning = int(width * share)
    if turning < 2 or turning % 2:
        raise ModelError(
            f"config.json turns {share:g} of a head of {width}, {turning} numbers: an even count is needed."
        )
    return None if turning == width else turning


def share_that_turns(config: ModelConfig) -> float:
    """What `partial_rotary` was read from."""
    return (config.rotary_dim or config.head_dim) / config.head_dim
