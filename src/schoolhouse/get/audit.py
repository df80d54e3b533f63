"""Is this checkpoint folder what one may use? Licence, hashes, no pickle, no code of its own: told from the content.

Tools that scan pickles for bad calls miss some. The rule here is simpler: only safetensors, GGUF and text are taken,
and a folder that holds a pickle or a program is refused as a whole.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from schoolhouse.core.errors import ModelError
from schoolhouse.get.licences import Licence, decide, recognise
from schoolhouse.model.gguf import GgufFile
from schoolhouse.model.stored import pickled_as

_PROGRAM_NAMES = {".py", ".pyc", ".so", ".dll", ".dylib", ".exe", ".sh", ".bat", ".ps1"}
_PROGRAM_STARTS = {b"\x7fELF": "an ELF program", b"MZ": "a Windows program", b"#!": "a script"}
_LICENCE_TEXTS = (
    (re.compile(r"Apache License\s+Version 2\.0"), "Apache-2.0"),
    (re.compile(r"\bMIT License\b|Permission is hereby granted, free of charge"), "MIT"),
    (re.compile(r"Gemma Terms of Use"), "LicenseRef-Gemma"),
    (re.compile(r"CC0 1\.0 Universal"), "CC0-1.0"),
)
_CARD_BYTES = 1 << 20


@dataclass(frozen=True)
class Audit:
    """What was found: the licence, who states it, and each file's SHA-256 by its name in the folder."""

    licence: Licence
    stated_by: str
    hashes: dict[str, str]


def audit(folder: Path, *, licence: str | None = None, accept_licence: bool = False) -> Audit:
    """Check a Hugging Face checkpoint folder before anything in it is used.

    licence: what the recipe states. Raises ModelError for a pickle, a program, `auto_map`, a licence that is not stated
    or restricted.
    """
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    for path in paths:
        _refuse_pickle(path)
        _refuse_program(path)
        _refuse_remote_code(path)
    found, stated_by = _agree(_folder_licence(folder), licence, folder)
    allowed = decide(found, str(folder), accept_licence)
    return Audit(allowed, stated_by, {path.relative_to(folder).as_posix(): sha256(path) for path in paths})


def audit_gguf(file: GgufFile, *, licence: str | None = None, accept_licence: bool = False) -> Audit:
    """Check one GGUF file: its format holds no code, so what is left are its licence and its hash."""
    named = file.meta.get("general.license")
    if str(named).lower() == "other":
        named = file.meta.get("general.license.name")
    own = (str(named), "general.license in the file") if named else (None, "")
    found, stated_by = _agree(own, licence, file.path)
    allowed = decide(found, str(file.path), accept_licence)
    return Audit(allowed, stated_by, {file.path.name: sha256(file.path)})


def sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _refuse_pickle(path: Path) -> None:
    kind = pickled_as(path)
    if kind is not None:
        raise ModelError(
            f"{path}: refused, the file is {kind}. Loading such a file can run any program. "
            "Delete it if the folder has the same weights as safetensors; else take them from where they are."
        )


def _refuse_program(path: Path) -> None:
    with path.open("rb") as file:
        start = file.read(4)
    kind = next((name for magic, name in _PROGRAM_STARTS.items() if start.startswith(magic)), None)
    if kind is None and path.suffix.lower() in _PROGRAM_NAMES:
        kind = f"a {path.suffix} file"
    if kind is not None:
        raise ModelError(
            f"{path}: refused, the folder brings {kind}. A model is data; no program of its folder is ever run here. "
            "Delete the file if the model works without it."
        )


def _refuse_remote_code(path: Path) -> None:
    if path.suffix != ".json":
        return
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        return  # no JSON: whoever needs the file will say so
    if isinstance(content, dict) and "auto_map" in content:
        raise ModelError(f"{path}: refused, auto_map asks for the checkpoint's own code to be run.")


def _folder_licence(folder: Path) -> tuple[str | None, str]:
    """What the model card's header states, else what the licence's text is, and where that was found."""
    card = folder / "README.md"
    if card.is_file():
        header = re.match(r"---\r?\n(.*?)\r?\n---", card.read_text("utf-8", "replace")[:_CARD_BYTES], re.DOTALL)
        fields: dict[str, Any] = (
            dict(re.findall(r"^(license\w*):[ \t]*(.+?)[ \t\r]*$", header[1], re.M)) if header else {}
        )
        named = fields.get("license", "").strip("\"'")
        if named.lower() == "other":
            named = fields.get("license_name", named).strip("\"'")
        if named:
            return named, "the model card"
    for path in sorted(folder.glob("LICEN[CS]E*")):
        text = path.read_text("utf-8", "replace")[:_CARD_BYTES]
        for pattern, name in _LICENCE_TEXTS:
            if pattern.search(text):
                return name, path.name
    return None, ""


def _agree(own: tuple[str | None, str], recipe: str | None, where: Path) -> tuple[Licence | None, str]:
    """Put together what the model states itself and what the recipe states; two that differ are an error."""
    own_words, stated_by = own
    inside, outside = recognise(own_words), recognise(recipe)
    if recipe is not None and outside is None:
        raise ModelError(f"licence {recipe!r} in the recipe is no SPDX id or expression and no known model licence.")
    if inside is None:
        return (outside, "the recipe") if outside else (None, "")
    if outside is not None and outside.id != inside.id:
        raise ModelError(
            f"{where}: {stated_by} states the licence {inside.id}, the recipe {outside.id}. "
            "Take the line out of the recipe, or the model from another place."
        )
    return inside, stated_by
