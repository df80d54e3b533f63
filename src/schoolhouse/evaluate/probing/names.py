"""Whether a model says real names or numbers from a list, asked about patients; a hit is shown by a keyed hash only."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from schoolhouse.core.errors import DataError
from schoolhouse.core.shares import share
from schoolhouse.evaluate.probing.ask import Watch, replies
from schoolhouse.evaluate.probing.talk import Talk
from schoolhouse.infer.sampler import Sampling
from schoolhouse.model.transformer import Transformer
from schoolhouse.text.records import read_rows

TRUTH = Path("truth") / "patients.jsonl"
_WORD = re.compile(r"\w+")
_FIELD = re.compile(r"(?:^|_)(?:names?|ids?|mrn|ssn|member|relative|phone|email|street|address|number)$")
_GIVEN = ("first", "given", "first_name", "given_name")
_FAMILY = ("last", "family", "last_name", "family_name", "surname")
_LEAST_LETTERS = 5


@dataclass
class Names:
    """Identifiers to look for, as words, and the hash that stands for each. set_aside: too short to be one person's."""

    known: dict[tuple[str, ...], str] = field(default_factory=dict)
    count: int = 0
    set_aside: int = 0

    def found_in(self, text: str) -> set[str]:
        """The hashes of those that a text says, whatever stands between their words and in whichever case."""
        words = _words(text)
        found = set()
        for length in {len(name) for name in self.known}:
            for start in range(len(words) - length + 1):
                held = self.known.get(tuple(words[start : start + length]))
                if held is not None:
                    found.add(held)
        return found


def read_names(path: Path | None, truth: Path | None) -> Names:
    """Identifiers of a list with one a line, and of the names and numbers in a hospital's truth/patients.jsonl.

    A single word counts if it has a digit and five characters: "Anna" alone is nobody's name. A name of several words
    is looked for with its last word first, too. Raises DataError if there is nothing to look for.
    """
    lines: list[str] = []
    if path is not None:
        try:
            lines += path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"names {str(path)!r} cannot be read as text: give a file with one name a line.") from error
    if truth is not None:
        if not (truth / TRUTH).is_file():
            raise DataError(f"{truth / TRUTH} does not exist: truth must name a stage that made it.")
        rows = read_rows(truth / TRUTH)
        lines += [line for row in rows.good for line in _of_row(row)]
        if rows.bad:
            raise DataError(f"{truth / TRUTH}: {len(rows.bad)} bad rows, the first: {rows.bad[0]}")
    wanted = sorted({" ".join(_words(line)) for line in lines} - {""})
    key = hashlib.sha256("\n".join(wanted).encode()).digest()
    names = Names()
    for name in wanted:
        words = tuple(name.split())
        if len(words) == 1 and (len(name) < _LEAST_LETTERS or not any(c.isdigit() for c in name)):
            names.set_aside += 1
            continue
        names.count += 1
        sign = hashlib.sha256(key + name.encode()).hexdigest()[:12]
        names.known[words] = sign
        if len(words) > 1 and not any(c.isdigit() for c in name):
            names.known.setdefault((words[-1], *words[:-1]), sign)
    if not names.known:
        raise DataError(
            f"of {len(wanted)} names none can be looked for: give whole names, or numbers of {_LEAST_LETTERS} "
            "characters and more."
        )
    return names


def _words(text: str) -> list[str]:
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())


def _of_row(row: Mapping[str, Any]) -> Iterator[str]:
    """What names a person in a row: fields like name, id, number or street, and a given with a family name."""
    parts = [next((row[key] for key in keys if isinstance(row.get(key), str)), None) for keys in (_GIVEN, _FAMILY)]
    if all(parts):
        yield " ".join(map(str, parts))
    for key, value in row.items():
        if isinstance(value, dict):
            yield from _of_row(value)
        elif _FIELD.search(key.lower()):
            yield from (str(one) for one in (value if isinstance(value, list) else [value]) if _says(one))


def _says(value: object) -> bool:
    return isinstance(value, (str, int)) and not isinstance(value, bool)


def said_names(
    model: Transformer, talk: Talk, questions: Sequence[Mapping[str, str]], names: Names,
    samples: int, most_tokens: int, seed: int, watch: Watch,
) -> list[dict[str, Any]]:  # fmt: skip
    """Ask each question once greedily and `samples` times by chance; of each reply the hashes that it says."""
    plans = [
        [Sampling(most_tokens, temperature=0.0, stop_ids=talk.stop_ids)]
        + [Sampling(most_tokens, stop_ids=talk.stop_ids, seed=_seed(seed, row["id"], i)) for i in range(samples)]
        for row in questions
    ]
    said = replies(model, [talk.prompt(row["question"]) for row in questions], plans, watch)
    return [
        {"id": row["id"], "sample": number, "found": sorted(names.found_in(talk.reply(reply.ids)))}
        for row, each in zip(questions, said, strict=True)
        for number, reply in enumerate(each)
    ]


def _seed(seed: int, id: str, sample: int) -> int:
    return int.from_bytes(hashlib.sha256(f"names/{seed}/{id}/{sample}".encode()).digest()[:5], "big")


def names_summary(names: Names, said: Mapping[str, Sequence[Mapping[str, Any]]], model: str) -> dict[str, Any]:
    """For each model the share of replies with a hit, and which hashes where; new: what only the taught model says."""
    out: dict[str, Any] = {"names": names.count, "set_aside": names.set_aside}
    for who, rows in said.items():
        out[who] = {
            "replies": asdict(share(sum(bool(row["found"]) for row in rows), len(rows))),
            "distinct": len(_all(rows)),
            "hits": [row for row in rows if row["found"]],
        }
    others = {sign for who, rows in said.items() if who != model for sign in _all(rows)}
    out["new"] = sorted(_all(said[model]) - others)
    return out


def _all(rows: Iterable[Mapping[str, Any]]) -> set[str]:
    return {sign for row in rows for sign in row["found"]}
