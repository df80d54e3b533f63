"""The way back, for whoever holds the key: reversal.bin beside redacted documents, encrypted.

It is written only where the key comes from the environment (`key_env`): then the key lies nowhere on disk. Each
document is one record, sealed by AES-SIV under a key of its own use, bound to the document's id: a record can neither
be read without the key nor put behind another document. AES-SIV needs no nonce: the same data give the same file.

Source: RFC 5297.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

from schoolhouse.core.errors import DataError, MachineError
from schoolhouse.prepare.redaction.keys import Secret, secret_from
from schoolhouse.prepare.redaction.rewrite import Redacted
from schoolhouse.prepare.redaction.surrogates import Put
from schoolhouse.text.sourced import Document, Origin, read_documents

REVERSAL = "reversal.bin"
_LENGTH = struct.Struct("<I")
_USE = "reversal"


class Reversal:
    """Writes the records of redacted documents, in their order."""

    def __init__(self, file: BinaryIO, secret: Secret) -> None:
        self._file = file
        self._cipher = _cipher(secret)

    def add(self, was: Document, redacted: Redacted) -> None:
        """Write what one document was."""
        new = redacted.document
        row = {
            "text": _originals(was.text, redacted.puts),
            "facts": {key: value for key, value in was.facts.items() if value != new.facts[key]},
            "id": was.id, "person": was.person, "source": vars(was.source), "history": list(was.history),
        }  # fmt: skip
        held = self._cipher.encrypt(json.dumps(row, ensure_ascii=False).encode(), [new.id.encode()])
        self._file.write(_LENGTH.pack(len(held)) + held)


def _originals(text: str, puts: Sequence[Put]) -> list[list[Any]]:
    return [[put.start, put.end, put.span.inside(text)] for put in puts]


def reverse(folder: Path, key: str) -> Iterator[Document]:
    """The documents of a redacted folder as they were before. key: what stands in the environment variable.

    Documents that were passed on unchanged come as they are. Raises DataError where there is no reversal.bin, for
    another key, and for a document that was changed since.
    """
    path = folder / REVERSAL
    if not path.is_file():
        raise DataError(
            f"{folder} holds no {REVERSAL}: set key_env in the recipe before redacting, if a way back is wanted"
        )
    cipher = _cipher(secret_from(key))
    with path.open("rb") as file:
        for document in read_documents(folder):
            head = file.read(_LENGTH.size)
            if len(head) < _LENGTH.size:
                raise DataError(f"{path}: it ends before document {document.id}; it belongs to another folder")
            held = file.read(_LENGTH.unpack(head)[0])
            yield _restored(document, _decrypted(cipher, held, document.id, path)) if held else document


def skip(file: BinaryIO) -> None:
    """Write that a document was passed on unchanged."""
    file.write(_LENGTH.pack(0))


def _restored(document: Document, row: dict[str, Any]) -> Document:
    out, at = "", 0
    for start, end, was in row["text"]:
        out += document.text[at:start] + was
        at = end
    return replace(
        document, id=row["id"], text=out + document.text[at:], person=row["person"], source=Origin(**row["source"]),
        facts={**document.facts, **row["facts"]}, history=tuple(row["history"]),
    )  # fmt: skip


def _decrypted(cipher: Any, held: bytes, id: str, path: Path) -> dict[str, Any]:
    from cryptography.exceptions import InvalidTag

    try:
        row: dict[str, Any] = json.loads(cipher.decrypt(held, [id.encode()]))
    except InvalidTag:
        raise DataError(f"{path}: document {id} does not open: this is another key, or the file was changed") from None
    return row


def _cipher(secret: Secret) -> Any:
    try:
        from cryptography.hazmat.primitives.ciphers.aead import AESSIV
    except ImportError:
        raise MachineError(
            "the way back needs cryptography, which is not installed: pip install 'schoolhouse[prepare]'"
        ) from None
    return AESSIV(secret.digest(_USE, "first") + secret.digest(_USE, "second"))
