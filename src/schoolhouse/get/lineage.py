"""What a model inherits from those it was made from: their licences, the texts of these, and a card that says so."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from schoolhouse import __version__
from schoolhouse.core.artifact import Artifact, Draft
from schoolhouse.text.records import ENDPOINT_TERMS

CARD = "README.md"
SAID = {
    ENDPOINT_TERMS: "## Terms of endpoints\n\nIt learnt from replies given under these terms, as recipes say:",
    "privacy": "## Differential privacy\n\nWhat the weights can tell of what a stage learnt from is bounded so:",
}
"""Lines in an artifact's facts that whatever is made of it keeps, and what a model's card says above them."""
TERMS = ("LICEN[CS]E*", "NOTICE*", "COPYING*", "USE_POLICY*")
"""Files that most licences ask to be handed on."""


def card_header(licence: str) -> list[str]:
    """The lines that the Hugging Face hub reads, for a licence by its SPDX expression or `LicenseRef-...`."""
    named = [f"license: {licence.lower()}"]
    if licence.startswith("LicenseRef-") or " " in licence:
        named = ["license: other", f"license_name: {licence}"]
    return ["---", *named, "library_name: transformers", "pipeline_tag: text-generation", "tags: [schoolhouse]", "---"]


def inherit(parents: Mapping[str, Artifact], out: Draft, kind: str, name: str) -> None:
    """Give what a stage made the terms of the endpoints that its inputs came from, and a model the licences of the
    models among them; in place.

    parents: the stage's inputs by name; kind, name: the stage. A folder that is no model, that has a card of its own,
    or whose parents state no licence gets none.
    """
    for key in SAID:
        lines = sorted(
            {line for facts in (out.meta, *(p.meta for p in parents.values())) for line in facts.get(key, ())}
        )
        if lines:
            out.meta[key] = lines
    known = {n: a for n, a in parents.items() if "config.json" in a.manifest["files"] and "licence" in a.meta}
    if not known or not (out.path / "config.json").exists() or (out.path / CARD).exists():
        return
    licence = joined([parent.meta["licence"] for parent in known.values()])
    for parent in known.values():
        for term in terms_of(parent.path):
            if not (out.path / term).exists():
                shutil.copyfile(parent.path / term, out.path / term)
    out.meta["licence"] = licence
    card = _card(known, licence, kind, name)
    for key, words in SAID.items():
        if key in out.meta:
            card += f"\n{words}\n\n" + "".join(f"- {line}\n" for line in out.meta[key])
    (out.path / CARD).write_text(card, encoding="utf-8")


def joined(licences: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One licence that binds to all of these, which may be the same."""
    each = {str(licence["id"]): licence for licence in licences}
    restrictions = [str(licence["restriction"]) for licence in each.values() if licence.get("restriction")]
    return {
        "id": " AND ".join(f"({id})" if " " in id and len(each) > 1 else id for id in each),
        "restriction": "; ".join(restrictions) or None,
        "stated_by": "the models that it was made from",
    }


def _card(parents: Mapping[str, Artifact], licence: Mapping[str, Any], kind: str, name: str) -> str:
    restriction = f" Restricted: {licence['restriction']}." if licence["restriction"] else ""
    lines = [
        *card_header(str(licence["id"])),
        "",
        f"# {name}",
        "",
        "## Licence",
        "",
        f"{licence['id']}, as {licence['stated_by']}.{restriction}",
        "",
        "## Lineage",
        "",
        *(f"- From `{n}`: artifact `{parent.id}`, stage `{parent.kind}`" for n, parent in parents.items()),
        f"- Made by Schoolhouse {__version__}, stage `{kind}`; manifest.json beside this file says how.",
    ]
    return "\n".join(lines) + "\n"


def terms_of(folder: Path) -> list[str]:
    """Names of the licence's texts and notices in a folder."""
    return sorted({file.name for pattern in TERMS for file in folder.glob(pattern) if file.is_file()})
