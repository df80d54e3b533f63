"""Stage `prepare.pack`: documents as token ids, so that training maps them instead of reading text."""

import shutil
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING

from schoolhouse.core.artifact import Artifact, Draft
from schoolhouse.core.config import Ref, StageConfig
from schoolhouse.core.errors import DataError
from schoolhouse.text.bpe import PIECES
from schoolhouse.text.documents import DOCUMENTS, VALIDATION, pack_texts, read_texts
from schoolhouse.text.sourced import HELD_OUT
from schoolhouse.text.tokenizer import TOKENIZER_FILES, Tokenizer

if TYPE_CHECKING:
    from schoolhouse.core.run import Run

_COMPANIONS = (*TOKENIZER_FILES, PIECES)


class Config(StageConfig):
    """What `prepare.pack` reads: documents, and the tokenizer (or the model) whose ids they become."""

    data: Ref
    tokenizer: Ref


def run(config: Config, inputs: Mapping[str, Artifact], run: "Run", out: Draft) -> None:
    """Write the ids of the documents and of those held out, with the tokenizer's files beside them."""
    source, data = inputs[config.tokenizer].path, inputs[config.data]
    for name in _COMPANIONS:
        if (source / name).is_file():
            shutil.copyfile(source / name, out.path / name)
    tokenizer = Tokenizer.load(source)
    held_out = VALIDATION if (data.path / VALIDATION).exists() else f"{HELD_OUT}/{DOCUMENTS}"
    for name, file in (("train", DOCUMENTS), ("validation", held_out)):
        packed = pack_texts(read_texts(data.file(file)), tokenizer, out.path, name)
        if not packed.documents:
            raise DataError(f"{data.file(file)} holds no documents: training needs some, and some that are held out.")
        out.meta[name] = asdict(packed)
        run.log.info(f"{name}: {packed.documents:,} documents, {packed.tokens:,} tokens, {packed.bytes / 1e6:.1f} MB")
    out.meta["vocab_size"] = tokenizer.vocab_size
