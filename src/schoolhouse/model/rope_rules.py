"""Rotary positions in a `config.json`: the classic two keys and the one of transformers 5. Knows no tensors.

Source: `modeling_rope_utils.py` of transformers 5.23 (keys of each kind, what is left out when absent).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from schoolhouse.core.errors import ModelError

KEYS = frozenset({"rope_theta", "rope_scaling", "rope_parameters"})
ORIGINAL = "original_max_position_embeddings"

# What each kind of scaling must have beside its type, and what it may have.
_KINDS: dict[str, tuple[frozenset[str], frozenset[str]]] = {
    "linear": (frozenset({"factor"}), frozenset()),
    "llama3": (
        frozenset({"factor", "low_freq_factor", "high_freq_factor", ORIGINAL}),
        frozenset(),
    ),
    "yarn": (
        frozenset({"factor", ORIGINAL}),
        frozenset({"beta_fast", "beta_slow", "mscale", "mscale_all_dim", "attention_factor", "truncate"}),
    ),
    "longrope": (frozenset({"short_factor", "long_factor", "factor", ORIGINAL}), frozenset({"attention_factor"})),
}


def read_rope(values: Mapping[str, Any], default_theta: float) -> tuple[float, dict[str, Any] | None]:
    """theta and the scaling rule; transformers 5 keeps both in `rope_parameters`.

    Raises ModelError for a theta that is no number above 0, an unknown kind of scaling, or one with other keys.
    """
    rule = dict(values.get("rope_parameters") or values.get("rope_scaling") or {})
    rule.pop("partial_rotary_factor", None)  # families that have one read it beforehand
    theta = rule.pop("rope_theta", values.get("rope_theta", default_theta))
    legacy = rule.pop("type", "default")
    kind = rule.pop("rope_type", legacy)
    if not isinstance(theta, int | float) or isinstance(theta, bool) or theta <= 0:
        raise ModelError(f"config.json sets rope_theta to {theta!r}: a number above 0 is needed.")
    if kind == "default":
        return float(theta), None
    if kind in ("longrope", "su"):  # Phi-3's first files call it so
        kind, rule = "longrope", _with_original(rule, values)
    if kind not in _KINDS:
        raise ModelError(f"rope_scaling has type {kind!r}; known are {', '.join(_KINDS)}.")
    must, may = _KINDS[kind]
    rule = {key: value for key, value in rule.items() if value is not None}
    wrong = sorted((must - rule.keys()) | (rule.keys() - must - may))
    if wrong:
        optional = f" and may have {', '.join(sorted(may))}" if may else ""
        raise ModelError(f"rope_scaling of type {kind!r} needs {', '.join(sorted(must))}{optional}; see {wrong}.")
    return float(theta), {"rope_type": kind, **rule}


def _with_original(rule: dict[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """A longrope rule with the two numbers that a config may have beside it."""
    original, longest = rule.get(ORIGINAL, values.get(ORIGINAL)), values.get("max_position_embeddings")
    if isinstance(original, int) and original > 0 and isinstance(longest, int):
        return {"factor": longest / original} | rule | {ORIGINAL: original}
    return rule


def usable_context(longest: int, scaling: Mapping[str, Any] | None) -> int:
    """Tokens of a text that a model of so many positions reads here.

    Under longrope a text that outgrows the original context turns all of its keys anew, those in the cache too: here it
    ends there instead.
    """
    if scaling is not None and scaling["rope_type"] == "longrope":
        return min(longest, int(scaling[ORIGINAL]))
    return longest


def write_rope(theta: float, scaling: Mapping[str, Any] | None) -> dict[str, Any]:
    """The classic two keys, and under longrope the positions that the rule was made for."""
    raw: dict[str, Any] = {"rope_theta": theta, "rope_scaling": None if scaling is None else dict(scaling)}
    if scaling is not None and scaling["rope_type"] == "longrope":
        raw["max_position_embeddings"] = round(scaling["factor"] * scaling[ORIGINAL])
    return raw
