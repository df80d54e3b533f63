"""Conversations and JSONL: nothing is lost in silence."""

import json

import pytest

from schoolhouse.core.errors import DataError
from schoolhouse.text.records import (
    Conversation,
    Message,
    Rows,
    read_conversations,
    read_rows,
    write_conversations,
    write_rows,
)

TALK = Conversation((Message("user", "Zürich\n\u2028?"), Message("assistant", "日本")), {"level": "1"})


def test_what_is_written_is_read_back(tmp_path):
    assert write_conversations(tmp_path / "a.jsonl", [TALK, TALK]) == 2
    rows = read_conversations(tmp_path / "a.jsonl")
    assert rows.good == [TALK, TALK]
    assert rows.bad == []


def test_bad_rows_are_set_aside_with_line_and_reason(tmp_path):
    path = tmp_path / "mixed.jsonl"
    good = json.dumps(TALK.to_row()).encode()
    lines = [
        b"\xef\xbb\xbf" + good,  # a byte order mark, as some editors write it
        b"",
        b"{not json",
        b"[1]",
        b'{"messages": []}',
        b'{"messages": [{"role": "boss", "content": "x"}]}',
        b'{"messages": [{"role": "user"}]}',
        b'{"messages": ["x"]}',
        b'{"messages": [{"role": "user", "content": "x"}], "meta": 1}',
        b"\xff\xfe",
        b"[" * 100_000,
        good,
    ]
    path.write_bytes(b"\n".join(lines))
    rows = read_conversations(path)
    assert len(rows.good) == 2
    assert [bad.line for bad in rows.bad] == [3, 4, 5, 6, 7, 8, 9, 10, 11]
    reasons = " ".join(str(bad) for bad in rows.bad)
    for words in ("not JSON", "must be an object", "boss", "no text", "not UTF-8", "meta is int", "nested"):
        assert words in reasons
    assert f"{path}:3:" in reasons


def test_files_that_cannot_be_opened_are_an_error(tmp_path):
    with pytest.raises(DataError, match="cannot open"):
        read_rows(tmp_path / "missing.jsonl")
    with pytest.raises(DataError, match="cannot open"):
        read_rows(tmp_path)


def test_rows_of_several_files_join(tmp_path):
    write_rows(tmp_path / "a.jsonl", [{"x": 1}])
    (tmp_path / "b.jsonl").write_text('{"x": 2}\nbad\n')
    rows: Rows = read_rows(tmp_path / "a.jsonl")
    rows.extend(read_rows(tmp_path / "b.jsonl"))
    assert rows.good == [{"x": 1}, {"x": 2}]
    assert len(rows.bad) == 1


def test_lone_surrogates_can_be_written(tmp_path):
    write_rows(tmp_path / "a.jsonl", [{"x": "a\ud800b"}])
    assert read_rows(tmp_path / "a.jsonl").good == [{"x": "a?b"}]
