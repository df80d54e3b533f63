"""A token tagger in ONNX: a small network that reads a sentence and says of each token whether it is personal.

It runs on one thread. Its folder holds model.onnx, tokenizer.json and config.json (with `id2label`), as `get.tagger`
writes it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from schoolhouse.core.errors import ModelError
from schoolhouse.prepare.redaction.spans import Span

TAGGER = "tagger"
"""What it calls itself among the recognisers."""

SURE = 0.35  # from this probability of being personal on a token counts: a miss is worse than a word too many
_MOST = 0.8  # how sure it can be: less than a rule that saw a title or a label
_GAP = 2
_KINDS = {
    "GIVEN_NAME": "name", "SURNAME": "name", "FIRSTNAME": "name", "LASTNAME": "name", "PER": "name", "PERSON": "name",
    "NAME": "name", "PATIENT": "name", "DOCTOR": "name", "STAFF": "name", "USERNAME": "id",
    "EMAIL": "email", "PHONE": "phone", "FAX": "phone", "URL": "url", "IP": "ip", "AGE": "age", "DATE": "date",
    "TAX_ID": "id", "BANK_ACCOUNT": "id", "ROUTING_NUMBER": "id", "GOVERNMENT_ID": "id", "PASSPORT": "id",
    "DRIVERS_LICENSE": "id", "ID": "id", "SSN": "id", "MEDICALRECORD": "id",
    "BUILDING_NUMBER": "address", "STREET_NAME": "address", "SECONDARY_ADDRESS": "address", "CITY": "address",
    "STATE": "address", "ZIP_CODE": "address", "LOC": "address", "LOCATION": "address", "GPE": "address",
    "ADDRESS": "address", "ZIP": "address", "COUNTRY": "address",
    "ORG": "organisation", "ORGANIZATION": "organisation", "HOSPITAL": "organisation",
}  # fmt: skip


class Tagger:
    """One tagger, loaded. Raises ModelError for a folder that holds none or whose labels nobody knows."""

    def __init__(self, folder: Path) -> None:
        import onnxruntime
        from tokenizers import Tokenizer

        try:
            config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            labels = {int(number): str(label) for number, label in config["id2label"].items()}
            self._tokenizer: Any = Tokenizer.from_file(str(folder / "tokenizer.json"))
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = options.inter_op_num_threads = 1
            options.log_severity_level = 3
            self._session: Any = onnxruntime.InferenceSession(
                str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # each library has errors of its own
            raise ModelError(f"{folder}: no token tagger can be read there ({error}). Get one by get.tagger.") from None
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._most = int(config.get("max_position_embeddings", 512))
        self._outside = next(number for number, label in labels.items() if label == "O")
        self._kinds = [_kind(labels[number], folder) for number in range(len(labels))]
        self._inputs = {held.name for held in self._session.get_inputs()}

    def find(self, piece: str) -> list[Span]:
        """What is personal in a piece of text; neighbouring tokens of one type are one span."""
        encoded = self._tokenizer.encode(piece)
        if len(encoded.ids) > self._most:
            half = len(piece) // 2
            later = [Span(s.start + half, s.end + half, s.type, s.by, s.score) for s in self.find(piece[half:])]
            return [*self.find(piece[:half]), *later]
        spans: list[Span] = []
        for (start, end), kind, score in zip(encoded.offsets, *self._tagged(encoded.ids), strict=True):
            if score < _MOST * SURE or start == end or kind is None:
                continue
            last = spans[-1] if spans else None
            if last and last.type == kind and start - last.end <= _GAP and "\n" not in piece[last.end : start]:
                spans[-1] = Span(last.start, end, kind, last.by, max(last.score, score))
            else:
                spans.append(Span(start, end, kind, frozenset([TAGGER]), score))
        return spans

    def _tagged(self, ids: list[int]) -> tuple[list[str | None], list[float]]:
        """Of each token its likeliest type and how likely it is personal at all."""
        row = np.array([ids], dtype=np.int64)
        given = {"input_ids": row, "attention_mask": np.ones_like(row), "token_type_ids": np.zeros_like(row)}
        logits = self._session.run(None, {name: given[name] for name in self._inputs})[0][0].astype(np.float64)
        odds = np.exp(logits - logits.max(axis=-1, keepdims=True))
        odds /= odds.sum(axis=-1, keepdims=True)
        score = 1 - odds[:, self._outside]
        odds[:, self._outside] = -1
        return [self._kinds[i] for i in odds.argmax(axis=-1)], [round(_MOST * float(s), 4) for s in score]


def _kind(label: str, folder: Path) -> str | None:
    """Our type of a label such as B-GIVEN_NAME; None for "O"."""
    if label == "O":
        return None
    bare = label[2:] if label[:2] in ("B-", "I-", "E-", "S-", "L-", "U-") else label
    if bare.upper() not in _KINDS:
        raise ModelError(f"{folder}: its label {label!r} is not known; known are {', '.join(sorted(_KINDS))}.")
    return _KINDS[bare.upper()]
