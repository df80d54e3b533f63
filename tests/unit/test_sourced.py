"""Documents with their source: both files hold the same, as streams, and bad lines are told."""

import json

import pyarrow.parquet as pq
import pytest

from schoolhouse.core.errors import DataError
from schoolhouse.text import tables
from schoolhouse.text.documents import DOCUMENTS, read_texts
from schoolhouse.text.preferences import Rating, write_ratings
from schoolhouse.text.records import Conversation, Message, write_conversations
from schoolhouse.text.sourced import TABLE, Document, Origin, document_id, read_documents, write_documents


def documents(count):
    for number in range(count):
        origin = Origin("notes/a.csv", f"line {number}", "ab" * 32)
        facts = {"code": "E11.9", "age": number, "urgent": number % 2 == 0, "weight": 70.5, "ward": None}
        yield Document(document_id(origin), f"Note {number}: ärztlich", origin, "note", "p1", "en", facts, ("read",))


@pytest.mark.parametrize("count", [0, 1, 7])
def test_both_files_hold_the_same_documents(tmp_path, monkeypatch, count):
    monkeypatch.setattr(tables, "_TOGETHER", 3)
    assert write_documents(tmp_path, documents(count)) == count
    assert list(read_documents(tmp_path)) == list(documents(count))
    assert list(read_texts(tmp_path / DOCUMENTS)) == [d.text for d in documents(count)]
    rows = pq.read_table(tmp_path / TABLE).to_pylist()
    assert [row | {"facts": json.loads(row["facts"])} for row in rows] == [d.to_row() for d in documents(count)]


@pytest.mark.parametrize("count", [0, 5])
def test_conversations_and_ratings_lie_in_tables_as_well(tmp_path, monkeypatch, count):
    monkeypatch.setattr(tables, "_TOGETHER", 2)
    talks = [
        Conversation(
            (Message("user", f"{n}? ä \ud800"), Message("assistant", "yes")), {"n": n, "of": ["a"]} if n else {}
        )
        for n in range(count)
    ]
    ratings = [Rating(talk, "yes", liked=n % 2 == 0) for n, talk in enumerate(talks)]
    assert write_conversations(tmp_path / "conversations.jsonl", talks) == count
    assert write_ratings(tmp_path / "ratings.jsonl", ratings) == count
    for name in ("conversations", "ratings"):
        lines = [json.loads(line) for line in (tmp_path / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]
        rows = pq.read_table(tmp_path / f"{name}.parquet").to_pylist()
        assert [row | {"meta": json.loads(row["meta"])} for row in rows] == [{"meta": {}} | line for line in lines]
        assert len(rows) == count


def test_an_id_follows_from_the_place_alone():
    one, two = Origin("a.csv", "line 1", "00"), Origin("b.csv", "line 1", "00")
    assert document_id(one) == document_id(two) != document_id(Origin("a.csv", "line 2", "00"))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"text": 3}, 'needs "id" and "text"'),
        ({"source": {"file": "a"}}, "file, place and sha256"),
        ({"facts": []}, "list"),
    ],
)
def test_what_is_wrong_with_a_line_is_said(tmp_path, change, told):
    (tmp_path / DOCUMENTS).write_text(json.dumps(next(documents(1)).to_row() | change) + "\n")
    with pytest.raises(DataError, match=told):
        list(read_documents(tmp_path))
