"""Stage `prepare.tokenizer`: the vocabulary for a model's texts, learnt from them, or a base model's that grows.

A vocabulary made for other languages cuts a local one into crumbs: more tokens for the same text, slower and dearer in
training and in use. Characters per token on texts that were held out say how much was gained.
"""

import itertools
import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from schoolhouse.core.artifact import Artifact, Draft
from schoolhouse.core.config import Ref, StageConfig
from schoolhouse.core.errors import DataError
from schoolhouse.text.bpe import CONTROL, PIECES, SMALLEST, characters_per_token, extend_bpe, train_bpe
from schoolhouse.text.documents import DOCUMENTS, VALIDATION, read_texts
from schoolhouse.text.tokenizer import TOKENIZER_FILES

if TYPE_CHECKING:
    from schoolhouse.core.run import Run

_MEASURED = 2000  # documents that characters per token are measured on
_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


class Config(StageConfig):
    """What `prepare.tokenizer` makes: a vocabulary of `vocab_size` tokens in all, with `base` that model's, grown."""

    data: Ref
    vocab_size: int = Field(default=4096, ge=SMALLEST)
    base: Ref | None = None


def run(config: Config, inputs: Mapping[str, Artifact], run: "Run", out: Draft) -> None:
    """Write the tokenizer's files; for one that grew also pieces.json, the old ids that each new token is made of."""
    data = inputs[config.data]
    texts = read_texts(data.file(DOCUMENTS))
    if config.base is None:
        _write_new(train_bpe(texts, config.vocab_size), out.path)
    else:
        _write_grown(inputs[config.base], texts, config.vocab_size, out.path)
    now = _characters(out.path, data)
    out.meta.update(vocab_size=config.vocab_size, characters_per_token=now)
    told = f"{config.vocab_size:,} tokens, {now:.2f} characters per token on held-out text"
    if config.base is not None:
        before = _characters(inputs[config.base].path, data)
        out.meta["characters_per_token_before"] = before
        told += f", {before:.2f} before"
    run.log.info(told)


def _write_new(json_text: str, folder: Path) -> None:
    """A vocabulary of our own, with ChatML as its chat template."""
    border, _, end = CONTROL
    ids = {token: i for i, token in enumerate(CONTROL)}
    (folder / "tokenizer.json").write_text(json_text, encoding="utf-8")
    (folder / "chat_template.jinja").write_text(_TEMPLATE, encoding="utf-8")
    names = {
        "tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False,
        "bos_token": border, "eos_token": end, "pad_token": border,
    }  # fmt: skip
    _write_json(folder / "tokenizer_config.json", names)
    generation = {"bos_token_id": ids[border], "eos_token_id": [ids[end], ids[border]], "pad_token_id": ids[border]}
    _write_json(folder / "generation_config.json", generation)


def _write_grown(base: Artifact, texts: Iterator[str], vocab_size: int, folder: Path) -> None:
    """The base's files with a longer vocabulary."""
    for name in TOKENIZER_FILES:
        if (base.path / name).is_file():
            shutil.copyfile(base.path / name, folder / name)
    grown = extend_bpe(base.file("tokenizer.json").read_text(encoding="utf-8"), texts, vocab_size)
    (folder / "tokenizer.json").write_text(grown.json_text, encoding="utf-8")
    _write_json(folder / PIECES, {"first": grown.first, "pieces": grown.pieces})


def _characters(folder: Path, data: Artifact) -> float:
    texts = itertools.islice(read_texts(data.file(VALIDATION)), _MEASURED)
    measured = characters_per_token((folder / "tokenizer.json").read_text(encoding="utf-8"), texts)
    if not measured:
        raise DataError(
            f"{data.file(VALIDATION)} holds no text: characters per token can't be measured. Hold some out."
        )
    return measured


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
