"""The stage `get.example`: a made-up hospital to try everything on, its files as messy as real ones, the truth beside.

Nobody in it exists, and its medicine is invented. What is right in it is known: who is who, where every name stands,
which diagnosis, dose and triage follow from the rules, and which fact is missing.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Mapping
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from schoolhouse.core.artifact import Artifact, Draft
from schoolhouse.core.config import StageConfig
from schoolhouse.core.errors import RecipeError
from schoolhouse.get.hospital_guides import INVENTED

if TYPE_CHECKING:
    from schoolhouse.core.run import Run

RAW, TRUTH = "raw", "truth"
_NEEDS = {"faker": "faker", "docx": "python-docx", "pyarrow": "pyarrow"}  # module to package
_FOLDERS = {
    "notes": "notes as tables (`notes.csv`; `archive.csv` in Latin-1 with semicolons), a row a visit with its facts",
    "letters": "discharge letters, Word", "labs": "lab reports, PDF", "fhir": "FHIR R4 bundles, one a patient",
    "office": "registry, appointments (CSV), bills (Parquet)", "mail": "e-mails of staff and patients",
    "dialogues": "calls, in which the nurse asks for what is missing (JSON lines)",
    "wards": "the list of a ward round in UTF-16", "guidelines": "the rules, in Markdown; they name nobody",
}  # fmt: skip


class Config(StageConfig):
    """What `get.example` makes up."""

    kind: Literal["hospital"] = "hospital"  # what the example is about
    patients: int = Field(default=400, ge=20, le=50_000)  # how many people; each has one to six visits


def check(config: Config) -> None:
    """Raise RecipeError before anything starts if a package is missing that writes the files."""
    for module, package in _NEEDS.items():
        if importlib.util.find_spec(module) is None:
            raise RecipeError(f"get.example needs {package}: pip install 'schoolhouse[prepare]'")


def fingerprint(config: Config) -> str:
    """What the files depend on beside the recipe: the releases of the packages that draw names and write files."""
    releases = " ".join(f"{package} {version(package)}" for package in _NEEDS.values())
    return hashlib.sha256(releases.encode()).hexdigest()


def run(config: Config, inputs: Mapping[str, Artifact], run: Run, out: Draft) -> None:
    """Write the files into `raw`, the truth into `truth`, and the data card."""
    from schoolhouse.get.hospital import write_hospital

    counts = write_hospital(out.path / RAW, out.path / TRUTH, run.seed, config.patients)
    out.meta.update(counts, licence="Apache-2.0", kind=config.kind)
    (out.path / "README.md").write_text(_card(config, counts, run.seed), encoding="utf-8")
    run.log.info(
        f"{counts['patients']:,} invented patients, {counts['encounters']:,} visits, {counts['files']} files, "
        f"{sum(counts['planted'].values()):,} personal values planted"
    )


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
