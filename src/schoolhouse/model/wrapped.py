"""Checkpoints that hold a text model beside towers for pictures: the text model alone, as its family writes it.

Larger Gemma 3 are published so. The towers stay behind: this house reads and writes text.

Source: google/gemma-3-4b-it (`config.json`, names of tensors); transformers 5.23, `models/gemma3`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from schoolhouse.core.errors import ModelError


@dataclass(frozen=True)
class Wrapper:
    """What lies around a text model.

    family: the text model's `model_type`; defaults: of keys that its inner config leaves out; inert: outer keys that
    change nothing for text; shared: outer keys that the text model has, too; prefixes: how tensors of the text model
    begin, and how in their family; towers: how the others do.
    """

    architecture: str
    family: str
    defaults: Mapping[str, Any]
    inert: frozenset[str]
    shared: frozenset[str]
    prefixes: Mapping[str, str]
    towers: tuple[str, ...]


WRAPPERS: dict[str, Wrapper] = {
    "gemma3": Wrapper(
        "Gemma3ForConditionalGeneration",
        "gemma3_text",
        defaults={"vocab_size": 262208, "num_attention_heads": 8},
        inert=frozenset(
            {"boi_token_index", "eoi_token_index", "image_token_index", "mm_tokens_per_image", "vision_config"}
            | {"initializer_range", "transformers_version", "dtype", "torch_dtype"}
        ),
        shared=frozenset({"bos_token_id", "eos_token_id", "pad_token_id", "tie_word_embeddings"}),
        prefixes={
            "language_model.model.": "model.",
            "language_model.lm_head.": "lm_head.",
            "model.language_model.": "model.",
        },
        towers=("vision_tower.", "multi_modal_projector.", "model.vision_tower.", "model.multi_modal_projector."),
    ),
}
"""Wrappers by their `model_type`."""


def unwrap_config(raw: Mapping[str, Any]) -> dict[str, Any]:
    """The text model's `config.json`; one without a wrapper as it is.

    Raises ModelError that names an outer key or architecture that is not known.
    """
    wrapper = WRAPPERS.get(raw.get("model_type", ""))
    if wrapper is None:
        return dict(raw)
    inner = raw.get("text_config")
    if not isinstance(inner, dict):
        raise ModelError(f"config.json of a {raw['model_type']} model has no text_config.")
    if set(raw.get("architectures") or ()) - {wrapper.architecture}:
        raise ModelError(
            f"architectures is {raw['architectures']}: of {raw['model_type']} {wrapper.architecture} is read."
        )
    unknown = sorted(raw.keys() - wrapper.inert - wrapper.shared - {"model_type", "architectures", "text_config"})
    if unknown:
        raise ModelError(f"config.json has the key {unknown[0]!r}, unknown for {wrapper.architecture}.")
    outer = {key: raw[key] for key in wrapper.shared if raw.get(key) is not None}
    return {**wrapper.defaults, **inner, **outer, "model_type": wrapper.family}


def unwrapped_name(raw: Mapping[str, Any], name: str) -> str | None:
    """How a stored tensor is called in the text model's own checkpoint; None for one of a tower."""
    wrapper = WRAPPERS.get(raw.get("model_type", ""))
    if wrapper is None:
        return name
    if name.startswith(wrapper.towers):
        return None
    prefix = next((prefix for prefix in wrapper.prefixes if name.startswith(prefix)), "")
    return wrapper.prefixes.get(prefix, "") + name.removeprefix(prefix)
