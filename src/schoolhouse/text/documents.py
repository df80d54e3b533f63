"""Plain documents for pretraining, one {"text": ...} a line, and what they become: token ids end to end.

The ids lie in flat files that are mapped, never read whole: a corpus may be larger than memory. Each document is its
border token, its text, its end token.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from schoolhouse.core.errors import DataError
from schoolhouse.text.records import ReadJsonl
from schoolhouse.text.tokenizer import Tokenizer

DOCUMENTS = "documents.jsonl"
VALIDATION = "validation.jsonl"
"""The two files of a folder of texts: to learn from, and held out."""

_IDS, _STARTS, _BYTES = "{}.ids.u4", "{}.starts.i8", "{}.bytes.i8"


def read_texts(path: Path) -> Iterator[str]:
    """The texts of a file of documents. Raises DataError at the end if some of its lines could not be read."""
    reader = ReadJsonl(path, _text)
    yield from reader
    if reader.bad:
        raise DataError(f"{path}: {len(reader.bad)} bad rows, the first: {reader.bad[0]}")


def _text(row: dict[str, Any]) -> str:
    text = row.get("text")
    if not isinstance(text, str) or not text:
        raise DataError('no "text": a document needs one')
    return text


@dataclass(frozen=True)
class Packed:
    """How much lies in a set of packed documents."""

    documents: int
    tokens: int
    bytes: int


def pack_texts(texts: Iterable[str], tokenizer: Tokenizer, folder: Path, name: str) -> Packed:
    """Write texts as ids: `name`.ids.u4 (uint32), where each document starts (int64), its text's bytes (int64)."""
    border, end = _borders(tokenizer)
    starts, sizes, at = [0], [], 0
    with (folder / _IDS.format(name)).open("wb") as file:
        for text in texts:
            ids = np.array([border, *tokenizer.encode(text), end], dtype="<u4")
            file.write(ids.tobytes())
            at += len(ids)
            starts.append(at)
            sizes.append(len(text.encode("utf-8", "replace")))
    np.array(starts, dtype="<i8").tofile(folder / _STARTS.format(name))
    np.array(sizes, dtype="<i8").tofile(folder / _BYTES.format(name))
    return Packed(len(sizes), at, sum(sizes))


def _borders(tokenizer: Tokenizer) -> tuple[int, int]:
    """What stands before a document and behind it.

    A chat model's tokens for the borders of a message are not those that documents were divided by: where a vocabulary
    has <|endoftext|>, that is what it was made for.
    """
    border = tokenizer.id_of("<|endoftext|>")
    if border is not None:
        return border, border
    end = min(tokenizer.eos_ids)
    return (end if tokenizer.bos_id is None else tokenizer.bos_id), end


class Documents(Sequence[NDArray[np.uint32]]):
    """The packed documents of a folder, mapped: each is an array of ids."""

    def __init__(self, folder: Path, name: str) -> None:
        self._starts = np.fromfile(folder / _STARTS.format(name), dtype="<i8")
        self.bytes: NDArray[np.int64] = np.fromfile(folder / _BYTES.format(name), dtype="<i8")
        path = folder / _IDS.format(name)
        empty = path.stat().st_size == 0  # nothing can't be mapped
        self._ids = np.zeros(0, dtype="<u4") if empty else np.memmap(path, dtype="<u4", mode="r")

    def __len__(self) -> int:
        return len(self._starts) - 1

    @property
    def tokens(self) -> int:
        """Ids in all documents, their borders included."""
        return int(self._starts[-1])

    def __getitem__(self, index: Any) -> Any:
        """The ids of one document, its border and end token included."""
        return np.asarray(self._ids[self._starts[index] : self._starts[index + 1]])
