"""The stage `get.example`: a made-up hospital, town hall or classroom to try everything on, with the truth beside it.

Nobody in it exists, its files are as messy as real ones, and its medicine, rules and marks are invented. What is right
in it is known: who is who, where every name stands, and which answer follows from the rules.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from schoolhouse.core.artifact import Artifact, Draft
from schoolhouse.core.config import StageConfig
from schoolhouse.core.errors import RecipeError
from schoolhouse.get.hospital_guides import INVENTED

if TYPE_CHECKING:
    from schoolhouse.core.run import Run

RAW, TRUTH = "raw", "truth"
_NEEDS: dict[str, dict[str, str]] = {  # of each kind: module to package
    "hospital": {"faker": "faker", "docx": "python-docx", "pyarrow": "pyarrow"},
    "townhall": {"faker": "faker", "docx": "python-docx"},
    "classroom": {},
}
_COUNTS = {"hospital": "patients", "townhall": "people", "classroom": "people"}  # the key that says how many
_FOLDERS = {
    "notes": "notes as tables (`notes.csv`; `archive.csv` in Latin-1 with semicolons), a row a visit with its facts",
    "letters": "discharge letters, Word", "labs": "lab reports, PDF", "fhir": "FHIR R4 bundles, one a patient",
    "office": "registry, appointments (CSV), bills (Parquet)", "mail": "e-mails of staff and patients",
    "dialogues": "calls, in which the nurse asks for what is missing (JSON lines)",
    "wards": "the list of a ward round in UTF-16", "guidelines": "the rules, in Markdown; they name nobody",
}  # fmt: skip


class Config(StageConfig):
    """What `get.example` makes up."""

    kind: Literal["hospital", "townhall", "classroom"] = "hospital"  # what the example is about
    patients: int = Field(default=400, ge=20, le=50_000)  # of a hospital: each has one to six visits
    people: int = Field(default=300, ge=20, le=50_000)  # citizens of a town hall, or pupils of a classroom


def check(config: Config) -> None:
    """Raise RecipeError before anything starts for a key of another kind, or a package that is missing."""
    own = _COUNTS[config.kind]
    for key in sorted(set(_COUNTS.values()) - {own}):
        if key in config.model_fields_set:
            raise RecipeError(f"{key} is set, and a {config.kind} has none: write {own} instead.")
    for module, package in _NEEDS[config.kind].items():
        if importlib.util.find_spec(module) is None:
            raise RecipeError(f"get.example needs {package}: pip install 'schoolhouse[prepare]'")


def fingerprint(config: Config) -> str:
    """What the files depend on beside the recipe: the releases of the packages that draw names and write files."""
    releases = " ".join(f"{package} {version(package)}" for package in _NEEDS[config.kind].values())
    return hashlib.sha256(releases.encode()).hexdigest()


def run(config: Config, inputs: Mapping[str, Artifact], run: Run, out: Draft) -> None:
    """Write the files into `raw`, the truth into `truth`, and the data card."""
    counts, card, said = _made(config, out.path / RAW, out.path / TRUTH, run.seed)
    out.meta.update(counts, licence="Apache-2.0", kind=config.kind)
    (out.path / "README.md").write_text(card, encoding="utf-8")
    run.log.info(f"{said}, {counts['files']} files, {sum(counts['planted'].values()):,} personal values planted")


def _made(config: Config, raw: Path, truth: Path, seed: int) -> tuple[dict[str, Any], str, str]:
    """Write the files of a kind; what was counted, the data card, and the beginning of a line for the log."""
    if config.kind == "townhall":
        from schoolhouse.get import townhall

        counts = townhall.write_townhall(raw, truth, seed, config.people)
        said = f"{counts['people']:,} invented citizens, {counts['requests']:,} requests"
        return counts, townhall.card(counts, seed), said
    if config.kind == "classroom":
        from schoolhouse.get import classroom

        counts = classroom.write_classroom(raw, truth, seed, config.people)
        said = f"{counts['people']:,} invented pupils, {counts['exercises']:,} exercises"
        return counts, classroom.card(counts, seed), said
    from schoolhouse.get.hospital import write_hospital

    counts = write_hospital(raw, truth, seed, config.patients)
    said = f"{counts['patients']:,} invented patients, {counts['encounters']:,} visits"
    return counts, _card(config, counts, seed), said


def _card(config: Config, counts: Mapping[str, Any], seed: int) -> str:
    folders = [f"| `{RAW}/{name}` | {counts['by_folder'].get(name, 0)} | {what} |" for name, what in _FOLDERS.items()]
    return "\n".join(
        [
            f"# An example {config.kind}",
            "",
            INVENTED,
            "",
            "All people are made up by Faker. Telephone numbers, social security numbers and mail domains are from",
            "ranges that belong to nobody; a name may still be somebody's by chance.",
            "",
            f"{counts['patients']:,} patients, {counts['encounters']:,} visits, {counts['files']} files, "
            f"{counts['bytes'] / 1e6:.1f} MB, seed {seed}.",
            "",
            "| Folder | Files | What |",
            "|---|---|---|",
            *folders,
            "",
            f"## The truth, in `{TRUTH}`",
            "",
            "- `patients.jsonl`, `staff.jsonl`: who is who",
            "- `encounters.jsonl`: every visit with all facts, those that were written down, and what follows",
            "- `spans.jsonl`: every personal value that was planted, with file, place, part, start and end",
            "- `broken.jsonl`: rows and files that cannot be read",
            "- `repeated.jsonl`: rows that stand there twice, or nearly",
            "- `rules.json`: findings, thresholds and doses, as in the guidelines",
            "",
            f"Not told in `spans.jsonl`: what is left in the {counts['broken']} broken places, and the keys of",
            "patients and visits, which are in every row and name of a file.",
            "",
            *_table("Personal values", counts["planted"]),
            *_table("Conditions", counts["conditions"]),
            *_table("Triage by what is known", counts["triage"]),
            *_table("Missing facts", counts["missing"]),
            "## Who is in it",
            "",
            "The groups are unequal on purpose: the small ones are too few to tell anything of.",
            "",
            *_table("Sex of patients", counts["sex"]),
            *_table("Ethnicity of patients", counts["ethnicity"]),
            *_table("Language of patients", counts["language"]),
            *_table("Age at the visit", counts["age_group"]),
        ]
    )


def _table(title: str, counts: Mapping[str, int]) -> list[str]:
    return [f"| {title} | Count |", "|---|---|", *(f"| {name} | {n:,} |" for name, n in counts.items()), ""]
