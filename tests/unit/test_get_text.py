"""Texts from a known wheel, a file or a folder: documents, what is held out, what is left out and said."""

import hashlib
import json
import zipfile

import pytest

from school import draft
from schoolhouse.core.errors import DataError, ModelError, RecipeError
from schoolhouse.core.run import Run
from schoolhouse.get import corpora, text
from schoolhouse.get.corpora import KNOWN_TEXTS, Document, KnownText, chapters, passages
from schoolhouse.get.text import is_held_out

MODULE = '''
from book import Bible, Book, Version

bible = Bible(
    Version.PLAIN,
    """At the first it was dark.  And it was light. Then there were fishes. And birds. Rest.""",
    {1001001: 0, 1001002: 27, 1002001: 45, 1002002: 69, 1006001: 80},
    {1001001: 26, 1001002: 44},
    {Book.GENESIS: "Genesis"},
    False,
)
'''


def take(folder, **config):
    out = draft(folder / "out")
    settings = text.Config(**{"held_out": 0.3, **config})
    text.check(settings)
    text.run(settings, {}, Run.for_tests(folder / "run"), out)
    rows = {
        name: [json.loads(line) for line in (out.path / f"{name}.jsonl").read_text().splitlines()]
        for name in ("documents", "validation")
    }
    return out, rows["documents"], rows["validation"]


def test_chapters_come_out_of_the_literals_and_nothing_is_run(tmp_path):
    path = tmp_path / "plain.py"
    path.write_text(MODULE + "\nraise SystemExit('this must never run')\n")
    found = list(chapters(path, "wheel"))
    assert [d.text for d in found] == [
        "At the first it was dark. And it was light.",
        "Then there were fishes. And birds.",
        "Rest.",
    ]
    assert [d.key for d in found] == ["1001", "1002", "1006"]
    path.write_text("x = 1")
    with pytest.raises(DataError, match="the wheel is another one"):
        list(chapters(path, "wheel"))


def test_passages_are_whole_paragraphs_and_those_of_a_file_stay_together(tmp_path):
    long = "word " * 300
    (tmp_path / "b.txt").write_text(f"{long}\n\n{long}\n\n{long}\n\nThe end.\n")
    (tmp_path / "a.txt").write_text("One.\n\n\n\nTwo.")
    (tmp_path / "c.csv").write_text("no,text")
    found = list(passages(tmp_path, "speeches"))
    assert [(d.text, d.key) for d in found] == [
        ("One.\n\nTwo.", "a.txt"),
        (f"{long.strip()}\n\n{long.strip()}", "b.txt"),
        (f"{long.strip()}\n\nThe end.", "b.txt"),
    ]
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="the wheel is another one"):
        list(passages(tmp_path / "empty", "speeches"))


def test_a_known_text_is_read_from_its_wheel(tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    cache.mkdir()
    monkeypatch.setenv("SCHOOLHOUSE_CACHE", str(cache))
    wheel = cache / "tiny-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("tiny/plain.py", MODULE)
    known = KnownText(
        package="tiny", version="1.0", wheel=wheel.name, wheel_bytes=1, member="tiny/plain.py", read=chapters,
        licence="MIT", wheel_sha256=hashlib.sha256(wheel.read_bytes()).hexdigest(), title="Tiny",
    )  # fmt: skip
    monkeypatch.setitem(KNOWN_TEXTS, "tiny", (known,))
    out, documents, held = take(tmp_path, source="tiny", held_out=0.5)
    assert len(documents) + len(held) == 3
    assert out.meta["licence"] == "MIT"
    assert known.wheel_sha256 in (out.path / "README.md").read_text()
    wheel.write_bytes(b"PK another file")
    with pytest.raises(ModelError, match="its SHA-256 is"):
        take(tmp_path / "again", source="tiny")


def test_two_translations_of_a_chapter_stand_on_one_side(tmp_path):
    documents = [Document(f"{n} by {who}", who, str(n)) for who in ("one", "other") for n in range(200)]
    text._split(documents, 0.1, tmp_path)
    held = [json.loads(line)["text"].split(" by ") for line in (tmp_path / "validation.jsonl").read_text().splitlines()]
    by = {who: {number for number, said in held if said == who} for who in ("one", "other")}
    assert by["one"] == by["other"] != set()


def test_a_text_that_is_not_free_everywhere_asks_for_consent():
    with pytest.raises(ModelError, match=r"public domain in the United States.*accept_licence = true"):
        text.check(text.Config(source="bible-in-plain-english"))
    text.check(text.Config(source="bible-in-plain-english", accept_licence=True))
    text.check(text.Config(source="world-english-bible"))


def test_the_share_that_is_held_out_is_the_one_asked_for():
    share = sum(is_held_out(str(n), 0.02) for n in range(20_000)) / 20_000
    assert share == pytest.approx(0.02, abs=0.004)
    assert all(is_held_out(str(n), 0.1) for n in range(500) if is_held_out(str(n), 0.02))


def test_a_folder_of_texts_and_rows_repeated_ones_once(tmp_path):
    folder = tmp_path / "texts"
    (folder / "deep").mkdir(parents=True)
    rows = [{"text": f"Row {n}."} for n in range(20)] + [{"text": "Row 3."}]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "deep" / "one.txt").write_text("Grüße.\n\nFrom here.")
    (folder / "left.csv").write_text("a,b")
    out, documents, held = take(tmp_path, source=str(folder))
    assert len(documents) + len(held) == 21
    assert out.meta["repeated"] == 1
    assert {"text": "Grüße.\n\nFrom here.", "source": "deep/one.txt"} in documents + held
    assert out.meta["licence"] == "not stated"
    assert "1 documents were left out since they repeat others" in (out.path / "README.md").read_text()
    assert {row["text"] for row in documents}.isdisjoint(row["text"] for row in held)


def test_the_id_follows_the_bytes(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("one")
    first = text.fingerprint(text.Config(source=str(path)))
    path.write_text("two")
    assert text.fingerprint(text.Config(source=str(path))) != first


@pytest.mark.parametrize(
    ("content", "config", "error", "words"),
    [
        ("one", {}, DataError, "1 documents to learn from and 0 held out"),
        (b"\xff\xfe", {}, DataError, "not UTF-8"),
        ("one", {"licence": "CC-BY-NC-4.0"}, ModelError, "no commercial use"),
        ("one", {"licence": "very free"}, DataError, "give an SPDX id"),
    ],
)
def test_what_can_not_be_used_is_said(tmp_path, content, config, error, words):
    path = tmp_path / "a.txt"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(error, match=words):
        take(tmp_path, source=str(path), held_out=1e-9, **config)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"source": "bible-in-plain-englsh"}, "did you mean 'bible-in-plain-english'"),
        ({"source": "world-english-bible", "licence": "MIT"}, "take licence out"),
        ({"source": "Makefile"}, r"are read from \.txt"),
    ],
)
def test_a_wrong_source_is_refused_at_once(config, words):
    with pytest.raises(RecipeError, match=words):
        text.check(text.Config(**config))


def test_a_folder_without_texts_is_an_error(tmp_path):
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match=r"there is no \.txt"):
        take(tmp_path, source=str(tmp_path / "none"))


def test_known_texts_name_wheels_that_can_be_fetched():
    for known in (known for group in corpora.KNOWN_TEXTS.values() for known in group):
        assert known.wheel.startswith(known.package.replace("-", "_") + "-" + known.version)
        assert len(known.wheel_sha256) == 64
