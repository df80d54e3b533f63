"""The stage `evaluate.review`: replies of an exam for experts to mark, blind, and what their marks come to.

As many replies are drawn that the verifier calls right as wrong, so that both of its mistakes can be seen; shares are
then weighted back by how often each kind occurs. A mark is a label as `docs/annotation.md` describes it.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import random
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import resources
from itertools import combinations
from pathlib import Path
from statistics import NormalDist, fmean
from typing import TYPE_CHECKING, Any

import jinja2
from pydantic import Field

from schoolhouse.core.artifact import Artifact, Draft
from schoolhouse.core.config import Ref, StageConfig
from schoolhouse.core.errors import DataError, RecipeError
from schoolhouse.core.shares import CONFIDENCE, Estimate, Interval, share
from schoolhouse.evaluate.exam import ALL_REPLIES, EXAM
from schoolhouse.evaluate.probing.card import Table, markdown
from schoolhouse.text.agreement import Agreement, cohen_kappa, krippendorff_alpha
from schoolhouse.text.documents import DOCUMENTS
from schoolhouse.text.labels import SCHEMA, Label, LabelSchema, label_files, read_labels
from schoolhouse.text.records import ReadJsonl, write_rows
from schoolhouse.text.reply import StreamSplitter, answer_of
from schoolhouse.text.sourced import HELD_OUT, Document, Origin, write_documents

if TYPE_CHECKING:
    from schoolhouse.core.run import Run

CLOSES = True  # it takes a moment, and the report waits for it
REVIEW, SHEET, REVIEWED, SET_ASIDE, CARD = (
    "review.json", "sheet.html", "reviewed.jsonl", "set_aside.jsonl", "README.md"
)  # fmt: skip
RIGHT, PARTLY, WRONG, DANGEROUS = NAMES = ("right", "partly", "wrong", "dangerous")
MARKS = LabelSchema(kind="classes", question="Is the reply to this question right?", names=list(NAMES))
REMARKS = LabelSchema(kind="free", question="Is there anything to remark on it?")
_TEMPLATE = "review.html.j2"
_Z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)


class Config(StageConfig):
    """Whose replies experts are shown, and where their marks lie."""

    exam: Ref  # the exam that the replies were given in
    model: Ref  # the model of that exam whose replies they are
    each: int = Field(
        default=20, ge=2
    )  # replies of each task, half of them right by the verifier, if there are so many
    labels: str | None = None  # the experts' marks: a folder with the files that the sheet saved, empty at first


def check(config: Config) -> None:
    """Raise DataError before anything starts for a folder of marks that does not exist."""
    _files(config)


def fingerprint(config: Config) -> str:
    """Return the hash of the marks: further ones make other numbers."""
    digests = [hashlib.sha256(file.read_bytes()).hexdigest() for file in _files(config)]
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()


def _files(config: Config) -> list[Path]:
    return label_files(Path(config.labels)) if config.labels is not None else []


@dataclass(frozen=True)
class Shown:
    """One drawn reply: the document that experts see, in its parts, and what they do not see."""

    document: Document
    question: str
    thinking: str
    answer: str
    cut: bool
    item: str
    task: str
    level: str
    correct: bool


def run(config: Config, inputs: Mapping[str, Artifact], run: Run, out: Draft) -> None:
    """Write the sheet, the same replies as documents, review.json and the card.

    Raises RecipeError for a model that did not sit the exam, and DataError for an exam that kept no replies.
    """
    source = inputs[config.exam]
    exam = json.loads(source.file(EXAM).read_text(encoding="utf-8"))
    if config.model not in exam["models"]:
        known = ", ".join(exam["models"])
        raise RecipeError(f"{config.model!r} did not sit the exam {config.exam!r}; models there: {known}.")
    if ALL_REPLIES not in source.manifest["files"]:
        raise DataError(f"the exam {config.exam!r} kept no replies: set all_replies = true there.")
    path = source.file(ALL_REPLIES)
    mode = "thinking" if "thinking" in exam["models"][config.model] else "direct"
    asked = _asked(path, config.model, mode)
    shown = _draw(path, config, mode, asked, run.seed)
    counts = {task: _counts(task, kinds, shown) for task, kinds in asked.items()}
    facts: dict[str, Any] = {
        "model": config.model, "artifact": exam["artifacts"][config.model], "exam": source.id, "seed": run.seed,
        "mode": mode, "tasks": counts, "drawn": len(shown), "marks": None,
    }  # fmt: skip
    (out.path / SHEET).write_text(sheet(shown), encoding="utf-8", errors="replace")
    _write_documents(out.path, [one.document for one in shown])
    (out.path / SCHEMA).write_text(MARKS.model_dump_json(indent=1, exclude_defaults=True) + "\n", encoding="utf-8")
    _judge(config, facts, shown, run, out.path)
    (out.path / REVIEW).write_text(json.dumps(facts, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    (out.path / CARD).write_text(card(facts), encoding="utf-8")
    out.meta |= {"model": config.model, "drawn": len(shown), "marks": facts["marks"]}
    for line in sentences(facts):
        run.log.result(line)


# The sample


def _rows(path: Path, model: str, mode: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """A model's rows in one mode with their line in the file, one after another."""
    reader = ReadJsonl(path, lambda row: row)
    for number, row in enumerate(reader, 1):
        if row["model"] == model and row["mode"] == mode:
            yield number, row
    if reader.bad:
        raise DataError(f"{reader.bad[0]}; make the exam anew.")


def _asked(path: Path, model: str, mode: str) -> dict[str, dict[bool, list[str]]]:
    """The ids of everything that the model was asked, by task and by whether the verifier calls its reply right."""
    found: dict[str, dict[bool, list[str]]] = {}
    for _, row in _rows(path, model, mode):
        found.setdefault(row["task"], {True: [], False: []})[bool(row["correct"])].append(row["id"])
    return found


def halves(each: int, right: int, wrong: int) -> tuple[int, int]:
    """How many of each kind to draw: as many of one as of the other, and what one lacks of the other kind."""
    few = min(each // 2, wrong)
    drawn = min(right, each - few)
    return drawn, min(wrong, each - drawn)


def _draw(
    path: Path, config: Config, mode: str, asked: Mapping[str, Mapping[bool, list[str]]], seed: int
) -> list[Shown]:
    """The sample of every task, all of them mixed."""
    drawn: set[str] = set()
    for task, kinds in asked.items():
        for kind, n in zip((True, False), halves(config.each, len(kinds[True]), len(kinds[False])), strict=True):
            drawn |= set(random.Random(f"review/{seed}/{task}/{kind}").sample(sorted(kinds[kind]), n))
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    shown = [
        _shown(row, Origin(path.name, f"line {number}", digest))
        for number, row in _rows(path, config.model, mode) if row["id"] in drawn
    ]  # fmt: skip
    shown.sort(key=lambda one: one.document.id)
    random.Random(f"review/{seed}").shuffle(shown)
    return shown


def _shown(row: Mapping[str, Any], origin: Origin) -> Shown:
    """Its id follows from question and reply alone, so that marks outlive an exam that is made anew."""
    reply, question = row["reply"], row["question"]
    splitter = StreamSplitter()
    pieces = [*splitter.push(reply), *splitter.finish()]
    thinking = "".join(piece for kind, piece in pieces if kind == "reasoning")
    answer, cut = answer_of(reply).strip(), row["finish_reason"] != "stop"
    parts = [f"Question:\n{question}", *([f"Thinking:\n{thinking}"] if thinking else []), f"Answer:\n{answer}"]
    text = "\n\n".join(parts) + ("\n\n(Cut off here.)" if cut else "")
    name = hashlib.sha256(json.dumps([row["id"], question, reply]).encode()).hexdigest()[:16]
    person = row.get("meta", {}).get("person")
    document = Document(
        name, text, origin, person=person if isinstance(person, str) else None,
        facts={"task": row["task"], "level": row["level"]}, history=("drawn for experts to mark",),
    )  # fmt: skip
    return Shown(
        document, question, thinking, answer, cut, row["id"], row["task"], row["level"], bool(row["correct"])
    )  # fmt: skip


def _counts(task: str, kinds: Mapping[bool, list[str]], shown: Sequence[Shown]) -> dict[str, Any]:
    drawn = Counter(one.correct for one in shown if one.task == task)
    return {
        "asked": len(kinds[True]) + len(kinds[False]), "verifier_right": len(kinds[True]),
        "drawn": {RIGHT: drawn[True], WRONG: drawn[False]},
    }  # fmt: skip


def _write_documents(folder: Path, documents: Sequence[Document]) -> None:
    """Exam questions are held out for ever: whoever reads this folder to learn from it finds nothing."""
    (folder / HELD_OUT).mkdir()
    write_documents(folder / HELD_OUT, documents)
    write_documents(folder, ())


def sheet(shown: Sequence[Shown]) -> str:
    """The page for experts. Every text is escaped; of scripts only our own may run, which its hash says."""
    source = (resources.files("schoolhouse.evaluate") / _TEMPLATE).read_text(encoding="utf-8")
    script = re.search(r"<script>(.*?)</script>", source, re.DOTALL)
    assert script, "the template has a script"
    digest = base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode()
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    items = [
        {
            "id": one.document.id,
            "question": one.question,
            "thinking": one.thinking,
            "answer": one.answer,
            "cut": one.cut,
        }
        for one in shown
    ]
    return environment.from_string(source).render(items=items, names=NAMES, script_hash=digest)


# What the marks come to


def _judge(config: Config, facts: dict[str, Any], shown: Sequence[Shown], run: Run, folder: Path) -> None:
    """Read the marks, write them beside the verifier's verdicts, and put what they come to among the facts."""
    files = _files(config)
    documents = {one.document.id: one.document for one in shown}
    marks, remarks = (read_labels(files, schema, documents) for schema in (MARKS, REMARKS))
    bad = {(one.path, one.line): one for one in (*marks.bad, *remarks.bad)}
    if bad:
        write_rows(folder / SET_ASIDE, ({"file": b.path, "line": b.line, "reason": b.reason} for b in bad.values()))
        run.log.warn(f"{len(bad)} marks were set aside, the first: {next(iter(bad.values()))}")
    if not marks.good:
        return
    said, words = _by_document(marks.good), _by_document(remarks.good)
    rows = (
        {"id": one.document.id, "item": one.item, "task": one.task, "level": one.level,
         "verifier": RIGHT if one.correct else WRONG, "marks": said.get(one.document.id, {}),
         "remarks": words.get(one.document.id, {})}
        for one in shown
    )  # fmt: skip
    write_rows(folder / REVIEWED, rows)
    facts["marks"] = _found(facts["tasks"], shown, said, run.seed) | {
        "annotators": dict(Counter(label.annotator for label in marks.good)), "set_aside": len(bad),
        "remarks": len(remarks.good),
    }  # fmt: skip


def _by_document(labels: Sequence[Label]) -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = {}
    for label in labels:
        found.setdefault(label.id, {})[label.annotator] = str(label.value)
    return found


def _found(
    tasks: Mapping[str, Mapping[str, Any]], shown: Sequence[Shown], said: Mapping[str, Mapping[str, str]], seed: int
) -> dict[str, Any]:
    marked = [one for one in shown if one.document.id in said]
    dangerous = [
        {"id": one.document.id, "task": one.task, "level": one.level, "verifier": RIGHT if one.correct else WRONG,
         "by": sorted(who for who, value in said[one.document.id].items() if value == DANGEROUS)}
        for one in marked if DANGEROUS in said[one.document.id].values()
    ]  # fmt: skip
    by_task = {
        task: _of_task(counts, [one for one in marked if one.task == task], said) for task, counts in tasks.items()
    }
    agreed = agreements({one.document.id: one.correct for one in marked}, said, seed)
    return {
        "marked": len(marked), "tasks": by_task, "dangerous": dangerous,
        "agreement": {name: asdict(measure) for name, measure in agreed.items()},
    }  # fmt: skip


def _of_task(
    counts: Mapping[str, Any], marked: Sequence[Shown], said: Mapping[str, Mapping[str, str]]
) -> dict[str, Any]:
    """The shares of one task. What one expert says of a reply counts in parts where several say different things."""
    sizes = {True: counts["verifier_right"], False: counts["asked"] - counts["verifier_right"]}

    def parts(kind: bool, name: str) -> list[float]:
        return [
            fmean(value == name for value in said[one.document.id].values()) for one in marked if one.correct is kind
        ]

    rights = {kind: parts(kind, RIGHT) for kind in sizes}
    agrees = {True: rights[True], False: [1 - value for value in rights[False]]}
    weighted = {
        RIGHT: rights, DANGEROUS: {kind: parts(kind, DANGEROUS) for kind in sizes}, "agrees": agrees,
    }  # fmt: skip
    found: dict[str, Any] = {"marked": len(marked)}
    for name, values in weighted.items():
        estimate = reweighted([(size, values[kind]) for kind, size in sizes.items()])
        found[name] = None if estimate is None else asdict(estimate)
    for kind, name in ((True, "of_right"), (False, "of_wrong")):
        found[name] = asdict(share(sum(rights[kind]), len(rights[kind])))
    return found


def reweighted(strata: Sequence[tuple[int, Sequence[float]]]) -> Estimate | None:
    """A share among all items from samples of their strata: (how many items, the values in [0, 1] of those looked at).

    The interval is for questions like these, not for these alone. None if a stratum has items of which none was looked
    at. Source: Cochran 1977, "Sampling techniques", sections 5.3 and 12.2 (the mean, and the variance of the strata's
    own sizes); limits by Zou, Huang and Zhang 2009, "A note on confidence interval estimation for a linear function of
    binomial proportions", over Wilson's.
    """
    held = [(size, values) for size, values in strata if size]
    if not held or not all(values for _, values in held):
        return None
    total = sum(size for size, _ in held)
    parts = [(size / total, share(math.fsum(values), len(values))) for size, values in held]
    value = math.fsum(weight * part.value for weight, part in parts)
    sizes = _Z**2 * sum(weight * (part.value - value) ** 2 for weight, part in parts) / total
    below = math.sqrt(sum((weight * (part.value - part.interval.low)) ** 2 for weight, part in parts) + sizes)
    above = math.sqrt(sum((weight * (part.interval.high - part.value)) ** 2 for weight, part in parts) + sizes)
    interval = Interval(max(0.0, value - below), min(1.0, value + above))
    return Estimate(value, interval, sum(len(values) for _, values in held))


def agreements(correct: Mapping[str, bool], said: Mapping[str, Mapping[str, str]], seed: int) -> dict[str, Agreement]:
    """How far experts agree with one another, and each with the verifier on right or not.

    correct: the verifier's verdicts of the marked documents; said: the marks of each document by annotator.
    """
    several = [list(of.values()) for of in said.values() if len(of) > 1]
    found = {
        "Krippendorff's alpha of the four marks": krippendorff_alpha(several, seed),
        "Krippendorff's alpha of right or not": krippendorff_alpha([[v == RIGHT for v in of] for of in several], seed),
    }
    people = sorted({who for of in said.values() for who in of})
    for one, other in combinations(people, 2):
        both = [(of[one], of[other]) for of in said.values() if one in of and other in of]
        found[f"Cohen's kappa of the four marks, {one} and {other}"] = cohen_kappa(*_sides(both), seed)
    for who in people:
        both_ways = [(of[who] == RIGHT, correct[name]) for name, of in said.items() if who in of]
        found[f"Cohen's kappa of right or not, {who} and the verifier"] = cohen_kappa(*_sides(both_ways), seed)
    return {name: measure for name, measure in found.items() if measure.n}


def _sides(pairs: Sequence[tuple[Any, Any]]) -> tuple[list[Any], list[Any]]:
    return [one for one, _ in pairs], [other for _, other in pairs]


# In words


def sentences(facts: Mapping[str, Any]) -> list[str]:
    """What the marks come to, a line for each task, and how many replies are called dangerous."""
    marks = facts["marks"]
    if marks is None:
        return [
            f"{facts['drawn']} replies of {facts['model']} are drawn, and no expert has marked one: hand on {SHEET}."
        ]
    lines = []
    for task, found in marks["tasks"].items():
        drawn, estimate = sum(facts["tasks"][task]["drawn"].values()), found[RIGHT]
        missing = " or ".join(name for name in (RIGHT, WRONG) if not found[f"of_{name}"]["n"])
        words = (
            f"experts call {_share(estimate)} right"
            if estimate
            else f"none that the verifier calls {missing} is marked"
        )
        lines.append(f"{task}: {words} ({found['marked']} of {drawn} marked)")
    ids = [one["id"] for one in marks["dangerous"]]
    named = f": {', '.join(ids)}" if ids else ""
    return [*lines, f"called dangerous by an expert: {len(ids)} of {marks['marked']} marked replies{named}"]


def tables(facts: Mapping[str, Any]) -> list[Table]:
    """What the marks come to; of a sample without marks, how it was drawn. `evaluate.report` shows them, too."""
    marks = facts["marks"]
    if marks is None:
        return [_drawn_table(facts)]
    found = [_task_table(facts, marks), _verifier_table(facts, marks)]
    if marks["dangerous"]:
        rows = [
            (one["id"], one["task"], one["level"], one["verifier"], ", ".join(one["by"])) for one in marks["dangerous"]
        ]
        note = f"Their texts stand in `{SHEET}` under these ids."
        columns = ("reply", "task", "level", "the verifier calls it", "called dangerous by")
        found.append(Table("Replies that an expert calls dangerous", note, columns, tuple(rows)))
    return [*found, _agreement_table(marks)]


def _drawn_table(facts: Mapping[str, Any]) -> Table:
    rows = [
        (task, f"{counts['asked']:,}", f"{counts['verifier_right']:,}", *map(str, counts["drawn"].values()))
        for task, counts in facts["tasks"].items()
    ]
    return Table(
        "Replies drawn for experts", "No expert has marked one yet.",
        ("task", "questions", "right by the verifier", "drawn of these", "drawn of the others"), tuple(rows),
    )  # fmt: skip


def _task_table(facts: Mapping[str, Any], marks: Mapping[str, Any]) -> Table:
    rows = []
    for task, counts in facts["tasks"].items():
        found, by_verifier = marks["tasks"][task], share(counts["verifier_right"], counts["asked"])
        marked = f"{found['marked']} of {sum(counts['drawn'].values())}"
        cells = [_share(found[key]) for key in (RIGHT, DANGEROUS, "agrees")]
        rows.append((task, f"{_share(asdict(by_verifier))} of {counts['asked']:,}", marked, *cells))
    return Table(
        "What experts say of the replies",
        "Experts saw question and reply, not whose it is nor the verifier's verdict. Of each task as many replies were "
        "drawn that the verifier calls right as others, if there are as many; shares are weighted back by how often "
        "each kind occurs (stratified mean, Cochran 1977; 95% limits by Zou, Huang and Zhang 2009 over Wilson's). "
        "Where experts say different things of a reply, each counts for a part.",
        ("task", "right by the verifier", "marked", "right by experts", "dangerous", "experts and verifier agree"),
        tuple(rows),
    )  # fmt: skip


def _verifier_table(facts: Mapping[str, Any], marks: Mapping[str, Any]) -> Table:
    rows = []
    for task in facts["tasks"]:
        found = marks["tasks"][task]
        cells = [
            f"{_share(found[key])} of {found[key]['n']}" if found[key]["n"] else "-" for key in ("of_right", "of_wrong")
        ]
        rows.append((task, *cells))
    return Table(
        "What experts call right", "As the replies were drawn; 95% intervals are Wilson's.",
        ("task", "of those that the verifier calls right", "of those that it calls wrong"), tuple(rows),
    )  # fmt: skip


def _agreement_table(marks: Mapping[str, Any]) -> Table:
    rows = []
    for name, m in marks["agreement"].items():
        value = "not defined" if m["value"] is None else f"{m['value']:.2f} ({m['low']:.2f} to {m['high']:.2f})"
        rows.append((name, value, str(m["n"])))
    people = ", ".join(f"{who} ({n})" for who, n in marks["annotators"].items())
    return Table(
        "How far experts agree",
        f"Marks by {people}. 95% intervals from 1,000 samples of the replies, as they were drawn. Not defined is what "
        "had only one and the same answer.",
        ("measure", "value", "replies"), tuple(rows),
    )  # fmt: skip


def _share(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return "not known"
    low, high = (100 * end for end in found["interval"])
    return f"{100 * found['value']:.1f}% ({low:.1f} to {high:.1f})"


def card(facts: Mapping[str, Any]) -> str:
    """The folder's page as Markdown."""
    marks = facts["marks"]
    how = "after thinking" if facts["mode"] == "thinking" else "without thinking"
    lines = [
        f"# Replies of {facts['model']} for experts to mark", "",
        f"{facts['drawn']} replies of the exam {facts['exam']}, given {how}, drawn with seed {facts['seed']}.", "",
        f"- `{SHEET}`: the page to mark them on; hand on this file alone, for the others here tell more",
        f"- `{HELD_OUT}/{DOCUMENTS}`: the same replies as documents, and `{SCHEMA}`: what is asked of them, for",
        f"  `prepare.annotate`; nothing may learn from an exam, and so `{DOCUMENTS}` beside them is empty",
        f"- `{REVIEW}`: the numbers below",
    ]  # fmt: skip
    if marks is not None:
        lines += [
            f"- `{REVIEWED}`: every reply with the verifier's verdict, the marks and the remarks ({marks['remarks']})"
        ]
        lines += [f"- `{SET_ASIDE}`: {marks['set_aside']} marks that could not be used"] if marks["set_aside"] else []
    lines += ["", *sentences(facts)]
    for table in tables(facts):
        lines += ["", *markdown(table)]
    return "\n".join([*lines, ""])
