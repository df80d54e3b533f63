"""The stage `prepare.ratings`: what people said of replies, from their files, for `train.reward` and `train.prefer`.

The liked replies to training conversations are written as conversations, too, for `train.sft`.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from schoolhouse.core.artifact import Artifact, Draft
from schoolhouse.core.config import StageConfig
from schoolhouse.core.errors import DataError
from schoolhouse.text.preferences import RATINGS, Rating, is_held_out, pairs_of, read_ratings, write_ratings
from schoolhouse.text.records import CONVERSATIONS, SOURCES, BadRow, write_conversations, write_rows

if TYPE_CHECKING:
    from schoolhouse.core.run import Run


class Config(StageConfig):
    """What `prepare.ratings` reads: a JSONL file of ratings or pairs, or a folder of such files."""

    source: str


def check(config: Config) -> None:
    """Raise DataError before anything starts if there is no such file."""
    _files(config)


def fingerprint(config: Config) -> str:
    """Return the hash of the files: further ratings are other data."""
    digests = [hashlib.sha256(file.read_bytes()).hexdigest() for file in _files(config)]
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()


def run(config: Config, inputs: Mapping[str, Artifact], run: "Run", out: Draft) -> None:
    """Write ratings.jsonl, conversations.jsonl and a data card; bad rows are counted, and the first ones named."""
    good: list[Rating] = []
    bad: list[BadRow] = []
    for file in _files(config):
        rows = read_ratings(file)
        good, bad = good + rows.good, bad + rows.bad
    if not good:
        raise DataError(f"{config.source} holds no rating{f'; the first bad row: {bad[0]}' if bad else ''}.")
    if bad:
        run.log.warn(f"{len(bad)} rows were set aside, the first: {bad[0]}")
    write_ratings(out.path / RATINGS, good)
    learnt = [rating for rating in good if not is_held_out(rating.asked)]
    liked = [rating.asked.plus("assistant", rating.reply) for rating in learnt if rating.liked]
    write_conversations(out.path / CONVERSATIONS, liked)
    facts = {
        "ratings": len(good), "up": sum(r.liked for r in good), "held_out": len(good) - len(learnt),
        "pairs": len(pairs_of(good)), "rows": len(liked), "set_aside": len(bad),
    }  # fmt: skip
    sources = [{"file": f.name, "sha256": hashlib.sha256(f.read_bytes()).hexdigest()} for f in _files(config)]
    write_rows(out.path / SOURCES, sources)
    out.meta.update(facts)
    (out.path / "README.md").write_text(_card(facts), encoding="utf-8")
    run.log.info(f"{facts['ratings']} ratings, {facts['up']} of them up; {facts['pairs']} pairs")


def _files(config: Config) -> list[Path]:
    path = Path(config.source)
    if path.is_dir():
        files = sorted(path.glob("*.jsonl"))
        if not files:
            raise DataError(f"the folder {path} holds no .jsonl file; put the ratings there, one JSON object a line")
        return files
    if not path.is_file():
        raise DataError(f"source {config.source!r}: there is no such file or folder; name a JSONL file of ratings")
    return [path]


def _card(facts: Mapping[str, int]) -> str:
    lines = [
        "# Ratings",
        "",
        f"{facts['ratings']} ratings of replies in `{RATINGS}`, {facts['up']} of them up, which make {facts['pairs']}",
        f"pairs; {facts['held_out']} belong to conversations that are held out, a fifth by the hash of their messages.",
        f"`{CONVERSATIONS}`: {facts['rows']} liked replies to the others.",
        f"{facts['set_aside']} rows could not be used.",
        "",
    ]
    return "\n".join(lines)
