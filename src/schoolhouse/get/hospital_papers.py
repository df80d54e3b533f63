"""Discharge letters as Word files and lab reports as PDF files."""

from __future__ import annotations

import random
import zipfile
from datetime import datetime, timedelta
from io import BytesIO
from pathlib import Path

from schoolhouse.get.hospital_marks import WHOLE, Planted, mark
from schoolhouse.get.hospital_notes import aged, background, listed, vitals, written
from schoolhouse.get.hospital_people import HOSPITAL, letters
from schoolhouse.get.hospital_visits import Visit, next_step

_STAMP = (1980, 1, 1, 0, 0, 0)  # of the members of a Word file, so that the same seed gives the same bytes
_PAGE_LINES = 46


def write_letter(raw: Path, visit: Visit, draw: random.Random, planted: Planted) -> str:
    """A discharge letter; returns its name. Its parts are paragraphs and rows of its table, counted from 1."""
    import docx

    name = f"letters/{visit.patient.key}-{visit.id}.docx"
    document = docx.Document()
    paragraphs = _letter(visit, draw)
    for number, text in enumerate(paragraphs, 1):
        document.add_paragraph(planted.clean(text, name, WHOLE, f"paragraph {number}", visit.patient.key))
    table = document.add_table(rows=0, cols=2)
    for number, (what, value) in enumerate(_letter_table(visit), 1):
        cells = table.add_row().cells
        cells[0].text = what
        cells[1].text = planted.clean(value, name, WHOLE, f"table row {number}", visit.patient.key)
    document.core_properties.created = document.core_properties.modified = datetime(2025, 1, 1)
    held = BytesIO()
    document.save(held)
    (raw / name).parent.mkdir(parents=True, exist_ok=True)
    (raw / name).write_bytes(_without_clock(held))
    return name


def _letter(visit: Visit, draw: random.Random) -> list[str]:
    p, plan = visit.patient, visit.whole_plan
    out = visit.day + timedelta(days=0 if plan.goes_to == "home" else draw.randint(2, 9))
    title = "Ms." if p.sex == "female" else "Mr."
    day, end = mark("date", f"{visit.day:%B} {visit.day.day}, {visit.day.year}"), mark("date", f"{out:%d %b %Y}")
    return [
        f"{mark('organisation', HOSPITAL)}",
        f"Discharge letter, {end}",
        f"Dr. {mark('name', p.doctor)}, {mark('organisation', p.practice)}, {mark('address', p.town)}",
        f"Re: {mark('name', p.name)}, born {mark('date', f'{p.born:%d %B %Y}')}, {mark('address', p.address)}, "
        f"record {mark('id', p.mrn)}",
        f"Dear Dr. {mark('name', p.doctor)},",
        f"thank you for sending us {title} {mark('name', p.last)}, {aged(visit)} {p.sex}, who was seen on {day} "
        f"with {listed(written(visit.findings, draw))}. The diagnosis is {visit.condition.name} "
        f"({visit.condition.code}).",
        f"What we know: {listed([*vitals(visit), *background(visit, draw)] or ['nothing more'])}.",
        f"What was done: {next_step(plan)}",
        f"{mark('name', p.relative)} ({mark('phone', p.relative_phone)}) was told. Please see "
        f"{mark('name', p.first)} again within {draw.randint(1, 4)} weeks.",
        f"{mark('name', visit.doctor.name)}, {visit.ward}, ext. {mark('phone', visit.doctor.extension)}",
    ]


def _letter_table(visit: Visit) -> list[tuple[str, str]]:
    plan = visit.whole_plan
    dose = "" if plan.dose_mg is None else f"{plan.dose_mg:g} mg"
    return [
        ("Insurance", mark("id", visit.patient.member)), ("Triage", str(plan.triage)), ("Drug", str(plan.drug)),
        ("Dose", dose), ("Went to", str(plan.goes_to)),
    ]  # fmt: skip


def _without_clock(archive: BytesIO) -> bytes:
    """The same archive with one time for all its members."""
    out = BytesIO()
    with zipfile.ZipFile(archive) as old, zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as new:
        for member in old.namelist():
            new.writestr(zipfile.ZipInfo(member, _STAMP), old.read(member), zipfile.ZIP_DEFLATED)
    return out.getvalue()


def write_lab_report(raw: Path, visit: Visit, draw: random.Random, planted: Planted) -> str:
    """A lab report; returns its name. Its machine knows ASCII only, so names stand there without accents."""
    name = f"labs/{visit.patient.key}-{visit.id}.pdf"
    lines = _report(visit, draw)
    pages = [lines[at : at + _PAGE_LINES] for at in range(0, len(lines), _PAGE_LINES)]
    cleaned = [
        [
            planted.clean(line, name, f"page {number}", f"line {at}", visit.patient.key)
            for at, line in enumerate(page, 1)
        ]
        for number, page in enumerate(pages, 1)
    ]
    (raw / name).parent.mkdir(parents=True, exist_ok=True)
    (raw / name).write_bytes(pdf(cleaned))
    return name


def _report(visit: Visit, draw: random.Random) -> list[str]:
    p = visit.patient
    drawn = f"{visit.day:%d-%b-%Y} {draw.randint(6, 21):02d}:{draw.randint(0, 59):02d}"
    anaemic = visit.condition.name == "iron deficiency anaemia"
    hot = "fever" in visit.findings
    values = [
        (
            "Haemoglobin",
            f"{draw.uniform(6.8, 10.9) if anaemic else draw.uniform(11.6, 16.4):.1f}",
            "g/dL",
            "11.5 - 17.0",
        ),
        ("Ferritin", draw.randint(3, 14) if anaemic else draw.randint(30, 220), "ug/L", "15 - 250"),
        ("White cells", f"{draw.uniform(11, 22) if hot else draw.uniform(4, 9.8):.1f}", "10^9/L", "4.0 - 10.0"),
        ("Platelets", draw.randint(150, 400), "10^9/L", "150 - 400"),
        ("C-reactive protein", draw.randint(40, 240) if hot else draw.randint(0, 5), "mg/L", "0 - 5"),
        ("Sodium", draw.randint(134, 146), "mmol/L", "135 - 145"),
        ("Potassium", f"{draw.uniform(3.3, 5.3):.1f}", "mmol/L", "3.5 - 5.1"),
        ("eGFR", visit.true.egfr, "mL/min", "above 60"),
    ]
    head = [
        f"{mark('organisation', HOSPITAL)} - Laboratory",
        f"Patient: {mark('name', letters(f'{p.last}, {p.first}'))}    Sex: {p.sex}",
        f"Born: {mark('date', f'{p.born:%d-%b-%Y}')}    Record: {mark('id', p.mrn)}",
        f"Address: {mark('address', letters(p.address))}",
        f"Sample: {mark('id', f'L{draw.randint(10**7, 10**8 - 1)}')}    Drawn: {mark('date', drawn[:11])}{drawn[11:]}",
        f"Asked by: Dr. {mark('name', letters(visit.doctor.name))}, {visit.ward}, "
        f"ext. {mark('phone', visit.doctor.extension)}",
        "",
    ]
    rows = [f"{what:<22}{value!s:>8} {unit:<8} ({normal})" for what, value, unit, normal in values]
    notes = [f"Comment {n}: sample {draw.choice(['clear', 'lipaemic', 'haemolysed'])}." for n in range(1, 5)]
    long = [f"Method note {n}: measured twice, mean shown." for n in range(1, 40)] if draw.random() < 0.2 else []
    return [*head, *rows, "", *notes, *long, f"Released by {mark('name', letters(visit.nurse.name))}"]


def pdf(pages: list[list[str]]) -> bytes:
    """A small PDF file of lines of ASCII text.

    Source: ISO 32000-1:2008, 7.5 (file structure: objects, cross-reference table, trailer) and 9.4 (text objects).
    """
    first = 4  # objects 1 to 3 are catalogue, page tree and font; then a page and its content in turns
    kids = " ".join(f"{first + 2 * number} 0 R" for number in range(len(pages)))
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Kids [{kids}] /Count {len(pages)} >>".encode("ascii"),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Courier /Encoding /WinAnsiEncoding >>",
    ]
    for number, lines in enumerate(pages):
        shown = "".join(f"({_escaped(line)}) Tj T*\n" for line in lines)
        content = f"BT\n/F1 10 Tf\n14 TL\n50 790 Td\n{shown}ET".encode("ascii")
        objects.append(
            f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 595 842] /Resources << /Font << /F1 3 0 R >> >> "
            f"/Contents {first + 2 * number + 1} 0 R >>".encode("ascii")
        )
        objects.append(b"<< /Length %d >>\nstream\n%s\nendstream" % (len(content), content))
    out = bytearray(b"%PDF-1.4\n")
    places = []
    for number, body in enumerate(objects, 1):
        places.append(len(out))
        out += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    start = len(out)
    out += b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1)
    for place in places:
        out += b"%010d 00000 n \n" % place
    out += b"trailer\n<< /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n" % (len(objects) + 1, start)
    return bytes(out)


def _escaped(line: str) -> str:
    return line.replace("\\", r"\\").replace("(", r"\(").replace(")", r"\)")
