"""Records that a model learnt, and records of the same kind that were held out: a sample of each, never one in both."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from schoolhouse.core.artifact import Artifact
from schoolhouse.core.errors import DataError
from schoolhouse.core.log import Log
from schoolhouse.evaluate.probing.talk import Talk, Text
from schoolhouse.text.documents import DOCUMENTS, VALIDATION
from schoolhouse.text.records import CONVERSATIONS, Conversation, ReadJsonl
from schoolhouse.text.sourced import HELD_OUT

Record = str | Conversation

_PLANTED = "canary"  # the kind of what prepare.canaries planted


@dataclass
class Records:
    """Both samples, and what was counted on the way. in_both: held-out rows of the sample that are learnt, too."""

    learnt: list[Record] = field(default_factory=list)
    held_out: list[Record] = field(default_factory=list)
    of_learnt: int = 0
    of_held_out: int = 0
    in_both: int = 0
    set_aside: int = 0

    def counts(self) -> dict[str, int]:
        """As numbers for the report."""
        return {
            "learnt": len(self.learnt), "held_out": len(self.held_out), "of_learnt": self.of_learnt,
            "of_held_out": self.of_held_out, "in_both": self.in_both, "set_aside": self.set_aside,
        }  # fmt: skip


def sample_records(data: Artifact, held_out: Artifact | None, most: int, seed: int, log: Log) -> Records:
    """Up to `most` rows of each kind, every row as likely as any other.

    Raises DataError if there is no file of rows, none held out, or none on one side.
    """
    learnt, held = _files(data, held_out)
    records = Records()
    rng = random.Random(f"records/{seed}")
    chosen, records.of_held_out = _drawn(held, most, rng, records, log)
    digests = {_digest(record) for record in chosen}
    both: set[bytes] = set()
    records.learnt, records.of_learnt = _drawn(learnt, most, rng, records, log, digests, both)
    records.held_out = [record for record in chosen if _digest(record) not in both]
    records.in_both = len(chosen) - len(records.held_out)
    if records.in_both:
        log.warn(f"{records.in_both} held-out rows of the sample stand among the learnt ones, too, and were left out")
    for path, rows in ((learnt, records.learnt), (held, records.held_out)):
        if not rows:
            raise DataError(f"{path} holds no row to look at ({records.set_aside} could not be read).")
    return records


def as_texts(records: list[Record], talk: Talk, tokens: int) -> list[Text]:
    """The records as ids, cut to so many tokens; those of which nothing is learnt are left out."""
    texts = [talk.document(row) if isinstance(row, str) else talk.conversation(row) for row in records]
    return [text for text in (text.cut(tokens) for text in texts) if any(text.learnt)]


def _files(data: Artifact, held_out: Artifact | None) -> tuple[Path, Path]:
    """The file of learnt rows, and that of rows held out."""
    name = next((name for name in (CONVERSATIONS, DOCUMENTS) if (data.path / name).is_file()), None)
    if name is None:
        raise DataError(f"{data.path} holds neither {CONVERSATIONS} nor {DOCUMENTS}: name the stage that made them.")
    if held_out is not None:
        places = [held_out.path / name, held_out.path / HELD_OUT / name]
    else:
        places = [data.path / HELD_OUT / name, *([data.path / VALIDATION] if name == DOCUMENTS else [])]
    found = next((path for path in places if path.is_file()), None)
    if found is None:
        raise DataError(
            f"there is no {' and no '.join(map(str, places))}: what a model remembers shows only beside rows of the "
            "same kind that it never saw. Name a stage with some as held_out, or let prepare.clean hold some out."
        )
    return data.path / name, found


def _drawn(
    path: Path,
    most: int,
    rng: random.Random,
    records: Records,
    log: Log,
    wanted: set[bytes] | None = None,
    met: set[bytes] | None = None,
) -> tuple[list[Record], int]:
    """A sample of a file's rows, in their order, and how many rows there are; `met` gets those that were wanted."""
    reader = ReadJsonl(path, Conversation.from_row if path.name == CONVERSATIONS else _document)
    kept: list[tuple[int, Record]] = []
    count = 0
    for record in _usable(reader):
        if wanted and met is not None and (digest := _digest(record)) in wanted:
            met.add(digest)
        if len(kept) < most:
            kept.append((count, record))
        elif (place := rng.randrange(count + 1)) < most:
            kept[place] = (count, record)
        count += 1
    if reader.bad:
        log.warn(f"{len(reader.bad)} rows were set aside, the first: {reader.bad[0]}")
        records.set_aside += len(reader.bad)
    return [record for _, record in sorted(kept, key=lambda row: row[0])], count


def _usable(reader: ReadJsonl[Any]) -> Iterator[Record]:
    """Conversations with a reply, and documents; planted canaries are no records."""
    for record in reader:
        if isinstance(record, str):
            if record:
                yield record
        elif record.meta.get("kind") != _PLANTED and any(message.role == "assistant" for message in record.messages):
            yield record


def _document(row: dict[str, Any]) -> str:
    """A document's text; nothing where it was planted."""
    text = row.get("text")
    if row.get("kind") == _PLANTED:
        return ""
    if not isinstance(text, str) or not text.strip():
        raise DataError('no "text": a document needs one')
    return text


def _digest(record: Record) -> bytes:
    parts = [record] if isinstance(record, str) else [f"{m.role}: {m.content}" for m in record.messages]
    return hashlib.sha256("\x00".join(parts).encode("utf-8", "replace")).digest()
