"""Files become documents: every format, what is wrong with each, whose they are, and in what order they come."""

import base64
import contextlib
import datetime
import itertools
import json
import mailbox
import os
import queue
import signal
import threading
from decimal import Decimal
from email.message import EmailMessage

import docx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from school import artifact, draft
from schoolhouse.core.errors import BudgetError, DataError, RecipeError, Stopped
from schoolhouse.core.run import Run
from schoolhouse.pipeline import run_recipe
from schoolhouse.prepare import read
from schoolhouse.prepare.reading import ahead as read_ahead
from schoolhouse.prepare.reading import formats
from schoolhouse.prepare.reading import tables as formats_rows
from schoolhouse.prepare.reading import texts as formats_text
from schoolhouse.prepare.reading.card import Tally
from schoolhouse.prepare.reading.items import Piece
from schoolhouse.prepare.reading.texts import encoding_of, html_text
from schoolhouse.text.sourced import document_id, read_documents


def write(folder, **files):
    """Files by name, with two underlines for a dot; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        path = folder / name.replace("__", ".")
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def take(root, **config):
    """Documents of a folder, what was set aside as (file, place, reason), and the tally."""
    aside = []
    tally = Tally(lambda row: aside.append((row["file"], row["place"], row["reason"])))
    found = list(read.documents(read.Config(source=str(root), **config), root, tally))
    return found, aside, tally


def stage(folder, inputs=None, run=None, **config):
    out = draft(folder / "out")
    settings = read.Config(**config)
    read.check(settings)
    read.run(settings, inputs or {}, run or Run.for_tests(folder / "run"), out)
    aside = [json.loads(line) for line in (out.path / "set_aside.jsonl").read_text().splitlines()]
    return out, list(read_documents(out.path)), aside


def lines(*rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def pdf(*pages):
    """A PDF file of pages with a line of text each; an empty line draws nothing."""
    kids = " ".join(f"{4 + 2 * i} 0 R" for i in range(len(pages)))
    objects = [
        "<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Kids [{kids}] /Count {len(pages)} >>",
        "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    for i, words in enumerate(pages):
        drawn = f"BT /F1 12 Tf 72 720 Td ({words}) Tj ET" if words else ""
        objects.append(
            "<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Resources << /Font << /F1 3 0 R >> >> "
            f"/Contents {5 + 2 * i} 0 R >>"
        )
        objects.append(f"<< /Length {len(drawn)} >>\nstream\n{drawn}\nendstream")
    body, places = "%PDF-1.4\n", []
    for number, content in enumerate(objects, 1):
        places.append(len(body))
        body += f"{number} 0 obj\n{content}\nendobj\n"
    table = "".join(f"{place:010} 00000 n \n" for place in places)
    head = f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n"
    end = f"trailer\n<< /Size {len(objects) + 1} /Root 1 0 R >>\nstartxref\n{len(body)}\n%%EOF\n"
    return (body + head + table + end).encode("latin-1")


# JSON lines and JSON


def test_a_line_of_json_is_a_document_with_its_place_and_the_other_columns_as_facts(tmp_path):
    rows = [{"id": 7, "note": "Cough.", "ward": "B", "tags": ["x"], "empty": None}, {"note": "  "}]
    root = write(tmp_path / "in", notes__jsonl=lines(*rows) + "\n{broken\n[1]\n" + lines({"other": 1, "is": True}))
    found, aside, tally = take(root)
    assert [(d.text, d.source.file, d.source.place, d.kind) for d in found] == [
        ("Cough.", "notes.jsonl", "line 1", "text"),
        ("other: 1\nis: true", "notes.jsonl", "line 6", "record"),
    ]
    assert found[0].facts == {"id": 7, "ward": "B"}
    assert found[1].facts == {}
    assert found[0].id == document_id(found[0].source)
    assert found[0].person is None
    assert aside == [
        ("notes.jsonl", "line 2", "no text"),
        ("notes.jsonl", "line 4", "not JSON"),
        ("notes.jsonl", "line 5", "a row must be an object"),
    ]
    assert tally.notes == {
        "files with their text in the column `note`": 1,
        "files without a column of text: each row became lines of `name: value`": 1,
    }


SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
WORDS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip)
KEYS = st.text(st.characters(exclude_categories=["Cs"])).filter(lambda key: key.lower() not in formats_rows.TEXTS)
ROWS = st.lists(st.tuples(WORDS, st.dictionaries(KEYS.filter(lambda k: k != "resourceType"), SCALARS)), max_size=8)


@given(ROWS, st.booleans())
def test_any_list_of_rows_comes_back(tmp_path_factory, rows, as_lines):
    rows = [facts | {"text": text} for text, facts in rows]
    folder = tmp_path_factory.mktemp("rows")
    name, text = ("a.jsonl", lines(*rows)) if as_lines else ("a.json", json.dumps(rows))
    (folder / name).write_text(text, encoding="utf-8")
    found, aside, _ = take(folder)

    def is_whole(row):  # JSON can hold half a character, a file of texts cannot
        return all(formats_text.is_unicode(v) for v in row.values() if isinstance(v, str))

    good = [row for row in rows if is_whole(row)]
    assert [d.text for d in found] == [row["text"].strip() for row in good]
    for document, row in zip(found, good, strict=True):
        assert document.facts == {k: v for k, v in row.items() if k != "text" and v is not None and v != ""}
    assert len(aside) == (len(rows) - len(good) or (not rows))


def test_half_a_character_is_set_aside_wherever_it_stands(tmp_path):
    rows = r'{"text": "\ud83d"}' + "\n" + r'{"text": "a", "b": "\udc00"}' + "\n" + '{"text": "whole"}\n'
    found, aside, _ = take(write(tmp_path / "in", a__jsonl=rows))
    assert [d.text for d in found] == ["whole"]
    assert {reason for _, _, reason in aside} == {"characters that are not valid in the file's encoding"}


def test_a_json_file_is_a_list_a_record_or_set_aside_with_what_to_do(tmp_path):
    root = write(
        tmp_path / "in",
        a__json=json.dumps([{"text": "one"}, "two", {"text": "three"}]),
        b__json=json.dumps({"text": "alone", "age": 4}),
        c__json=json.dumps({"data": [{"text": "deep"}]}),
        d__json='{"text": "open',
        e__json="[" * 200_000,
        f__json="[]",
    )
    found, aside, _ = take(root)
    assert [(d.text, d.source.place) for d in found] == [("one", "item 1"), ("three", "item 3"), ("alone", "item 1")]
    assert aside == [
        ("a.json", "item 2", "a row must be an object"),
        ("c.json", "whole file", "its records lie below its top: write them as a list or as JSON lines"),
        ("d.json", "whole file", "not JSON (line 1)"),
        ("e.json", "whole file", "nested too deeply"),
        ("f.json", "whole file", "nothing in it to read"),
    ]


def test_what_does_not_fit_into_memory_is_set_aside_with_what_to_do(tmp_path, monkeypatch):
    root = write(tmp_path / "in", a__json='[{"text": "long enough"}]', b__jsonl='{"text": "a stream"}', c__txt="whole")
    monkeypatch.setattr("schoolhouse.prepare.reading.items.available_memory_bytes", lambda: 50)
    found, aside, _ = take(root)
    assert [d.text for d in found] == ["a stream", "whole"]
    assert aside == [("a.json", "whole file", formats.TOO_LARGE)]


def test_a_line_without_end_is_set_aside_and_the_next_one_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(formats_text, "LONGEST", 100)
    rows = lines({"text": "a"}, {"text": "b" * 150}, {"text": "c"}, {"text": "d" * 500})
    found, aside, _ = take(write(tmp_path / "in", a__jsonl=rows))
    assert [(d.text, d.source.place) for d in found] == [("a", "line 1"), ("c", "line 3")]
    assert [place for _, place, _ in aside] == ["line 2", "line 4"]


# Conversations


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": " Good day "}]},
        {"messages": [{"speaker": "user", "text": "Hello"}, {"speaker": "assistant", "text": "Good day"}]},
        {"conversations": [{"from": "user", "value": "Hello"}, {"from": "assistant", "value": "Good day"}]},
        {
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "Hello"}, {"type": "image"}]},
                {"role": "assistant", "content": "Good day"},
            ]
        },
    ],
)
def test_messages_become_one_dialogue(tmp_path, row):
    root = write(tmp_path / "in", a__jsonl=lines(row | {"topic": "talk"}), b__json=json.dumps(row | {"topic": "talk"}))
    found, aside, _ = take(root)
    assert not aside
    assert len(found) == 2
    for document in found:
        assert document.text == "user: Hello\nassistant: Good day"
        assert (document.kind, document.facts) == ("dialogue", {"topic": "talk"})


def test_a_message_without_speaker_or_words_sets_its_dialogue_aside(tmp_path):
    good = {"role": "a", "content": "b"}
    rows = [{"messages": [good, {"role": "a"}]}, {"messages": [{"content": "b"}]}, {"messages": [good]}]
    found, aside, _ = take(write(tmp_path / "in", a__jsonl=lines(*rows)))
    assert [d.source.place for d in found] == ["line 3"]
    assert [(place, reason) for _, place, reason in aside] == [
        ("line 1", "message 2 has no speaker or no words"),
        ("line 2", "message 1 has no speaker or no words"),
    ]


# CSV


@pytest.mark.parametrize("mark", [",", ";", "\t", "|"])
def test_the_delimiter_of_a_table_is_found(tmp_path, mark):
    rows = [["id", "text", "at"], ["1", '"Pain, left; worse | better\n""very"""', "8:00"], ["2", "None.", "9:00"]]
    text = "\r\n".join(mark.join(row) for row in rows)
    name = {"\t": "a__tsv"}.get(mark, "a__csv")
    found, aside, _ = take(write(tmp_path / "in", **{name: text}))
    assert not aside
    assert [(d.text, d.source.place) for d in found] == [
        ('Pain, left; worse | better\n"very"', "row 2"),
        ("None.", "row 3"),
    ]
    assert found[0].facts == {"id": "1", "at": "8:00"}


def test_bad_rows_of_a_table_are_set_aside_each_with_its_place(tmp_path):
    rows = ["text,id", "one,1", "two", "", "three,3,4", '"four"x,4', "five,5", ",6", '"never closed,7', "eight,8"]
    found, aside, _ = take(write(tmp_path / "in", a__csv="\n".join(rows)))
    assert [(d.text, d.source.place, d.facts) for d in found] == [
        ("one", "row 2", {"id": "1"}),
        ("five", "row 7", {"id": "5"}),
    ]
    assert [(place, reason) for _, place, reason in aside] == [
        ("row 3", "more or fewer cells than the first row"),
        ("row 5", "more or fewer cells than the first row"),
        ("row 6", "quotes that do not fit"),
        ("row 8", "no text"),
        ("row 9", "a quote that is never closed: all behind it is lost"),
    ]


def test_a_table_may_say_its_delimiter_and_lack_names_of_columns(tmp_path):
    root = write(tmp_path / "in", a__csv="\n\nsep=;\n;text;x;x\n1;a,b,c,d,e;2;3\n", b__csv="text\n", c__csv="\n\n")
    found, aside, _ = take(root)
    assert [(d.text, d.facts, d.source.place) for d in found] == [
        ("a,b,c,d,e", {"column 1": "1", "x": "2", "x (4)": "3"}, "row 5")
    ]
    assert [(file, reason) for file, _, reason in aside] == [
        ("b.csv", "nothing in it to read"),
        ("c.csv", "nothing in it to read"),
    ]


def test_a_long_note_fits_into_a_cell(tmp_path):
    text = "word " * 60_000
    found, _, _ = take(write(tmp_path / "in", a__csv=f'text,id\n"{text}",1\n'))
    assert found[0].text == text.strip()


# Encodings


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("name", ["a__csv", "a__jsonl", "a__json", "a__txt"])
def test_unicode_is_read_in_all_of_its_forms(tmp_path, encoding, name):
    said = "Ärztlich: größer € 日本 🙂"
    text = {
        "a__csv": f"id,text\n1,{said}\n",
        "a__jsonl": json.dumps({"text": said}, ensure_ascii=False) + "\n",
        "a__json": json.dumps([{"text": said}], ensure_ascii=False),
        "a__txt": said + "\n",
    }[name]
    found, aside, tally = take(write(tmp_path / "in", **{name: text.encode(encoding)}))
    assert [d.text for d in found] == [said]
    assert not aside
    assert not any("guess" in words for words in tally.notes)


def test_an_encoding_that_nothing_says_is_guessed_and_told_or_stated(tmp_path):
    said = "El señor tiene dolor en el corazón. Años después."
    root = write(tmp_path / "in", a__txt=said.encode("cp1252"), b__csv=f"text,x\n{said},1".encode("cp1252"))
    found, _, tally = take(root)
    assert [d.text for d in found] == [said, said]
    assert sum(count for words, count in tally.notes.items() if "cp1252, by a guess" in words) == 2
    polish = "Pacjent skarży się na ból głowy, gorączkę i osłabienie."
    root = write(tmp_path / "pl", a__txt=polish.encode("cp1250"))
    assert take(root, encoding="cp1250")[0][0].text == polish
    assert not any("guess" in words for words in take(root, encoding="cp1250")[2].notes)
    assert take(root, encoding="cp1252")[0][0].text != polish  # what is stated is taken at its word


def test_a_few_damaged_bytes_do_not_make_utf_8_something_else(tmp_path):
    good = "Größe gemessen: für Müller"
    table = f"text,id\n{good},1\n".encode() + b"da\xffmaged,2\n" + f"{good},3\n".encode()
    rows = (
        lines({"text": "a"}).encode() + b'{"text": "\xfc"}\n' + json.dumps({"text": good}, ensure_ascii=False).encode()
    )
    root = write(tmp_path / "in", a__csv=table, b__jsonl=rows, c__txt=f"{good} {good}".encode() + b"\xff")
    found, aside, _ = take(root)
    assert [(d.text, d.source.place) for d in found] == [
        (good, "row 2"), (good, "row 4"), ("a", "line 1"), (good, "line 3")
    ]  # fmt: skip
    assert [(file, place) for file, place, _ in aside] == [
        ("a.csv", "row 3"), ("b.jsonl", "line 2"), ("c.txt", "whole file")
    ]  # fmt: skip


def test_a_damage_behind_the_first_block_is_found(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"a" * (3 << 20) + "für größer".encode() + b"\xe9")
    assert encoding_of(path, "cp1250").name == "utf-8"
    path.write_bytes(b"a" * (3 << 20) + "für größer".encode("cp1252"))
    assert encoding_of(path, "cp1250").name == "cp1250"
    assert encoding_of(path, None).is_guess
    path.write_bytes(b"a" * ((1 << 20) - 1) + "ü".encode())  # a character across two blocks
    assert encoding_of(path, None).name == "utf-8"


# Parquet, text, Word, PDF


def test_rows_of_parquet_come_in_order_with_plain_facts(tmp_path):
    root = tmp_path / "in"
    root.mkdir()
    table = pa.table(
        {
            "text": [f"note {n}" for n in range(700)],
            "day": [datetime.date(2024, 1, 2)] * 700,
            "at": pa.array([datetime.datetime(2024, 1, 2, 3, 4)] * 700, pa.timestamp("us")),
            "dose": [Decimal("12.50")] * 700,
            "share": [float("nan")] * 699 + [0.5],
            "raw": [b"x"] * 700,
            "codes": [["a", "b"]] * 700,
        }
    )
    pq.write_table(table, root / "a.parquet", row_group_size=300)
    found, aside, _ = take(root)
    assert not aside
    assert [d.source.place for d in found] == [f"row {n}" for n in range(1, 701)]
    assert found[0].facts == {"day": "2024-01-02", "at": "2024-01-02T03:04:00", "dose": 12.5}
    assert found[-1].facts["share"] == 0.5


def test_a_damaged_group_of_parquet_is_set_aside_and_the_next_one_read(tmp_path):
    root = tmp_path / "in"
    root.mkdir()
    path = root / "a.parquet"
    rows = {"text": [f"note {n} {os.urandom(8).hex()}" for n in range(300)]}
    pq.write_table(pa.table(rows), path, row_group_size=100, use_dictionary=False)
    column = pq.ParquetFile(path).metadata.row_group(1).column(0)
    data = bytearray(path.read_bytes())
    data[column.data_page_offset : column.data_page_offset + column.total_compressed_size] = b"\xff" * (
        column.total_compressed_size
    )
    path.write_bytes(data)
    (root / "b.parquet").write_bytes(b"PAR1 no table")
    found, aside, _ = take(root)
    assert [d.source.place for d in found] == [f"row {n}" for n in (*range(1, 101), *range(201, 301))]
    assert aside == [
        ("a.parquet", "rows 101 to 200", "a damaged row group"),
        ("b.parquet", "whole file", "no Parquet file"),
    ]


def test_text_and_markdown_are_a_document_each_and_empty_ones_are_told(tmp_path):
    root = write(tmp_path / "in", a__TXT="One.\r\n\r\nTwo.\r\n", b__md="# Title\n\n- item\n", c__txt="", d__txt=" \n\n")
    found, aside, _ = take(root)
    assert [(d.text, d.source.place) for d in found] == [
        ("One.\n\nTwo.", "whole file"),
        ("# Title\n\n- item", "whole file"),
    ]
    assert aside == [("c.txt", "whole file", "an empty file"), ("d.txt", "whole file", "no text")]


def test_a_word_file_gives_paragraphs_and_tables_in_their_order(tmp_path):
    root = write(tmp_path / "in", b__docx=b"no archive", c__docx=b"")
    word = docx.Document()
    word.add_heading("Letter", 1)
    word.add_paragraph("Before.")
    table = word.add_table(2, 3)
    for at, words in enumerate(["drug", "dose", "when", "both cells", "", "noon"]):
        table.cell(at // 3, at % 3).text = words
    table.cell(1, 0).merge(table.cell(1, 1))
    table.cell(0, 2).add_table(1, 1).cell(0, 0).text = "inner"
    word.add_paragraph("After.")
    word.save(str(root / "a.docx"))
    found, aside, _ = take(root)
    assert [d.text for d in found] == ["Letter\nBefore.\ndrug | dose | when inner\nboth cells | noon\nAfter."]
    assert [(file, reason) for file, _, reason in aside] == [
        ("b.docx", "no Word file: it cannot be unpacked"),
        ("c.docx", "an empty file"),
    ]


def test_a_word_file_that_unpacks_to_more_than_memory_is_set_aside(tmp_path, monkeypatch):
    root = tmp_path / "in"
    root.mkdir()
    docx.Document().save(str(root / "a.docx"))
    monkeypatch.setattr("schoolhouse.prepare.reading.pages.available_memory_bytes", lambda: 1000)
    assert take(root)[1] == [("a.docx", "whole file", formats.TOO_LARGE)]


def test_a_page_of_a_pdf_is_a_document_and_one_without_text_is_set_aside(tmp_path):
    root = write(
        tmp_path / "in", a__pdf=pdf("First page.", "", "Third page."), b__pdf=b"%PDF-1.4 nothing", c__pdf=b"no"
    )
    found, aside, _ = take(root)
    assert [(d.text, d.source.place, d.facts) for d in found] == [
        ("First page.", "page 1", {"page": 1, "pages": 3}),
        ("Third page.", "page 3", {"page": 3, "pages": 3}),
    ]
    assert aside[0] == ("a.pdf", "page 2", "no text: a scanned page?")
    assert [(file, reason.split(" (")[0]) for file, _, reason in aside[1:]] == [
        ("b.pdf", "no PDF file that can be read"),
        ("c.pdf", "no PDF file that can be read"),
    ]


def test_a_pdf_with_a_password_is_set_aside(tmp_path):
    from pypdf import PdfReader, PdfWriter

    root = write(tmp_path / "in", a__pdf=pdf("Secret."), b__txt="open")
    writer = PdfWriter(PdfReader(root / "a.pdf"))
    writer.encrypt("word", algorithm="RC4-128")
    writer.write(root / "a.pdf")
    found, aside, _ = take(root)
    assert [d.text for d in found] == ["open"]
    assert aside == [("a.pdf", "whole file", "a PDF file that needs a password")]


# E-mails


def message(subject="Visit", plain=None, html=None, attachments=()):
    mail = EmailMessage()
    mail["From"], mail["To"], mail["Subject"] = "ward@clinic.example", "lab@clinic.example", subject
    mail["Date"] = "Tue, 02 Jan 2024 08:00:00 +0100"
    if plain is not None:
        mail.set_content(plain)
    if html is not None:
        mail.add_alternative(html, subtype="html") if plain is not None else mail.set_content(html, subtype="html")
    for name in attachments:
        mail.add_attachment(b"data", maintype="application", subtype="pdf", filename=name)
    return mail


def test_of_an_e_mail_the_plain_part_is_read_and_html_only_where_there_is_no_other(tmp_path):
    page = "<html><head><title>x</title><style>p {}</style></head><body><p>Only&nbsp;<b>HTML</b></p><ul><li>a</ul>"
    root = write(
        tmp_path / "in",
        a__eml=bytes(message(plain="Plain größer.\n", html=page, attachments=["scan.pdf", "Maria.Mustermann"])),
        b__eml=bytes(message(html=page)),
        c__eml=bytes(message(plain="")),
        d__eml=b"",
    )
    found, aside, tally = take(root)
    assert [d.text for d in found] == ["Subject: Visit\n\nPlain größer.", "Subject: Visit\n\nOnly HTML\n- a"]
    assert found[0].kind == "e-mail"
    assert found[0].facts == {
        "date": "Tue, 02 Jan 2024 08:00:00 +0100", "from": "ward@clinic.example", "to": "lab@clinic.example"
    }  # fmt: skip
    assert [(file, reason) for file, _, reason in aside] == [("c.eml", "no text"), ("d.eml", "an empty file")]
    assert tally.notes == {
        "attachments that were not read, .pdf": 1,
        "attachments that were not read, another suffix": 1,
    }


@pytest.mark.parametrize("charset", ["utf-8", "no-such-charset", "us-ascii", "iso-8859-1"])
def test_an_e_mail_in_another_charset_than_it_claims_is_read(tmp_path, charset):
    body = "Größer für “alle”: 5 €."
    head = f'Subject: x\nContent-Type: text/plain; charset="{charset}"\nContent-Transfer-Encoding: 8bit\n\n'
    root = write(tmp_path / "in", a__eml=head.encode() + body.encode("cp1252"))
    assert [d.text for d in take(root)[0]] == [f"Subject: x\n\n{body}"]


def test_messages_of_a_mailbox_come_with_their_number(tmp_path):
    root = tmp_path / "in"
    root.mkdir()
    box = mailbox.mbox(root / "all.mbox")
    for number in range(3):
        box.add(message(f"No. {number}", plain=f"Body {number}" if number != 1 else " "))
    box.close()
    (root / "empty.mbox").write_text("no message here")
    before = (root / "all.mbox").read_bytes()
    found, aside, _ = take(root)
    assert [(d.text, d.source.place) for d in found] == [
        ("Subject: No. 0\n\nBody 0", "message 1"),
        ("Subject: No. 2\n\nBody 2", "message 3"),
    ]
    assert aside == [("all.mbox", "message 2", "no text"), ("empty.mbox", "whole file", "nothing in it to read")]
    assert (root / "all.mbox").read_bytes() == before


def test_html_becomes_lines_of_words():
    page = "<h1>A  B</h1><p>c<br>d &amp; e</p><script>x()</script><table><tr><td>1<td>2<tr><td>3</table>f"
    assert html_text(page) == "A B\nc\nd & e\n1 | 2\n3\nf"


@given(st.text(alphabet="<>/abp &;!-\"'="))
def test_any_html_gives_some_text(page):
    assert isinstance(html_text(page), str)


# FHIR


def coding(code, display, system="http://loinc.org"):
    return {"coding": [{"system": system, "code": code, "display": display}]}


def bundle():
    ref = {"reference": "urn:uuid:p"}
    resources = [
        ("urn:uuid:p", {"resourceType": "Patient", "id": "12", "gender": "female", "birthDate": "1950-04-01",
                        "name": [{"family": "Muster", "given": ["Maria", "Anna"]}]}),
        ("urn:uuid:c", {"resourceType": "Condition", "id": "c1", "subject": ref, "onsetDateTime": "2019-03-01",
                        "clinicalStatus": coding("active", "Active"), "code": {
                            "text": "Diabetes", "coding": [{"code": "44054006", "system": "http://snomed.info/sct"},
                                                           {"code": "E11.9", "display": "Type 2"}]}}),
        ("urn:uuid:o", {"resourceType": "Observation", "id": "o1", "subject": {"reference": "Patient/12"},
                        "status": "final", "code": coding("4548-4", "HbA1c"), "effectiveDateTime": "2020-01-02",
                        "valueQuantity": {"value": 7.2, "unit": "%"}}),
        ("urn:uuid:b", {"resourceType": "Observation", "subject": {"reference": "http://x/fhir/Patient/12/_history/2"},
                        "code": coding("85354-9", "Blood pressure"), "component": [
                            {"code": coding("8480-6", "Systolic"), "valueQuantity": {"value": 120, "unit": "mmHg"}},
                            {"code": coding("8462-4", "Diastolic"), "valueQuantity": {"value": 80, "unit": "mmHg"}}]}),
        ("urn:uuid:d", {"resourceType": "Medication", "id": "m", "code": coding("860975", "Metformin")}),
        ("urn:uuid:m", {"resourceType": "MedicationRequest", "id": "m1", "subject": ref, "authoredOn": "2020-02-01",
                        "medicationReference": {"reference": "urn:uuid:d"},
                        "dosageInstruction": [{"text": "twice a day"}]}),
        ("urn:uuid:e", {"resourceType": "Encounter", "id": "e1", "subject": ref, "class": {"code": "AMB"},
                        "type": [coding("185349003", "Check-up")],
                        "period": {"start": "2020-01-02", "end": "2020-01-03"},
                        "reasonCode": [coding("25064002", "Headache")]}),
        ("urn:uuid:x", {"resourceType": "Claim", "id": "x"}),
    ]  # fmt: skip
    return {"resourceType": "Bundle", "entry": [{"fullUrl": url, "resource": r} for url, r in resources]}


def test_a_bundle_becomes_documents_of_its_patient(tmp_path):
    found, aside, tally = take(write(tmp_path / "in", a__json=json.dumps(bundle())))
    assert not aside
    assert {d.person for d in found} == {"12"}
    by_kind = {d.kind: d for d in found}
    assert [d.source.place for d in found] == [
        "resource Patient/12", "resource Condition/c1", "resource Observation/o1", "resource entry 4",
        "resource MedicationRequest/m1", "resource Encounter/e1",
    ]  # fmt: skip
    assert by_kind["patient"].facts == {"gender": "female", "birth_date": "1950-04-01", "name": "Maria Anna Muster"}
    assert by_kind["condition"].text == "Diagnosis: Diabetes (44054006)\nDate: 2019-03-01\nStatus: active"
    assert by_kind["condition"].facts == {
        "code": "44054006", "system": "http://snomed.info/sct", "display": "Diabetes", "code_2": "E11.9",
        "display_2": "Type 2", "date": "2019-03-01", "status": "active",
    }  # fmt: skip
    assert found[2].text == "Observation: HbA1c (4548-4), 7.2 %\nDate: 2020-01-02\nStatus: final"
    assert found[2].facts["value"] == 7.2
    assert found[2].facts["unit"] == "%"
    assert found[3].text == (
        "Observation: Blood pressure (85354-9)\nSystolic (8480-6): 120 mmHg\nDiastolic (8462-4): 80 mmHg"
    )
    assert found[3].facts["8480-6.value"] == 120
    assert by_kind["medication"].text == "Medication: Metformin (860975)\ntwice a day\nDate: 2020-02-01"
    assert by_kind["encounter"].facts["class"] == "AMB"
    assert by_kind["encounter"].text == (
        "Encounter: Check-up (185349003)\nReason: Headache (25064002)\nDate: 2020-01-02 to 2020-01-03"
    )
    assert tally.notes == {"FHIR resources that make no document, Claim": 1}


def attached(text, type="text/plain", **more):
    data = base64.b64encode(text if isinstance(text, bytes) else text.encode()).decode()
    return {"attachment": {"contentType": type, "data": data} | more}


def test_narratives_of_documents_reports_and_compositions(tmp_path):
    ref = {"reference": "Patient/1"}
    div = {"status": "generated", "div": "<div xmlns='x'><p>Told <b>so</b>.</p></div>"}
    rows = [
        {"resourceType": "DocumentReference", "id": "d1", "subject": ref, "date": "2020-01-01", "language": "de",
         "type": coding("11488-4", "Consult note"),
         "content": [attached("Größe."), attached("<p>HTML</p>", "text/html")]},
        {"resourceType": "DocumentReference", "id": "d2", "subject": ref,
         "content": [attached(b"%PDF", "application/pdf"), {"attachment": {"url": "Binary/1"}}]},
        {"resourceType": "DocumentReference", "id": "d3", "subject": ref,
         "content": [attached("Größe.".encode("latin-1"), "text/plain; charset=ISO-8859-1")]},
        {"resourceType": "Composition", "id": "c", "subject": ref, "title": "Letter", "text": div, "section": [
            {"title": "History", "text": div}, {"title": "Empty"}, {"section": [{"title": "Inner", "text": div}]}]},
        {"resourceType": "DiagnosticReport", "id": "r", "subject": ref, "conclusion": "Normal.",
         "code": {"text": "CT"}},
        {"resourceType": "DiagnosticReport", "id": "r2", "subject": ref, "text": div},
        {"resourceType": "DiagnosticReport", "id": "r3", "subject": ref},
        {"resourceType": "Observation", "id": "gone", "status": "entered-in-error", "subject": ref},
    ]  # fmt: skip
    found, aside, _ = take(write(tmp_path / "in", a__ndjson=lines(*rows)))
    assert [(d.source.place, d.text) for d in found] == [
        ("line 1", "Größe."), ("line 1, attachment 2", "HTML"), ("line 3", "Größe."),
        ("line 4", "Letter\nHistory\nTold so.\nInner\nTold so."), ("line 5", "Normal."), ("line 6", "Told so."),
    ]  # fmt: skip
    assert [d.kind for d in found] == ["note"] * 4 + ["report"] * 2
    assert found[0].language == "de"
    assert found[0].facts["date"] == "2020-01-01"
    assert [(place, reason) for _, place, reason in aside] == [
        ("line 2", "an attachment of type application/pdf"),
        ("line 2, attachment 2", "an attachment that lies elsewhere"),
        ("line 7", "no text"),
        ("line 8", "entered in error, says the resource itself"),
    ]
    assert {d.person for d in found} == {"1"}


def test_a_subject_that_is_no_patient_or_not_there_gives_no_person(tmp_path):
    code = {"code": {"text": "x"}, "resourceType": "Condition"}
    rows = [
        code | {"id": "a", "subject": {"reference": "Group/7"}},
        code | {"id": "b", "subject": {"reference": "urn:uuid:nowhere"}},
        code | {"id": "c"},
        code | {"id": "d", "subject": "Patient/1"},
        code | {"id": "e", "subject": {"reference": "#p"}, "contained": [{"resourceType": "Patient", "id": "p"}]},
        {"resourceType": "Patient", "gender": "male"},
        code | {"id": "a"},
        3,
        {
            "resourceType": "Observation",
            "id": "f",
            "code": {"coding": {"code": 1}},
            "valueQuantity": [1],
            "component": 2,
        },
        {"resourceType": "Encounter", "id": "g", "class": [1]},
    ]
    found, aside, tally = take(write(tmp_path / "in", a__json=json.dumps(rows)))
    assert [d.person for d in found[:6]] == [None, None, None, None, "p", None]
    assert tally.notes["FHIR resources whose patient is not known"] >= 6
    assert len({d.id for d in found}) == len(found)
    assert "resource Condition/a, entry 7" in {d.source.place for d in found}
    assert ("a.json", "entry 8", "no FHIR resource") in aside
    assert ("a.json", "resource Encounter/g", "a FHIR resource with fields of another shape than R4's") in aside


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(
        ["id", "code", "coding", "text", "div", "subject", "reference", "name", "given", "section", "content", "type",
         "attachment", "data", "component", "valueQuantity", "period", "note", "status", "entry", "resource"]
    ), inner, max_size=5),
    max_leaves=20,
)  # fmt: skip


@given(
    st.sampled_from(["Patient", "Condition", "Observation", "Encounter", "Composition", "DocumentReference", "Bundle"]),
    JSON,
)
def test_no_resource_however_broken_stops_the_rest(tmp_path_factory, type, fields):
    broken = (fields if isinstance(fields, dict) else {"code": fields}) | {"resourceType": type}
    good = {"resourceType": "Condition", "id": "good-one", "code": {"text": "Cough"}}
    folder = tmp_path_factory.mktemp("fhir")
    (folder / "a.json").write_text(
        json.dumps({"resourceType": "Bundle", "entry": [{"resource": broken}, {"resource": good}]})
    )
    assert "Diagnosis: Cough" in [d.text for d in take(folder)[0]]


# What the recipe says of tables and persons


def test_a_table_says_which_columns_are_text_person_and_facts(tmp_path):
    root = write(
        tmp_path / "in",
        a__csv="pid,complaint,findings,text,extra\n1,Cough,,no,x\n,Pain,None,no,\n2,,,no,z\n",
        b__csv="text,n\nb,1",
    )
    table = {
        "text": "Says {complaint}.\nFound {{}} {findings}", "person": "pid", "kind": "note", "language": "en",
        "facts": ["extra"],
    }  # fmt: skip
    found, aside, tally = take(root, tables={"a.*": table})
    assert [(d.text, d.person, d.kind, d.language, d.facts) for d in found] == [
        ("Says Cough.\nFound {}", "1", "note", "en", {"extra": "x"}),
        ("Says Pain.\nFound {} None", None, "note", "en", {}),
        ("b", None, "text", None, {"n": "1"}),
    ]
    assert [(place, reason) for _, place, reason in aside] == [("row 4", "no text")]
    assert tally.notes["rows without a person"] == 1
    assert tally.persons == {"1"}


def test_columns_that_a_table_uses_are_no_facts_and_a_person_is_no_text(tmp_path):
    rows = lines({"pid": 7.0, "a": "x", "b": 1.0, "c": [1]}, {"a": "y"})
    root = write(tmp_path / "in", a__jsonl=rows)
    one, two = take(root, tables={"*.jsonl": {"text": "a", "person": "pid"}})[0]
    assert (one.person, one.facts, two.person) == ("7", {"b": 1.0}, None)
    one, two = take(root, tables={"*.jsonl": {"person": "pid"}})[0]
    assert (one.text, one.person, one.kind) == ("a: x\nb: 1\nc: [1]", "7", "record")
    found, aside, _ = take(root, tables={"*": {"text": "b"}})
    assert [d.text for d in found] == ["1"]
    assert aside == [("a.jsonl", "line 2", "no column 'b'")]


def test_a_person_may_stand_in_the_path_and_a_column_knows_better(tmp_path):
    for name in ("p1", "p2"):
        write(tmp_path / "in" / name, a__txt=f"Note of {name}.")
    write(tmp_path / "in" / "p2", b__csv="text,who\na,someone\nb,\n")
    write(tmp_path / "in", top__txt="Nobody's.")
    found, _, _ = take(
        tmp_path / "in", person_from="^(?P<person>[^/]+)/", tables={"p2/*.csv": {"text": "text", "person": "who"}}
    )
    assert [(d.source.file, d.person) for d in found] == [
        ("p1/a.txt", "p1"), ("p2/a.txt", "p2"), ("p2/b.csv", "someone"), ("p2/b.csv", "p2"), ("top.txt", None)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({}, "either source, a path, or data"),
        ({"source": "a", "data": "b"}, "either source, a path, or data"),
        ({"source": "a", "person_from": "(x)"}, "name the part that says whose"),
        ({"source": "a", "person_from": "(?P<person>"}, "no regular expression"),
        ({"source": "a", "encoding": "klingon"}, "no encoding"),
        ({"source": "a", "encoding": "rot13"}, "no encoding"),
        ({"source": "a", "tables": {"*": {"text": "{a.b!r}"}}}, "no template"),
        ({"source": "a", "tables": {"*": {"text": "{}"}}}, "no template"),
        ({"source": "a", "tables": {"*": {"text": "{a"}}}, "expected '}'"),
    ],
)
def test_a_recipe_that_makes_no_sense_is_refused(config, told):
    with pytest.raises(ValidationError, match=told):
        read.Config(**config)


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"tables": {"*.tsv": {"text": "a"}}}, "no file fits it"),
        ({"tables": {"*": {"kind": "x"}, "*.csv": {"text": "text"}}}, "an earlier pattern takes all"),
        ({"tables": {"*.csv": {"text": "txet"}}}, "no column 'txet'; did you mean 'text'"),
        ({"tables": {"*.csv": {"text": "{text} {zzz}"}}}, "no column 'zzz'; it has 2 others"),
        ({"tables": {"*.jsonl": {"person": "pid"}}}, "no column 'pid'"),
        ({"tables": {"*.parquet": {"facts": ["pid"]}}}, "no column 'pid'"),
        ({"tables": {"*.txt": {"text": "a"}}}, "1 of its files are no tables"),
        ({"person_from": "^(?P<person>x)/"}, "matches the path of none of 4 files"),
    ],
)
def test_what_does_not_fit_the_files_is_said_before_anything_runs(tmp_path, config, told):
    root = write(tmp_path / "in", a__csv="text,id\na,1", b__jsonl=lines({"text": "b"}), c__txt="c")
    pq.write_table(pa.table({"text": ["d"]}), root / "d.parquet")
    with pytest.raises(RecipeError, match=told):
        read.check(read.Config(source=str(root), **config))
    read.check(read.Config(source=str(root)))


@pytest.mark.parametrize(
    ("name", "told"), [("nowhere", "no such file or folder"), ("a.xlsx", "nothing reads .xlsx"), ("empty", "no file")]
)
def test_a_path_with_nothing_to_read_is_refused(tmp_path, name, told):
    (tmp_path / "a.xlsx").write_bytes(b"x")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "b.doc").write_bytes(b"x")
    with pytest.raises(RecipeError, match=told):
        read.check(read.Config(source=str(tmp_path / name)))


def test_a_format_whose_package_is_missing_names_the_extra(tmp_path, monkeypatch):
    root = write(tmp_path / "in", a__pdf=pdf("x"), b__txt="y")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(RecipeError, match=r"schoolhouse\[prepare\]"):
        read.check(read.Config(source=str(root)))
    (root / "a.pdf").unlink()
    read.check(read.Config(source=str(root)))


# The folder


def test_hidden_files_unknown_ones_copies_and_links_out_are_left_out_and_counted(tmp_path):
    root = write(tmp_path / "in", a__txt="one", b__txt="one", c__xlsx=b"x", d__Maria_Muster="x", __hidden__txt="x")
    write(root / ".git", x__txt="hidden")
    outside = write(tmp_path / "outside", secret__txt="secret")
    (root / "link.txt").symlink_to(outside / "secret.txt")
    (root / "folder").symlink_to(outside)
    (root / "inner.txt").symlink_to(root / "a.txt")
    (root / "lost.txt").symlink_to(root / "nowhere.txt")
    (root / "ghost.txt").symlink_to(root / ".git" / "x.txt")
    os.mkfifo(root / "pipe.txt")
    out, found, aside = stage(tmp_path, source=str(root))
    assert [(d.text, d.source.file) for d in found] == [("one", "a.txt")]
    assert [(row["file"], row["reason"]) for row in aside] == [
        ("b.txt", "the same bytes as another file"),
        ("inner.txt", "the same bytes as another file"),
    ]
    assert out.meta["notes"]["files that were not read, .xlsx"] == 1
    assert out.meta["notes"]["files that were not read, another suffix"] == 1
    assert out.meta["notes"]["links that were not followed"] >= 3
    card = (out.path / "README.md").read_text()
    assert "1 files that were not read, .xlsx" in card
    assert "Muster" not in card


def test_one_file_may_be_the_source_and_the_id_follows_names_and_bytes(tmp_path):
    root = write(tmp_path / "in", a__txt="one", b__txt="two")
    assert [d.source.file for d in stage(tmp_path, source=str(root / "a.txt"))[1]] == ["a.txt"]
    config = read.Config(source=str(root))
    prints = [read.fingerprint(config)]
    for name, text in (("a.txt", "other"), ("c.txt", "new"), ("d.xyz", "unread")):
        (root / name).write_text(text)
        prints.append(read.fingerprint(config))
    assert len(set(prints)) == 4
    assert read.fingerprint(config) == prints[-1]
    assert read.fingerprint(read.Config(data="x")) == ""


# The stage


def mixed(root, count=12):
    write(
        root,
        letter__pdf=pdf("Page one.", "", "Page three."),
        notes__jsonl=lines(*({"text": f"n{i}"} for i in range(900))),
    )
    write(root, big__csv="text,id\n" + "".join(f"{'word ' * 40}{i},{i}\n" for i in range(1500)), bad__json="{")
    for number in range(count):
        write(root / f"p{number}", note__txt=f"Note {number}.")
    return root


def test_the_order_does_not_depend_on_the_workers(tmp_path):
    root = mixed(tmp_path / "in")
    config = read.Config(source=str(root))
    alone = list(read.documents(config, root))
    assert [d.source.file for d in alone] == sorted(d.source.file for d in alone)
    for threads in (1, 3):
        run = Run.for_tests(tmp_path / f"run{threads}")
        run.machine = run.machine.model_copy(update={"threads": threads})
        out, found, aside = stage(tmp_path / str(threads), run=run, source=str(root))
        assert found == alone
        assert out.meta["documents"] == len(alone) == 2414
        assert [(row["file"], row["place"]) for row in aside] == [("bad.json", "whole file"), ("letter.pdf", "page 2")]
        assert set(run.meter.phases) == {"read", "wait"}
    assert out.meta["set_aside"] == {"not JSON (line 1)": 1, "no text: a scanned page?": 1}
    assert out.meta["files"] == {"JSON": 1, "CSV": 1, "PDF": 1, "JSON lines": 1, "plain text": 12}
    card = (out.path / "README.md").read_text()
    assert "Of 2,414 documents no person is known" in card
    assert "- 1: no text: a scanned page?" in card


def test_the_first_documents_of_a_large_table_are_had_without_the_rest(tmp_path):
    root = write(tmp_path / "in", a__jsonl=lines(*({"text": f"n{i}"} for i in range(50_000))))
    tally = Tally()
    first = list(itertools.islice(read.documents(read.Config(source=str(root)), root, tally), 3))
    assert [d.text for d in first] == ["n0", "n1", "n2"]
    assert tally.documents.total() == 3


def test_a_first_look_ends_after_so_many_documents_and_says_so(tmp_path):
    root = mixed(tmp_path / "in")
    config = read.Config(source=str(root))
    out, found, _ = stage(tmp_path / "a", source=str(root), most=5)
    assert found == list(itertools.islice(read.documents(config, root), 5))
    assert (out.meta["documents"], out.meta["files"]) == (5, {"JSON": 1, "CSV": 1})
    assert "reading ended after 5 documents" in (out.path / "README.md").read_text()
    assert len(list(read.documents(read.Config(source=str(root), most=7), root))) == 7


def test_readers_wait_when_nobody_takes_what_they_read(tmp_path, monkeypatch):
    monkeypatch.setattr(read_ahead, "PART_CHARS", 2000)
    made = []

    class Seen(queue.Queue):
        def __init__(self, most):
            super().__init__(most)
            made.append(self)

    monkeypatch.setattr(read_ahead.queue, "Queue", Seen)
    root = tmp_path / "in"
    for number in range(12):
        rows = "".join(f"{'word ' * 20}{number} {i}\n" for i in range(500))
        write(root, **{f"t{number:02}__csv": "text\n" + rows})
    _, sources = read._sources(read.Config(source=str(root)), root)
    with contextlib.closing(read_ahead.read_ahead(sources, 2, contextlib.nullcontext, lambda: None)) as parts:
        taken = [next(parts)]
        nothing, turns = threading.Event(), itertools.count()
        while sum(waits.qsize() for waits in made) < 2 * read_ahead.PARTS_AHEAD and next(turns) < 300:
            nothing.wait(0.1)
        nothing.wait(0.3)  # for whoever would read on
        assert sum(waits.qsize() for waits in made) == 2 * read_ahead.PARTS_AHEAD
        assert len(made) == 2 * read_ahead.FILES_AHEAD
        taken += parts
    sizes = [len([item for item in part.items if isinstance(item, Piece)]) for part in taken]
    assert sum(sizes) == 12 * 500
    assert max(sizes) * 100 < 4000  # characters


def test_a_file_that_ends_its_reader_is_set_aside_and_the_next_is_read(tmp_path, monkeypatch):
    root = write(tmp_path / "in", a__txt="one", b__txt="two", c__txt="three")
    kill = read_ahead._order

    def order(source):
        return b"no JSON\n" if source.name == "b.txt" else kill(source)  # the worker fails at it

    monkeypatch.setattr(read_ahead, "_order", order)
    out, found, aside = stage(tmp_path, source=str(root))
    assert [d.text for d in found] == ["one", "three"]
    assert [(row["file"], row["reason"]) for row in aside] == [("b.txt", f"ended its reader: {formats.TOO_LARGE}")]
    assert out.meta["documents"] == 2


def test_a_reader_that_takes_too_long_is_told_apart(tmp_path):
    class Dead:
        def kill(self):
            pass

        def wait(self):
            return -signal.SIGALRM

    assert read_ahead._Crew()._why_ended(Dead()) == "took more than 10 minutes"


def test_a_reader_that_can_not_start_ends_the_stage(tmp_path, monkeypatch):
    monkeypatch.setattr(read_ahead.sys, "executable", "/bin/false")
    with pytest.raises(Exception, match="could not be started"):
        stage(tmp_path, source=str(write(tmp_path / "in", a__txt="one")))


def test_what_nobody_can_read_ends_the_stage_with_the_reasons(tmp_path):
    root = write(tmp_path / "in", a__json="{", b__json="[", c__txt="")
    with pytest.raises(DataError, match=r"nothing could be read of 3 files: not JSON \(line 1\) \(2\); an empty file"):
        stage(tmp_path, source=str(root))


def test_it_stops_when_asked_to_and_when_the_time_is_spent(tmp_path):
    root = mixed(tmp_path / "in")
    run = Run.for_tests(tmp_path / "one")
    run.interrupted.set()
    with pytest.raises(Stopped, match="of 16"):
        stage(tmp_path / "a", run=run, source=str(root))
    run = Run.for_tests(tmp_path / "two")
    run.limit_s = 0.0
    with pytest.raises(BudgetError, match="grant more"):
        stage(tmp_path / "b", run=run, source=str(root))
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("reader")]


def test_an_earlier_stage_may_hold_the_files(tmp_path):
    made = artifact(write(tmp_path / "made"))
    write(made.path / "raw", a__txt="From a stage.")
    _, found, _ = stage(tmp_path, {"hospital": made}, data="hospital")
    assert [(d.text, d.source.file) for d in found] == [("From a stage.", "a.txt")]
    with pytest.raises(RecipeError, match="no such file or folder"):
        stage(tmp_path / "b", {"hospital": artifact(write(tmp_path / "none"))}, data="hospital")


def test_progress_is_told_without_any_name(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(read, "_SAY_EVERY_S", 0.0)
    root = write(
        tmp_path / "in", Maria_Muster__txt="one", Hans__csv="text,who\na,Hans\nb\n", q__txt="señor".encode("cp1252")
    )
    out, _, _ = stage(tmp_path, source=str(root))
    said = capsys.readouterr().err
    assert "documents" in said
    assert "by a guess" in said
    told = said + (out.path / "README.md").read_text() + json.dumps(out.meta)
    assert "Maria" not in told
    assert "Hans" not in told
    assert out.meta["without_person"] == 3


def test_a_recipe_reads_files_and_goes_on_from_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "in", a__csv="text,pid\nCough.,1\n")
    (tmp_path / "r.toml").write_text(
        'name = "r"\n[[stage]]\nname = "files"\nrun = "prepare.read"\nsource = "in"\n'
        'tables = { "*.csv" = { text = "{text}", person = "pid" } }\n'
    )
    stages = {"prepare.read": "schoolhouse.prepare.read"}
    made = run_recipe(tmp_path / "r.toml", stages=stages)["files"]
    assert [(d.text, d.person) for d in read_documents(made.path)] == [("Cough.", "1")]
    assert {"read", "wait"} <= set(made.meta["meter"]["phases_s"])
    assert run_recipe(tmp_path / "r.toml", stages=stages)["files"].id == made.id
    write(tmp_path / "in", a__csv="text,pid\nFever.,1\n")
    assert run_recipe(tmp_path / "r.toml", stages=stages)["files"].id != made.id
