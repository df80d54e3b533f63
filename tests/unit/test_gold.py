"""The gold notes: marks that fit, enough of each kind, nothing personal left unmarked, the same file every time."""

import json
import re
from collections import Counter
from importlib.metadata import version

import pytest

gold_notes = pytest.importorskip("gold_notes")  # which needs Faker
ROWS, FRESH = (
    [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    for path in (gold_notes.GOLD, gold_notes.FRESH)
)
DAY = "monday|tuesday|wednesday|thursday|friday|saturday|sunday"
MONTH = "january|february|april|june|july|august|september|october|november|december"
LOOKS = re.compile(
    rf"\b\d{{1,2}}[/.-]\d{{1,2}}[/.-]\d{{4}}\b|\b\d{{4}}-\d\d-\d\d\b|@\w|https?:|www\."
    rf"|\b\d{{3}}[-. ]\d{{3}}[-. ]\d{{4}}\b|\b\d{{6,}}\b|\b(?:{DAY}|{MONTH})\b",
    re.IGNORECASE,
)


def unmarked(row):
    """The text with its marked values taken out."""
    parts, at = [], 0
    for span in row["spans"]:
        parts.append(row["text"][at : span["start"]])
        at = span["end"]
    return " | ".join([*parts, row["text"][at:]])


def test_there_are_enough_notes_of_enough_templates_and_the_file_is_small():
    uses = Counter(row["template"] for row in ROWS)
    assert len(ROWS) >= 600
    assert len({row["id"] for row in ROWS}) == len({row["text"] for row in ROWS}) == len(ROWS)
    assert len(uses) >= 60
    assert max(uses.values()) <= 12
    assert uses.keys() == {template.name for template in gold_notes.templates()}
    assert gold_notes.GOLD.stat().st_size < 1.2e6


def test_the_fresh_notes_are_many_and_share_nothing_with_the_first_set():
    uses = Counter(row["template"] for row in FRESH)
    assert len(FRESH) >= 380
    assert len(uses) >= 48
    assert set(uses.values()) == {gold_notes.USES}
    assert uses.keys() == {template.name for template in gold_notes.templates(fresh=True)}
    for key in ("id", "template", "person", "text"):
        assert not {row[key] for row in FRESH} & {row[key] for row in ROWS}
    assert len({row["id"] for row in FRESH}) == len({row["text"] for row in FRESH}) == len(FRESH)
    assert gold_notes.FRESH.stat().st_size < 1.3e6


def test_the_fresh_notes_say_that_they_are_the_half_that_is_only_measured_on():
    assert {row["half"] for row in FRESH} == {"test"}
    assert not any("half" in row for row in ROWS)


@pytest.mark.parametrize(("rows", "more"), [(ROWS, set()), (FRESH, {"half"})], ids=["first", "fresh"])
def test_every_mark_fits_and_none_overlaps_another(rows, more):
    for row in rows:
        assert row.keys() == {"id", "template", "person", "text", "spans"} | more
        end = 0
        for span in row["spans"]:
            assert end <= span["start"] < span["end"] <= len(row["text"]), row["id"]
            assert span["type"] in gold_notes.MARKED
            value = row["text"][span["start"] : span["end"]]
            assert value == value.strip(), row["id"]
            assert re.search(r"\w", value), row["id"]
            end = span["end"]


@pytest.mark.parametrize(("rows", "least"), [(ROWS, 50), (FRESH, 40)], ids=["first", "fresh"])
def test_there_are_enough_values_of_each_kind(rows, least):
    kinds = Counter(span["type"] for row in rows for span in row["spans"])
    assert kinds.keys() == set(gold_notes.MARKED)
    assert {kind for kind in kinds if kinds[kind] < least} == set()
    assert {kind for kind in ("name", "date", "id", "phone", "address", "organisation") if kinds[kind] < 100} == set()


def test_no_marked_value_also_stands_unmarked():
    for rows, common in ((ROWS, gold_notes.COMMON), (FRESH, gold_notes.FRESH_COMMON)):
        found = [(row["id"], gold_notes.leaks(row["text"], row["spans"], common)) for row in rows]
        assert [leak for leak in found if leak[1]] == []
    spans = [{"start": 0, "end": 4, "type": "name"}]
    assert gold_notes.leaks("Zora came. ZORA left.", spans) == ["zora"]
    assert gold_notes.leaks("Will came. She will stay.", spans) == []


@pytest.mark.parametrize("rows", [ROWS, FRESH], ids=["first", "fresh"])
def test_nothing_that_looks_personal_is_left_unmarked(rows):
    assert [(row["id"], found[0]) for row in rows if (found := LOOKS.search(unmarked(row)))] == []


def test_a_patient_keeps_the_record_number_over_notes():
    notes = Counter(row["person"] for row in ROWS)
    assert sum(count > 1 for count in notes.values()) >= 100
    numbers = {}
    for row in ROWS:
        if row["template"] == "discharge-summary-headers":
            ids = [row["text"][s["start"] : s["end"]] for s in row["spans"] if s["type"] == "id"]
            assert numbers.setdefault(row["person"], ids[0]) == ids[0]


def test_typos_and_line_ends_also_fall_into_marked_values():
    for rows, least in ((ROWS, 50), (FRESH, 40)):
        broken = [row for row in rows if any("\n" in row["text"][s["start"] : s["end"]] for s in row["spans"])]
        assert len(broken) >= least
        assert any(
            s["type"] == "name" and "\n" in row["text"][s["start"] : s["end"]] for row in broken for s in row["spans"]
        )


@pytest.mark.skipif(version("faker") != gold_notes.FAKER, reason="another release of Faker draws other values")
def test_the_tool_writes_the_same_files_again():
    assert gold_notes.written() == gold_notes.GOLD.read_text(encoding="utf-8")
    assert gold_notes.written(gold_notes.fresh_rows()) == gold_notes.FRESH.read_text(encoding="utf-8")
