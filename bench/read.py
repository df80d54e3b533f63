"""How fast `prepare.read` makes documents of files: megabytes and documents a second, for each format.

    python bench/read.py [--mb 20] [--rounds 5] [--workers 1 2] [--formats csv pdf] [--json bench/results/read.json]

The files are generated, with notes of about 600 characters; every format gets about `--mb` megabytes in eight files
(Word and PDF a tenth of that). A time is that of the whole stage, its processes' start and both files that it writes
included: the median over the rounds. `waited` is the share of it in which the writing side had nothing to write.
"""

from __future__ import annotations

import argparse
import csv
import json
import mailbox
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from email.message import EmailMessage
from pathlib import Path

from sides import processor

from schoolhouse.core.artifact import Draft
from schoolhouse.core.run import Run
from schoolhouse.prepare import read

FILES = 8
WORDS = "pain fever cough left right since days denies reports mild severe normal chest lung heart dose daily Größe"


def note(random_: random.Random) -> str:
    return " ".join(random_.choices(WORDS.split(), k=100)) + "."


def jsonl(path: Path, notes: list[str]) -> None:
    rows = ({"id": n, "person": f"p{n % 50}", "text": text} for n, text in enumerate(notes))
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def table(path: Path, notes: list[str]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "person", "text"])
        writer.writerows((n, f"p{n % 50}", text) for n, text in enumerate(notes))


def parquet(path: Path, notes: list[str]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {"id": range(len(notes)), "person": [f"p{n % 50}" for n in range(len(notes))], "text": notes}
    pq.write_table(pa.table(columns), path, compression="none", use_dictionary=False)


def fhir(path: Path, notes: list[str]) -> None:
    entries: list[dict[str, object]] = [{"fullUrl": "urn:uuid:p", "resource": {"resourceType": "Patient", "id": "p"}}]
    for n, text in enumerate(notes):
        resource = {
            "resourceType": "Condition", "id": f"c{n}", "subject": {"reference": "urn:uuid:p"},
            "code": {"coding": [{"code": "R05", "display": "Cough"}]}, "note": [{"text": text}],
        }  # fmt: skip
        entries.append({"fullUrl": f"urn:uuid:{n}", "resource": resource})
    path.write_text(json.dumps({"resourceType": "Bundle", "entry": entries}, ensure_ascii=False), encoding="utf-8")


def mails(path: Path, notes: list[str]) -> None:
    box = mailbox.mbox(path)
    for text in notes:
        message = EmailMessage()
        message["Subject"] = "Visit"
        message.set_content(text)
        box.add(message)
    box.close()


def word(path: Path, notes: list[str]) -> None:
    import docx

    document = docx.Document()
    for text in notes:
        document.add_paragraph(text)
    document.save(str(path))


def pdf(path: Path, notes: list[str]) -> None:
    """Pages of one note each, in lines of 80 characters, as plain PDF objects."""
    kids = " ".join(f"{4 + 2 * n} 0 R" for n in range(len(notes)))
    objects = [
        "<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Kids [{kids}] /Count {len(notes)} >>",
        "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    for n, text in enumerate(notes):
        lines = "".join(f"({text[at : at + 80]}) Tj 0 -14 Td " for at in range(0, len(text), 80))
        drawn = f"BT /F1 10 Tf 72 720 Td {lines}ET"
        objects.append(
            "<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Resources << /Font << /F1 3 0 R >> >> "
            f"/Contents {5 + 2 * n} 0 R >>"
        )
        objects.append(f"<< /Length {len(drawn)} >>\nstream\n{drawn}\nendstream")
    body, places = b"%PDF-1.4\n", []
    for number, content in enumerate(objects, 1):
        places.append(len(body))
        body += f"{number} 0 obj\n{content}\nendobj\n".encode("latin-1")
    rows = "".join(f"{place:010} 00000 n \n" for place in places)
    size = len(objects) + 1
    end = (
        f"xref\n0 {size}\n0000000000 65535 f \n{rows}trailer\n<< /Size {size} /Root 1 0 R >>\nstartxref\n{len(body)}\n"
    )
    path.write_bytes(body + end.encode() + b"%%EOF\n")


WRITERS: dict[str, tuple[str, float, Callable[[Path, list[str]], None]]] = {
    "jsonl": ("jsonl", 1.0, jsonl),
    "csv": ("csv", 1.0, table),
    "parquet": ("parquet", 1.0, parquet),
    "fhir": ("json", 1.0, fhir),
    "mbox": ("mbox", 1.0, mails),
    "docx": ("docx", 0.1, word),
    "pdf": ("pdf", 0.1, pdf),
}


def generate(folder: Path, name: str, megabytes: float) -> None:
    suffix, share, write = WRITERS[name]
    folder.mkdir()
    count = max(1, round(megabytes * share * 1e6 / 600 / FILES))
    for number in range(FILES):
        random_ = random.Random(f"{name}/{number}")
        write(folder / f"{number}.{suffix}", [note(random_) for _ in range(count)])


def once(source: Path, scratch: Path, workers: int) -> tuple[float, float, dict[str, object]]:
    """Run the stage; returns seconds, the share of them that the writing side waited, and the stage's figures."""
    with tempfile.TemporaryDirectory(dir=scratch) as home:
        run = Run.for_tests(Path(home))
        run.machine = run.machine.model_copy(update={"threads": workers})
        out = Draft(Path(home) / "out", {})
        out.path.mkdir()
        started = time.perf_counter()
        read.run(read.Config(source=str(source)), {}, run, out)
        seconds = time.perf_counter() - started
        return seconds, run.meter.phases.get("wait", 0.0) / seconds, out.meta


def measure(name: str, folder: Path, scratch: Path, workers: int, rounds: int) -> dict[str, object]:
    runs = [once(folder, scratch, workers) for _ in range(rounds)]
    seconds = statistics.median(taken for taken, _, _ in runs)
    meta = runs[0][2]
    row = {
        "format": name, "workers": workers, "rounds": rounds, "megabytes": meta["bytes"] / 1e6,
        "documents": meta["documents"], "seconds": seconds, "megabytes_s": meta["bytes"] / 1e6 / seconds,
        "documents_s": meta["documents"] / seconds, "waited": statistics.median(share for _, share, _ in runs),
    }  # fmt: skip
    print(json.dumps(row), flush=True)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mb", type=float, default=20)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--formats", nargs="+", choices=sorted(WRITERS), default=list(WRITERS))
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as place:
        scratch = Path(place)
        for name in args.formats:
            generate(scratch / name, name, args.mb)
            once(scratch / name, scratch, 1)  # not counted: the files are in the machine's cache after it
            rows += [measure(name, scratch / name, scratch, workers, args.rounds) for workers in args.workers]
    result = {"machine": processor(), "rows": rows}
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
