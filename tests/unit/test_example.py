"""The example hospital: the same by seed, readable, right by its own guidelines, every planted value at its place."""

import base64
import csv
import json
import re
from collections import Counter, defaultdict
from datetime import date
from email import policy
from email.parser import BytesParser

import pyarrow.parquet as pq
import pytest

from school import draft
from schoolhouse.core.errors import RecipeError
from schoolhouse.core.run import Run
from schoolhouse.get import example
from schoolhouse.get.hospital_marks import Planted, mark, unmark
from schoolhouse.get.hospital_rules import CONDITIONS, FIELDS

for package in ("faker", "docx", "pypdf", "pyarrow"):
    pytest.importorskip(package)

KNOWN = {  # column of the notes: what a fact is called in the guideline
    "heart_rate": "heart rate", "spo2": "oxygen saturation", "temperature": "temperature", "allergy": "allergy",
    "pregnant": "pregnancy", "egfr": "kidney function", "weight_kg": "weight",
}  # fmt: skip


def make(folder, seed=5, **config):
    out = draft(folder / f"out-{seed}")
    settings = example.Config(**{"patients": 40, **config})
    example.check(settings)
    example.run(settings, {}, Run.for_tests(folder / f"run-{seed}", seed), out)
    return out


@pytest.fixture(scope="module")
def hospital(tmp_path_factory):
    return make(tmp_path_factory.mktemp("hospital"))


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def table(path, encoding="utf-8", delimiter=","):
    with path.open(encoding=encoding, newline="") as file:
        return list(csv.reader(file, delimiter=delimiter))


def visits(hospital):
    """The good rows of both tables of notes, as objects."""
    found = []
    for name, encoding, delimiter in (("notes", "utf-8", ","), ("archive", "latin-1", ";")):
        head, *rows = table(hospital.path / "raw" / "notes" / f"{name}.csv", encoding, delimiter)
        found += [dict(zip(head, row, strict=True)) for row in rows if len(row) == len(head)]
    return [row for row in found if row["note"]]


def tables_of(text):
    """The tables of a Markdown text, each a list of rows of cells without the line below its head."""
    blocks = re.findall(r"(?:^\|.*\|\n)+", text + "\n", re.M)
    return [
        [[c.strip() for c in line[1:-1].split("|")] for line in b.splitlines() if "---" not in line] for b in blocks
    ]


def test_the_same_seed_gives_the_same_bytes_and_another_seed_other_people(hospital, tmp_path):
    again, other = make(tmp_path / "again"), make(tmp_path / "other", seed=6)
    names = sorted(path.relative_to(hospital.path) for path in hospital.path.rglob("*") if path.is_file())
    assert names == sorted(path.relative_to(again.path) for path in again.path.rglob("*") if path.is_file())
    assert [
        str(name) for name in names if (hospital.path / name).read_bytes() != (again.path / name).read_bytes()
    ] == []
    assert again.meta == hospital.meta
    first, second = ({row["last"] for row in lines(out.path / "truth" / "patients.jsonl")} for out in (hospital, other))
    assert len(first & second) < len(first) / 2


def test_as_many_patients_as_asked_for_each_with_one_to_six_visits(hospital, tmp_path):
    counts = Counter(row["patient_key"] for row in lines(hospital.path / "truth" / "encounters.jsonl"))
    assert len(lines(hospital.path / "truth" / "patients.jsonl")) == len(counts) == hospital.meta["patients"] == 40
    assert set(counts.values()) <= set(range(1, 7))
    assert make(tmp_path, patients=20).meta["patients"] == 20


def test_what_can_not_be_made_is_refused(monkeypatch):
    with pytest.raises(ValueError, match="hospital"):
        example.Config(kind="school")
    with pytest.raises(ValueError, match="greater than or equal to 20"):
        example.Config(patients=5)
    monkeypatch.setattr(example.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RecipeError, match=r"needs faker: pip install 'schoolhouse\[prepare\]'"):
        example.check(example.Config())


def test_the_id_follows_the_releases_that_draw_and_write(monkeypatch):
    before = example.fingerprint(example.Config())
    assert before == example.fingerprint(example.Config())
    monkeypatch.setattr(example, "version", lambda package: "0")
    assert example.fingerprint(example.Config()) != before


def test_every_code_is_one_that_may_be_billed():
    codes = pytest.importorskip("simple_icd_10_cm")
    assert [c.code for c in CONDITIONS.values() if not (codes.is_valid_item(c.code) and codes.is_leaf(c.code))] == []
    assert len({c.code for c in CONDITIONS.values()}) == len(CONDITIONS) == 16


def test_findings_overlap_so_that_none_decides_alone():
    owners = defaultdict(set)
    for condition in CONDITIONS.values():
        assert 3 <= len(condition.findings) <= 5
        for finding in condition.findings:
            owners[finding].add(condition.name)
    shared = {finding for finding, names in owners.items() if len(names) > 1}
    assert len(shared) >= 10
    assert [c.name for c in CONDITIONS.values() if not shared & set(c.findings)] == []


def test_the_diagnosis_follows_from_findings_and_age_as_the_guideline_says(hospital):
    rows = tables_of((hospital.path / "raw" / "guidelines" / "diagnosis.md").read_text(encoding="utf-8"))[0][1:]
    assert len(rows) == 16
    for visit in visits(hospital):
        counts, age = {}, int(visit["age"])
        for name, code, findings, ages in rows:
            low, _, high = ages.replace(" and over", " to 200").replace("all", "0 to 200").partition(" to ")
            if int(low) <= age <= int(high):
                counts[name, code] = len(set(findings.split(", ")) & set(visit["findings"].split("; ")))
        best = [pair for pair, count in counts.items() if count == max(counts.values()) and count >= 3]
        assert best == [(visit["condition"], visit["icd10"])], visit["encounter_id"]


def colour(visit, rows):
    """Triage worked out anew from the guideline's table."""
    age, rate, spo2, heat = int(visit["age"]), *(float(visit[k]) for k in ("heart_rate", "spo2", "temperature"))
    column = 2 if age < 5 else 3 if age < 12 else 4
    for row in rows:
        hot = [float(number) for number in re.findall(r"(\d+\.\d) or more", row[5])]
        special = ("under the age of 1" in row[5] and age < 1) or ("from the age of 75" in row[5] and age >= 75)
        limit = min(hot, default=99) if special else max(hot, default=99)
        if rate > int(row[column].split()[1]) or spo2 < int(row[1].split()[1]) or heat >= limit:
            return row[0]
    return "green"


def test_triage_follows_from_the_guideline_where_the_vital_signs_are_known(hospital):
    rows = tables_of((hospital.path / "raw" / "guidelines" / "triage.md").read_text(encoding="utf-8"))[0][1:]
    seen = Counter()
    for visit in visits(hospital):
        if all(visit[name] for name in ("heart_rate", "spo2", "temperature")):
            assert visit["triage"] == colour(visit, rows), visit["encounter_id"]
            seen[visit["triage"]] += 1
        else:
            assert visit["triage"] == visit["goes_to"] == ""
            assert visit["missing"] in ("heart rate", "oxygen saturation", "temperature")
    assert set(seen) == {"red", "orange", "yellow", "green"}


def test_drug_dose_and_question_follow_from_the_guidelines(hospital):
    folder = hospital.path / "raw" / "guidelines"
    given, drugs, _ = tables_of((folder / "dosing.md").read_text(encoding="utf-8"))
    first = {row[0]: row[1:] for row in given[1:]}
    drugs = {row[0]: row[1:] for row in drugs[1:]}
    questions = {row[0]: row[2] for row in tables_of((folder / "asking.md").read_text(encoding="utf-8"))[0][1:]}
    seen = Counter()
    for visit in visits(hospital):
        age, (drug, instead) = int(visit["age"]), first[visit["condition"]]
        remarks = "" if drug == "none" else drugs[drug][2]
        fertile = visit["sex"] == "female" and 12 <= age <= 50
        needed = ["heart rate", "oxygen saturation", "temperature"]
        needed += ["allergy"] * ("penicillin" in remarks) + ["pregnancy"] * ("not in pregnancy" in remarks and fertile)
        needed += ["kidney function"] * ("kidneys" in remarks)
        needed += ["weight"] * (drug != "none" and (age < 16 or "always by weight" in remarks))
        unknown = [KNOWN[column] for column in KNOWN if not visit[column] and KNOWN[column] in needed]
        assert [visit["missing"]] == (unknown or ["nothing"]), visit["encounter_id"]
        assert visit["needed"].split(", ") == needed
        assert visit["known"] == (", ".join(name for name in needed if name not in unknown) or "none")
        seen[visit["missing"]] += 1
        if unknown:
            assert visit["follow_up"] == visit["next_step"] == questions[unknown[0]]
        if visit["missing"] in ("allergy", "pregnancy"):
            assert visit["drug"] == visit["dose_mg"] == ""
            continue
        avoided = ("penicillin" in remarks and visit["allergy"] == "penicillin") or (
            "not in pregnancy" in remarks and visit["pregnant"] == "yes"
        )
        drug = instead.split(" (")[0] if avoided else drug
        assert visit["drug"] == drug, visit["encounter_id"]
        if drug == "none" or visit["missing"] in ("weight", "kidney function"):
            assert visit["dose_mg"] == ""
            continue
        per_kg, most, remarks = drugs[drug]
        dose = float(most)
        if age < 16 or "always by weight" in remarks:
            dose = min(dose, float(per_kg) * int(visit["weight_kg"]))
        if "kidneys" in remarks and int(visit["egfr"]) < 30:
            dose /= 2
        assert float(visit["dose_mg"]) == pytest.approx(dose, abs=0.006), visit["encounter_id"]
        shown = [float(number) for number in re.findall(r"([\d.]+) mg(?! per)", visit["dose_reason"])]
        worked_out = min(shown) / (2 if visit["dose_reason"].endswith("half") else 1)
        assert visit["dose_reason"].startswith(f"{drug}: ")
        assert worked_out == pytest.approx(float(visit["dose_mg"]), abs=0.006)
    assert seen["nothing"] > sum(seen.values()) / 2
    assert len(seen) >= 5


def test_where_a_patient_goes_follows_from_the_guideline(hospital):
    text = (hospital.path / "raw" / "guidelines" / "referral.md").read_text(encoding="utf-8")
    assert re.findall(r"^\d\. .*: (.*?)\.", text, re.M) == ["intensive care", "surgery", "obstetrics", "ward", "home"]
    for visit in visits(hospital):
        if not visit["goes_to"]:
            assert not visit["triage"] or (visit["condition"], visit["missing"]) == ("pyelonephritis", "pregnancy")
            continue
        pregnant = visit["condition"] == "pyelonephritis" and visit["pregnant"] == "yes"
        should = (
            "intensive care" if visit["triage"] == "red"
            else "surgery" if visit["condition"] == "appendicitis"
            else "obstetrics" if pregnant
            else "ward" if visit["triage"] == "orange" else "home"
        )  # fmt: skip
        assert visit["goes_to"] == should, visit["encounter_id"]


def test_the_worst_sign_decides_the_colour(hospital):
    for visit in visits(hospital):
        signs = re.findall(r"(red|orange|yellow|green)(?:,|$)", visit["triage_reason"])
        assert len(signs) == (3 if visit["triage"] else 0)
        if signs:
            assert visit["triage"] == min(signs, key=["red", "orange", "yellow", "green"].index)


def test_a_note_says_the_facts_that_are_known_and_not_the_diagnosis(hospital):
    for visit in visits(hospital):
        note = visit["note"].lower()
        for column in ("heart_rate", "spo2", "temperature", "egfr", "weight_kg"):
            assert not visit[column] or re.search(rf"(?<![\d.]){re.escape(visit[column])}(?!\.?\d)", note), column
        assert visit["weight_kg"] or " kg" not in note
        assert visit["egfr"] or "egfr" not in note
        assert visit["condition"] not in note
        assert visit["icd10"].lower() not in note


def test_the_nurse_asks_for_exactly_what_is_missing_and_then_says_the_dose(hospital):
    broken = {
        row["place"] for row in lines(hospital.path / "truth" / "broken.jsonl") if row["file"].endswith("calls.jsonl")
    }
    questions = json.loads((hospital.path / "truth" / "rules.json").read_text(encoding="utf-8"))["questions"]
    plans = {row["encounter_id"]: row for row in lines(hospital.path / "truth" / "encounters.jsonl")}
    asked = 0
    for number, line in enumerate((hospital.path / "raw" / "dialogues" / "calls.jsonl").read_bytes().splitlines(), 1):
        if f"line {number}" in broken:
            with pytest.raises(ValueError, match=r"."):
                json.loads(line.decode())
            continue
        call = json.loads(line.decode())
        said, plan = call["messages"], plans[call["encounter_id"]]["plan_when_all_is_known"]
        assert [message["role"] for message in said] == ["patient", "nurse"] * (len(said) // 2) + ["patient"]
        if call["missing"] == "nothing":
            assert len(said) == 3
            assert not any(question in said[1]["content"] for question in questions.values())
        else:
            asked += 1
            assert said[1]["content"].endswith(questions[call["missing"]])
            assert FIELDS[call["missing"]] in plans[call["encounter_id"]]["true"]
        dose = f"{plan['drug']} {plan['dose_mg']:g} mg" if plan["dose_mg"] else "No drug"
        assert dose in said[-2]["content"]
        assert plan["triage"] in said[-2]["content"]
    assert len(broken) == 2
    assert asked >= 3


class Places:
    """Finds the text of a part of a place of a file, by the libraries that read such files."""

    def __init__(self, raw):
        self.raw = raw
        self.held = {}

    def text(self, row):
        """The text in which a planted value must stand."""
        suffix = row["file"].rpartition(".")[2]
        if row["file"] not in self.held:
            self.held[row["file"]] = getattr(self, f"load_{suffix}")(self.raw / row["file"])
        return getattr(self, f"find_{suffix}")(self.held[row["file"]], row["place"], row["part"])

    def load_csv(self, path):
        styles = {"archive": ("latin-1", ";"), "appointments": ("utf-8", ";"), "registry": ("utf-8-sig", ",")}
        return table(path, *styles.get(path.stem, ("utf-8", ",")))

    def find_csv(self, rows, place, part):
        return rows[int(place.removeprefix("row ")) - 1][rows[0].index(part)]

    def load_parquet(self, path):
        return pq.read_table(path).to_pylist()

    def find_parquet(self, rows, place, part):
        return rows[int(place.removeprefix("row ")) - 1][part]

    def load_jsonl(self, path):
        return path.read_bytes().splitlines()

    def find_jsonl(self, rows, place, part):
        row = json.loads(rows[int(place.removeprefix("line ")) - 1].decode())
        return row["messages"][int(part.removeprefix("message ")) - 1]["content"]

    def load_docx(self, path):
        import docx

        return docx.Document(str(path))

    def find_docx(self, document, place, part):
        number = int(part.split()[-1]) - 1
        if part.startswith("table"):
            return document.tables[0].rows[number].cells[1].text
        return document.paragraphs[number].text

    def load_pdf(self, path):
        from pypdf import PdfReader

        return [page.extract_text().splitlines() for page in PdfReader(path, strict=True).pages]

    def find_pdf(self, pages, place, part):
        """Lines as they are read; empty ones are lost on the way, so a line is found by what stands in it."""
        return pages[int(place.removeprefix("page ")) - 1]

    def load_json(self, path):
        bundle = json.loads(path.read_text(encoding="utf-8"))
        assert bundle["resourceType"] == "Bundle"
        return {
            f"resource {e['resource']['resourceType']}/{e['resource']['id']}": e["resource"] for e in bundle["entry"]
        }

    def find_json(self, resources, place, part):
        value = resources[place]
        for key, index in re.findall(r"(\w+)|\[(\d+)\]", part):
            value = value[key] if key else value[int(index)]
        return base64.b64decode(value).decode() if part.endswith("attachment.data") else value

    def load_eml(self, path):
        return BytesParser(policy=policy.default).parsebytes(path.read_bytes())

    def find_eml(self, message, place, part):
        if part.startswith("header"):
            return str(message[part.removeprefix("header ")])
        return message.get_body(("plain",)).get_content().replace("\r\n", "\n")

    def load_txt(self, path):
        return path.read_text(encoding="utf-16")

    def find_txt(self, text, place, part):
        return text


def test_every_planted_value_stands_at_its_place(hospital):
    places = Places(hospital.path / "raw")
    seen = Counter()
    for row in lines(hospital.path / "truth" / "spans.jsonl"):
        text = places.text(row)
        if isinstance(text, list):
            assert any(line[row["start"] : row["end"]] == row["text"] for line in text), row["file"]
        elif "header" in row["part"]:
            assert row["text"] in text, row["file"]
        else:
            assert text[row["start"] : row["end"]] == row["text"], (row["file"], row["place"], row["part"])
        seen[row["file"].rpartition(".")[2], row["type"]] += 1
    assert {suffix for suffix, _ in seen} == {"csv", "parquet", "jsonl", "docx", "pdf", "json", "eml", "txt"}
    assert {kind for _, kind in seen} >= {"name", "date", "phone", "id", "address", "organisation", "email"}
    assert sum(seen.values()) == sum(hospital.meta["planted"].values())


def test_a_patients_surname_stands_nowhere_unmarked_in_their_notes(hospital):
    marked = defaultdict(list)
    for row in lines(hospital.path / "truth" / "spans.jsonl"):
        if row["part"] == "note":
            marked[row["file"], row["place"]].append((row["start"], row["end"]))
    people = {row["key"]: row for row in lines(hospital.path / "truth" / "patients.jsonl")}
    head, *rows = table(hospital.path / "raw" / "notes" / "notes.csv")
    checked = 0
    for number, row in enumerate(rows, 2):
        visit = dict(zip(head, row, strict=False))
        if "note" not in visit or len(row) != len(head):
            continue
        spans = marked["notes/notes.csv", f"row {number}"]
        for found in re.finditer(rf"\b{re.escape(people[visit['patient_key']]['last'])}\b", visit["note"], re.I):
            assert any(start <= found.start() and found.end() <= end for start, end in spans), number
            checked += 1
    assert checked > 20


def test_what_is_done_with_a_bill_follows_from_the_guideline(hospital):
    text = (hospital.path / "raw" / "guidelines" / "bills.md").read_text(encoding="utf-8")
    actions = {row[0]: row[1:] for row in tables_of(text)[0][1:]}
    bills = pq.read_table(hospital.path / "raw" / "office" / "billing.parquet").to_pylist()
    for bill in bills:
        assert bill["action"] == actions[bill["state"]][bill["amount"] >= 1000], bill["invoice"]
        assert bill["action_reason"].startswith(f"{bill['state']}, {bill['amount']:.2f} is ")
    assert len({bill["action"] for bill in bills}) == 5


def test_guidelines_name_nobody_and_say_that_they_are_invented(hospital):
    people = lines(hospital.path / "truth" / "patients.jsonl") + lines(hospital.path / "truth" / "staff.jsonl")
    surnames = {row["last"] for row in people}
    files = sorted((hospital.path / "raw" / "guidelines").glob("*.md"))
    assert [file.stem for file in files] == ["asking", "bills", "diagnosis", "dosing", "referral", "triage"]
    for file in files:
        text = file.read_text(encoding="utf-8")
        assert not surnames & set(re.findall(r"\w+", text))
        assert "not medical advice" in text
    assert "not medical advice" in (hospital.path / "README.md").read_text(encoding="utf-8")


def test_broken_and_repeated_rows_are_where_the_truth_says(hospital, tmp_path):
    head, *rows = table(hospital.path / "raw" / "notes" / "notes.csv")
    said = {
        int(row["place"].removeprefix("row "))
        for row in lines(hospital.path / "truth" / "broken.jsonl")
        if row["file"] == "notes/notes.csv"
    }
    note = head.index("note")
    assert said == {n for n, row in enumerate(rows, 2) if len(row) != len(head) or not row[note]}
    assert len(said) == 3
    large = make(tmp_path, patients=120)
    tables = {
        "notes/notes.csv": table(large.path / "raw" / "notes" / "notes.csv"),
        "notes/archive.csv": table(large.path / "raw" / "notes" / "archive.csv", "latin-1", ";"),
    }
    kinds = Counter()
    for row in lines(large.path / "truth" / "repeated.jsonl"):
        one, other = (tables[row["file"]][int(row[k].removeprefix("row ")) - 1] for k in ("place", "repeats"))
        assert (one == other) == (row["kind"] == "same")
        assert set(one[note].split()) & set(other[note].split())
        kinds[row["kind"]] += 1
    assert set(kinds) == {"same", "nearly the same"}


def test_files_that_are_cut_off_can_not_be_read(hospital):
    import docx
    from docx.opc.exceptions import PackageNotFoundError
    from pypdf import PdfReader
    from pypdf.errors import PyPdfError

    raw = hospital.path / "raw"
    with pytest.raises(ValueError, match=r"."):
        json.loads((raw / "fhir" / "damaged.json").read_text(encoding="utf-8", errors="replace"))
    with pytest.raises(PyPdfError):
        PdfReader(raw / "labs" / "damaged.pdf", strict=True)
    with pytest.raises(PackageNotFoundError):
        docx.Document(str(raw / "letters" / "damaged.docx"))
    assert (raw / "mail" / "empty.eml").read_bytes() == b""
    whole = {row["file"] for row in lines(hospital.path / "truth" / "broken.jsonl") if row["place"] == "whole file"}
    assert whole == {"fhir/damaged.json", "labs/damaged.pdf", "letters/damaged.docx", "mail/empty.eml"}


def test_two_files_are_in_older_encodings(hospital):
    old = (hospital.path / "raw" / "notes" / "archive.csv").read_bytes()
    assert len(old.decode("latin-1").splitlines()) > 2
    assert (hospital.path / "raw" / "wards" / "round.txt").read_bytes()[:2] in (b"\xff\xfe", b"\xfe\xff")


def test_ages_fit_birthdays_and_no_visit_comes_before_birth(hospital):
    born = {row["key"]: date.fromisoformat(row["born"]) for row in lines(hospital.path / "truth" / "patients.jsonl")}
    for visit in visits(hospital):
        day, birth = date.fromisoformat(visit["date"]), born[visit["patient_key"]]
        assert birth < day
        assert int(visit["age"]) == day.year - birth.year - ((day.month, day.day) < (birth.month, birth.day))


def test_the_card_counts_what_is_there_and_no_log_names_a_patient(hospital):
    card = (hospital.path / "README.md").read_text(encoding="utf-8")
    assert f"40 patients, {hospital.meta['encounters']} visits, {hospital.meta['files']} files" in card
    log = "".join(path.read_text(encoding="utf-8") for path in hospital.path.parent.rglob("log.jsonl"))
    names = {row["last"] for row in lines(hospital.path / "truth" / "patients.jsonl")}
    assert "40 invented patients" in log
    assert not names & set(re.findall(r"\w+", log + card))


def test_marks_come_out_as_spans_in_code_points():
    rows = []
    planted = Planted(rows.append)
    text = f"É {mark('name', 'Ana Ñ')}, {mark('age', 93)}".upper()
    assert unmark(text) == ("É ANA Ñ, 93", [(2, 7, "name"), (9, 11, "age")])
    assert planted.clean(text, "a.txt", "row 2", "note", "P1") == "É ANA Ñ, 93"
    assert [(row["text"], row["start"], row["place"], row["part"]) for row in rows] == [
        ("ANA Ñ", 2, "row 2", "note"),
        ("93", 9, "row 2", "note"),
    ]
    assert planted.counts == {"name": 1, "age": 1}
