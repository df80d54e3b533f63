"""Writes the example town hall: its files as such an office would have them, and the truth about all of them."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from schoolhouse.get.hospital_marks import WHOLE, Planted
from schoolhouse.get.hospital_tables import Told
from schoolhouse.get.townhall_papers import INVENTED, rules, write_cases, write_citizens, write_rules
from schoolhouse.get.townhall_people import Citizen, People, Request, draw_request
from schoolhouse.get.townhall_rules import TOWN
from schoolhouse.get.townhall_talk import write_chats, write_mail
from schoolhouse.text.records import append_row, write_rows

_MOST_REQUESTS = 4  # of one citizen
_CHATS, _MAILS = 5, 10  # one request of so many is a talk at the counter, or an e-mail
_FOLDERS = {
    "cases": "requests as citizens wrote them, with what the clerks decided (CSV), a row each",
    "counter": "talks at the counter, in which the clerk asks for what is missing (JSON lines)",
    "mail": "e-mails that nobody has answered yet",
    "office": "the register of citizens (CSV)",
    "rules": "who may apply, fees and papers (Markdown), services (CSV), questions (Word); they name nobody",
}  # fmt: skip


def write_townhall(raw: Path, truth: Path, seed: int, count: int) -> dict[str, Any]:
    """Write files into `raw` and the truth into `truth`; return what was counted."""
    raw.mkdir(parents=True)
    truth.mkdir(parents=True)
    people, draw = People(seed), random.Random(f"{seed}/requests")
    citizens = [people.citizen(number) for number in range(1, count + 1)]
    whose = [citizen for citizen in citizens for _ in range(draw.randint(1, _MOST_REQUESTS))]
    requests = [draw_request(citizen, number, draw) for number, citizen in enumerate(whose, 1)]
    chats, mails = requests[::_CHATS], requests[1::_MAILS]
    elsewhere = {request.id for request in [*chats, *mails]}
    told = Told()
    with (truth / "spans.jsonl").open("w", encoding="utf-8") as file:
        planted = Planted(lambda row: append_row(file, row))
        write_rules(raw)
        write_citizens(raw, citizens, planted)
        write_cases(raw, [one for one in requests if one.id not in elsewhere], draw, planted, told)
        write_chats(raw, chats, draw, planted, told)
        mail = [write_mail(raw, request, draw, planted) for request in mails]
    _damage(raw, mail[0], told)
    write_rows(truth / "citizens.jsonl", (citizen.to_row() for citizen in citizens))
    write_rows(truth / "requests.jsonl", (request.facts() for request in requests))
    write_rows(truth / "broken.jsonl", told.broken)
    write_rows(truth / "repeated.jsonl", told.repeated)
    (truth / "rules.json").write_text(json.dumps(rules(), indent=1) + "\n", encoding="utf-8")
    return _counts(raw, citizens, requests, planted, told)


def _damage(raw: Path, mail: str, told: Told) -> None:
    """Leave files behind that cannot be read."""
    (raw / "mail" / "empty.eml").write_bytes(b"")
    told.is_broken("mail/empty.eml", WHOLE, "an empty file")
    whole = (raw / "rules" / "questions.docx").read_bytes()
    (raw / "rules" / "damaged.docx").write_bytes(whole[:400])
    told.is_broken("rules/damaged.docx", WHOLE, "a Word file that is cut off")
    copy = f"mail/copy-of-{Path(mail).name}"
    (raw / copy).write_bytes((raw / mail).read_bytes())
    told.repeated.append({"file": copy, "place": WHOLE, "repeats": mail, "kind": "same"})


def _counts(
    raw: Path, citizens: list[Citizen], requests: list[Request], planted: Planted, told: Told
) -> dict[str, Any]:
    files = sorted(path for path in raw.rglob("*") if path.is_file())
    facts = [request.facts() for request in requests]
    return {
        "people": len(citizens), "requests": len(requests), "files": len(files),
        "bytes": sum(path.stat().st_size for path in files),
        "by_folder": _tally(path.relative_to(raw).parts[0] for path in files),
        "planted": dict(sorted(planted.counts.items())), "broken": len(told.broken), "repeated": len(told.repeated),
        "services": _tally(row["service"] for row in facts),
        "entitled": _tally(row["entitled"] or "unknown" for row in facts),
        "missing": _tally(row["missing"] for row in facts),
        "age_group": _tally(citizen.age_group for citizen in citizens),
    }  # fmt: skip


def _tally(values: Iterable[str]) -> dict[str, int]:
    """Counted, by number and then by name."""
    return dict(sorted(Counter(values).items(), key=lambda item: (-item[1], item[0])))


def card(counts: Mapping[str, Any], seed: int) -> str:
    """The data card."""
    folders = [f"| `raw/{name}` | {counts['by_folder'].get(name, 0)} | {what} |" for name, what in _FOLDERS.items()]
    return "\n".join([
        f"# An example town hall: {TOWN}", "", INVENTED, "",
        "Names are drawn by Faker; one may still be somebody's by chance. Telephone numbers and mail domains are from",
        "ranges that belong to nobody.", "",
        f"{counts['people']:,} citizens, {counts['requests']:,} requests, {counts['files']} files, "
        f"{counts['bytes'] / 1e6:.1f} MB, seed {seed}.", "",
        "| Folder | Files | What |", "|---|---|---|", *folders, "",
        "## The truth, in `truth`", "",
        "- `citizens.jsonl`: who is who",
        "- `requests.jsonl`: every request, e-mails and talks included, with what the rules say to it",
        "- `spans.jsonl`: every personal value that was planted, with file, place, part, start and end",
        "- `broken.jsonl`, `repeated.jsonl`: what cannot be read, and what stands there twice or nearly",
        "- `rules.json`: the table that all rules, fees and answers are worked out from", "",
        *_table("Personal values", counts["planted"]), *_table("Services", counts["services"]),
        *_table("May apply, by what is told", counts["entitled"]), *_table("Missing", counts["missing"]),
        *_table("Age of citizens", counts["age_group"]),
    ])  # fmt: skip


def _table(title: str, counts: Mapping[str, int]) -> list[str]:
    return [f"| {title} | Count |", "|---|---|", *(f"| {name} | {n:,} |" for name, n in counts.items()), ""]
