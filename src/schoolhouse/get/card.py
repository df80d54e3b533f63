"""The README.md of a model folder: what it is, where from, under which licence, what was done to it."""

from __future__ import annotations

from dataclasses import dataclass

from schoolhouse import __version__
from schoolhouse.get.audit import Audit
from schoolhouse.model.config import ModelConfig


@dataclass(frozen=True)
class Lineage:
    """Where a model came from: its title, the source as the recipe names it, the package if any, what was converted."""

    title: str
    source: str
    package: str | None
    conversion: str


def model_card(lineage: Lineage, audit: Audit, config: ModelConfig) -> str:
    """The card's text, with the header that the Hugging Face hub reads; every source file is named by its SHA-256."""
    licence = audit.licence
    named = [f"license: {licence.id.lower()}"]
    if licence.id.startswith("LicenseRef-") or " " in licence.id:
        named = ["license: other", f"license_name: {licence.id}"]
    header = [
        "---",
        *named,
        "library_name: transformers",
        "pipeline_tag: text-generation",
        "tags: [schoolhouse]",
        "---",
    ]
    origin = f"`{lineage.source}`" + (f", from the package `{lineage.package}`" if lineage.package else "")
    restriction = f" Restricted: {licence.restriction}." if licence.restriction else ""
    body = [
        f"# {lineage.title}",
        "",
        f"A {config.model_type} model of {config.num_params():,} parameters, {config.num_hidden_layers} layers, "
        f"hidden size {config.hidden_size}, context of {config.max_position_embeddings:,} tokens.",
        "",
        "## Licence",
        "",
        f"{licence.id}, stated by {audit.stated_by}.{restriction}",
        "",
        "## Lineage",
        "",
        f"- Source: {origin}",
        *(f"- `{name}`: SHA-256 `{digest}`" for name, digest in audit.hashes.items()),
        f"- {lineage.conversion}",
        f"- Made by Schoolhouse {__version__}, stage `get`; no program of the source was run.",
        "",
        "## Use",
        "",
        "The folder is a Hugging Face checkpoint: `AutoModelForCausalLM.from_pretrained(folder)` reads it, and",
        "`schoolhouse chat folder` talks to it.",
    ]
    return "\n".join([*header, "", *body]) + "\n"
