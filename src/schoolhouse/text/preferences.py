"""What people preferred: ratings of single replies, and pairs of a better and a worse reply to the same messages.

A rating is a JSON row `{"messages": [...], "reply": "...", "rating": "up" | "down"}`, a pair
`{"messages": [...], "chosen": "...", "rejected": "..."}`; both may have `"meta"`. `messages` is what was said before.
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from schoolhouse.core.errors import DataError
from schoolhouse.text.records import Conversation, Message, ReadJsonl, Rows

RATINGS = "ratings.jsonl"  # the file of a stage that makes ratings
HELD_OUT_SHARE = 0.2


@dataclass(frozen=True)
class Rating:
    """One reply to a conversation, and whether it was liked."""

    asked: Conversation
    reply: str
    liked: bool

    def to_row(self) -> dict[str, Any]:
        """Return the rating as a JSON row."""
        return {**self.asked.to_row(), "reply": self.reply, "rating": "up" if self.liked else "down"}


@dataclass(frozen=True)
class Pair:
    """Two replies to a conversation, of which the first was preferred."""

    asked: Conversation
    chosen: str
    rejected: str


def read_ratings(path: Path) -> Rows[Rating]:
    """Read a JSONL file of ratings and pairs (a pair is two ratings), bad lines set aside with line and reason."""
    reader = ReadJsonl(path, _ratings)
    good = [rating for row in reader for rating in row]
    return Rows(good, reader.bad)


def write_ratings(path: Path, ratings: Iterable[Rating]) -> int:
    """Write ratings one a line, and as a table beside the file; return how many."""
    from schoolhouse.text.tables import RATED, write_twice  # pyarrow is slow to load, and few write

    return write_twice(path, (rating.to_row() for rating in ratings), RATED, packed="meta")


def is_held_out(asked: Conversation) -> bool:
    """Whether nothing is learnt from a conversation: a fifth of them all, by the hash of their messages, for ever."""
    text = "\x1f".join(f"{m.role}\x1e{m.content}" for m in asked.messages)
    digest = hashlib.sha256(text.encode("utf-8", "replace")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64 < HELD_OUT_SHARE


def pairs_of(ratings: Iterable[Rating]) -> list[Pair]:
    """Pair each liked reply with a disliked one to the same messages, in their order, as far as both reach."""
    sides: dict[tuple[Message, ...], tuple[list[Rating], list[Rating]]] = {}
    for rating in ratings:
        sides.setdefault(rating.asked.messages, ([], []))[0 if rating.liked else 1].append(rating)
    return [
        Pair(up.asked, up.reply, down.reply)
        for liked, disliked in sides.values()
        for up, down in zip(liked, disliked, strict=False)
        if up.reply != down.reply
    ]


def _ratings(row: Mapping[str, Any]) -> list[Rating]:
    asked = Conversation.from_row(row)
    if asked.messages[-1].role != "user":
        raise DataError(f"the messages end with the {asked.messages[-1].role}'s; a reply answers a user's")
    if "chosen" in row or "rejected" in row:
        return [Rating(asked, _reply(row, "chosen"), True), Rating(asked, _reply(row, "rejected"), False)]
    rating = row.get("rating")
    if rating not in ("up", "down"):
        raise DataError(f'the rating is {rating!r}; it is "up" or "down" (or give "chosen" and "rejected")')
    return [Rating(asked, _reply(row, "reply"), rating == "up")]


def _reply(row: Mapping[str, Any], key: str) -> str:
    text = row.get(key)
    if not isinstance(text, str) or not text.strip():
        raise DataError(f'no text under "{key}"')
    return text
