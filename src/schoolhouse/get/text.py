"""Stage `get.text`: plain texts to pretrain on, from a known name, a file or a folder, some of them held out.

A JSONL row with a "text" is a document, and so is a whole text file. Equal documents are kept once. What is held out
follows from the document itself, so that more text never moves one from one side to the other.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from schoolhouse.core.artifact import Artifact, Draft
from schoolhouse.core.config import StageConfig, did_you_mean
from schoolhouse.core.errors import DataError, RecipeError
from schoolhouse.get.audit import sha256
from schoolhouse.get.corpora import KNOWN_TEXTS, Document, KnownText
from schoolhouse.get.fetch import fetch_wheel, unpack
from schoolhouse.get.licences import decide, recognise
from schoolhouse.text.documents import DOCUMENTS, VALIDATION, read_texts
from schoolhouse.text.records import SOURCES, append_row, write_rows

if TYPE_CHECKING:
    from schoolhouse.core.run import Run

_PLAIN = (".txt", ".md")
_ROWS = ".jsonl"


class Config(StageConfig):
    """What a recipe says of the texts to get.

    source: a known name or a path; held_out: share of the documents; licence: an SPDX id or expression, for texts of
    your own; accept_licence: you keep to one that restricts use.
    """

    source: str
    held_out: float = Field(default=0.02, gt=0, le=0.5)
    licence: str | None = None
    accept_licence: bool = False


def check(config: Config) -> None:
    """Raise RecipeError before anything starts if there is no such source, ModelError without the consent it needs."""
    if config.source in KNOWN_TEXTS:
        for known in KNOWN_TEXTS[config.source]:
            decide(recognise(known.licence), known.title, config.accept_licence)
        if config.licence is not None:
            raise RecipeError(f"source {config.source!r} states its licence itself: take licence out of the recipe.")
        return
    path = Path(config.source).expanduser()
    if not path.exists():
        raise RecipeError(
            f"source {config.source!r} is no known text and there is no such file or folder"
            f"{did_you_mean(config.source, KNOWN_TEXTS)}"
        )
    if path.is_file() and path.suffix not in (*_PLAIN, _ROWS):
        raise RecipeError(f"source {config.source!r}: texts are read from {', '.join((*_PLAIN, _ROWS))} files.")


def fingerprint(config: Config) -> str:
    """What the result depends on beside the recipe: the bytes of the source."""
    if config.source in KNOWN_TEXTS:
        return ",".join(known.wheel_sha256 for known in KNOWN_TEXTS[config.source])
    path = Path(config.source).expanduser()
    listing = "\n".join(f"{name} {sha256(file)}" for name, file in _files(path))
    return hashlib.sha256(listing.encode()).hexdigest()


def run(config: Config, inputs: Mapping[str, Artifact], run: Run, out: Draft) -> None:
    """Write documents.jsonl, validation.jsonl, sources.jsonl and the data card."""
    check(config)
    if config.source in KNOWN_TEXTS:
        found, origin = _known(config.source, run), [_line(known) for known in KNOWN_TEXTS[config.source]]
        files = [(known.package, known.wheel_sha256) for known in KNOWN_TEXTS[config.source]]
        licence = " AND ".join(sorted({known.licence for known in KNOWN_TEXTS[config.source]}))
    else:
        path = Path(config.source).expanduser()
        files = [(name, sha256(file)) for name, file in _files(path)]
        found, origin = _own(path), [f"`{name}`: SHA-256 `{digest}`" for name, digest in files]
        licence = _stated(config)
    counts = _split(found, config.held_out, out.path)
    if not counts["documents"] or not counts["held_out"]:
        raise DataError(
            f"{config.source}: {counts['documents']:,} documents to learn from and {counts['held_out']:,} held out; "
            "both are needed. Give more documents, or another held_out."
        )
    write_rows(out.path / SOURCES, ({"file": name, "sha256": digest} for name, digest in files))
    out.meta.update(counts, licence=licence)
    (out.path / "README.md").write_text(_card(config, counts, licence, origin), encoding="utf-8")
    run.log.info(
        f"{counts['documents']:,} documents, {counts['characters'] / 1e6:.1f} million characters, "
        f"{counts['held_out']:,} held out, {counts['repeated']:,} repeated ones left out; licence {licence}"
    )


def _known(name: str, run: Run) -> Iterator[Document]:
    for known in KNOWN_TEXTS[name]:
        work = run.scratch / known.package
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        unpack(fetch_wheel(known, run), work)
        for document in known.read(work / known.member, known.package):
            yield replace(document, place=document.key)
        shutil.rmtree(work)


def _files(path: Path) -> list[tuple[str, Path]]:
    """Name and place of the files that texts are read from."""
    if path.is_file():
        return [(path.name, path)]
    kinds = (*_PLAIN, _ROWS)
    files = sorted(file for file in path.rglob("*") if file.is_file() and file.suffix in kinds)
    return [(file.relative_to(path).as_posix(), file) for file in files]


def _own(path: Path) -> Iterator[Document]:
    files = _files(path)
    if not files:
        raise DataError(f"{path}: there is no {', '.join((*_PLAIN, _ROWS))} file in it.")
    for name, file in files:
        is_rows = file.suffix == _ROWS
        for number, text in enumerate(read_texts(file) if is_rows else [_whole(file)], 1):
            if text.strip():
                yield Document(text, name, text, f"row {number}" if is_rows else None)


def _whole(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: not UTF-8 (byte {error.start}). Convert it first.") from None


def _stated(config: Config) -> str:
    """The licence that the recipe gives for its own texts. None need be given: records of one's own have none."""
    if config.licence is None:
        return "not stated"
    licence = recognise(config.licence)
    if licence is None:
        raise DataError(f"licence is {config.licence!r}: give an SPDX id or expression, such as CC-BY-4.0.")
    return decide(licence, config.source, config.accept_licence).id


def _split(found: Iterable[Document], share: float, folder: Path) -> dict[str, int]:
    """Write both files as documents come; returns what was counted."""
    counts = {"documents": 0, "held_out": 0, "repeated": 0, "characters": 0}
    seen: set[bytes] = set()
    with (
        (folder / DOCUMENTS).open("w", encoding="utf-8", errors="replace") as learnt,
        (folder / VALIDATION).open("w", encoding="utf-8", errors="replace") as held,
    ):
        for document in found:
            digest = hashlib.sha256(document.text.encode("utf-8", "replace")).digest()
            if digest in seen:
                counts["repeated"] += 1
                continue
            seen.add(digest)
            held_out = is_held_out(document.key, share)
            counts["held_out" if held_out else "documents"] += 1
            counts["characters"] += len(document.text)
            place = {} if document.place is None else {"place": document.place}
            append_row(held if held_out else learnt, {"text": document.text, "source": document.source, **place})
    return counts


def is_held_out(key: str, share: float) -> bool:
    """Whether documents of a key are held out: its hash, as a number from 0 to 1, lies below the share."""
    digest = hashlib.sha256(key.encode("utf-8", "replace")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64 < share


def _line(known: KnownText) -> str:
    return f"{known.title}, out of `{known.wheel}`: SHA-256 `{known.wheel_sha256}`"


def _card(config: Config, counts: Mapping[str, int], licence: str, origin: list[str]) -> str:
    lines = [
        f"# Texts: {config.source}",
        "",
        f"- `{DOCUMENTS}`: {counts['documents']:,} documents to learn from",
        f"- `{VALIDATION}`: {counts['held_out']:,} held out, chosen by a hash of each (a share of {config.held_out:g})",
        f"- {counts['repeated']:,} documents were left out since they repeat others",
        f"- Licence: {licence}",
        "",
        "## Lineage",
        "",
        *(f"- {line}" for line in origin),
        "",
    ]
    return "\n".join(lines)
