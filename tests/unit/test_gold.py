"""The gold notes: marks that fit, enough of each kind, nothing personal left unmarked, the same file every time."""

import json
import re
from collections import Counter
from importlib.metadata import version

import pytest

gold_notes = pytest.importorskip("gold_notes")  # which needs Faker
ROWS = [json.loads(line) for line in gold_notes.GOLD.read_text(encoding="utf-8").splitlines()]
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


def test_every_mark_fits_and_none_overlaps_another():
    for row in ROWS:
        assert row.keys() == {"id", "template", "person", "text", "spans"}
        end = 0
        for span in row["spans"]:
            assert end <= span["start"] < span["end"] <= len(row["text"]), row["id"]
            assert span["type"] in gold_notes.MARKED
            value = row["text"][span["start"] : span["end"]]
            assert value == value.strip(), row["id"]
            assert re.search(r"\w", value), row["id"]
            end = span["end"]


def test_there_are_enough_values_of_each_kind():
    kinds = Counter(span["type"] for row in ROWS for span in row["spans"])
    assert kinds.keys() == set(gold_notes.MARKED)
    assert {kind for kind in kinds if kinds[kind] < 50} == set()
    assert {kind for kind in ("name", "date", "id", "phone", "address", "organisation") if kinds[kind] < 100} == set()


def test_no_marked_value_also_stands_unmarked():
    assert [(row["id"], found) for row in ROWS if (found := gold_notes.leaks(row["text"], row["spans"]))] == []
    spans = [{"start": 0, "end": 4, "type": "name"}]
    assert gold_notes.leaks("Zora came. ZORA left.", spans) == ["zora"]
    assert gold_notes.leaks("Will came. She will stay.", spans) == []


def test_nothing_that_looks_personal_is_left_unmarked():
    assert [(row["id"], found[0]) for row in ROWS if (found := LOOKS.search(unmarked(row)))] == []


def test_a_patient_keeps_the_record_number_over_notes():
    notes = Counter(row["person"] for row in ROWS)
    assert sum(count > 1 for count in notes.values()) >= 100
    numbers = {}
    for row in ROWS:
        if row["template"] == "discharge-summary-headers":
            ids = [row["text"][s["start"] : s["end"]] for s in row["spans"] if s["type"] == "id"]
            assert numbers.setdefault(row["person"], ids[0]) == ids[0]


def test_typos_and_line_ends_also_fall_into_marked_values():
    broken = [row for row in ROWS if any("\n" in row["text"][s["start"] : s["end"]] for s in row["spans"])]
    assert len(broken) >= 50
    assert any(
        s["type"] == "name" and "\n" in row["text"][s["start"] : s["end"]] for row in broken for s in row["spans"]
    )


@pytest.mark.skipif(version("faker") != gold_notes.FAKER, reason="another release of Faker draws other values")
def test_the_tool_writes_the_same_file_again():
    assert gold_notes.written() == gold_notes.GOLD.read_text(encoding="utf-8")
