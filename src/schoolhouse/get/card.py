"""The README.md of a model folder: what it is, where from, under which licence, what was done to it."""

from __future__ import annotations

from dataclasses import dataclass

from schoolhouse import __version__
from schoolhouse.get.audit import Audit
from schoolhouse.get.lineage import card_header
from schoolhouse.model.config import ModelConfig


@dataclass(frozen=True)
class Origin:
    """Where a model came from: its title, the source as the recipe names it, the archive around it if any."""

    title: str
    source: str
    package: str | None = None
    package_sha256: str | None = None


def model_card(origin: Origin, conversion: str, audit: Audit, config: ModelConfig) -> str:
    """The card's text, with the header that the Hugging Face hub reads; every source file is named by its SHA-256."""
    licence = audit.licence
    header = card_header(licence.id)
    package = [f"- Out of `{origin.package}`: SHA-256 `{origin.package_sha256}`"] if origin.package else []
    restriction = f" Restricted: {licence.restriction}." if licence.restriction else ""
    body = [
        f"# {origin.title}",
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
        f"- Source: `{origin.source}`",
        *package,
        *(f"- `{name}`: SHA-256 `{digest}`" for name, digest in audit.hashes.items()),
        f"- {conversion}",
        f"- Made by Schoolhouse {__version__}, stage `get`; no program of the source was run.",
        "",
        "## Use",
        "",
        "The folder is a Hugging Face checkpoint: `AutoModelForCausalLM.from_pretrained(folder)` reads it, and",
        "`schoolhouse chat folder` talks to it.",
    ]
    return "\n".join([*header, "", *body]) + "\n"
