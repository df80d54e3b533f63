"""The stage `evaluate.report`: what was learnt, in one page that a director and an engineer can both read.

One HTML file without outside requests, the same numbers as report.json, and a table on stdout. It says first whether
the recipe's claim holds; a failure is never hidden.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup
from pydantic import Field
from rich.table import Table
from rich.text import Text

from schoolhouse.core.artifact import Artifact, Draft
from schoolhouse.core.config import Ref, StageConfig
from schoolhouse.core.errors import ArtifactError
from schoolhouse.core.run import Run
from schoolhouse.evaluate import ablation, page, review
from schoolhouse.evaluate.ablation import Ablation
from schoolhouse.evaluate.compare import mean_of_levels, share
from schoolhouse.evaluate.exam import EXAM, ITEMS, TRANSCRIPTS
from schoolhouse.evaluate.probe import PROBE
from schoolhouse.evaluate.probing import card as probe_card
from schoolhouse.evaluate.probing.leak import MODEL
from schoolhouse.evaluate.verdict import Claim, Verdict, judge

CLOSES = True  # the pipeline makes the report even when the recipe's time is spent
REPORT, REPORT_JSON = "report.html", "report.json"
_TEMPLATE = "report.html.j2"


class Config(StageConfig):
    """The exam to report on, the stages that led to it (`runs`: curves, costs and hashes), what is claimed, and what
    else was found out about the model.
    """

    exam: Ref
    runs: list[Ref] = Field(default=[])
    claim: Claim | None = None
    ablations: list[Ablation] = Field(default=[])  # models beside others that were taught without one part, see below
    probe: Ref | None = None  # a stage evaluate.probe: what a model leaks, how it treats groups, what it refuses
    review: Ref | None = None  # a stage evaluate.review: what experts say of a model's replies
    title: str = Field(default="What the model learned", min_length=1, max_length=120)


@dataclass(frozen=True)
class Evidence:
    """Everything that the page is drawn from."""

    title: str
    exam: Mapping[str, Any]
    items: Sequence[Mapping[str, Any]]
    transcripts: Sequence[Mapping[str, Any]]
    stages: Mapping[str, Artifact]
    claim: Claim | None
    verdict: Verdict | None
    ablations: Sequence[ablation.Found] = ()
    probe: Mapping[str, Any] | None = None
    review: Mapping[str, Any] | None = None

    @property
    def subject(self) -> str:
        """The model that the page is about: the claimed one, else the last of the exam."""
        names = [name for name in self.exam["models"] if name not in self.exam.get("int8_cache", {})]
        return self.claim.better if self.claim and self.claim.better in names else names[-1]


def check(config: Config) -> None:
    """Raise RecipeError before anything starts for ablations that compare nothing."""
    ablation.check(config.ablations)


def run(config: Config, inputs: Mapping[str, Artifact], run: Run, out: Draft) -> None:
    """Write report.html and report.json, and print the table, the verdict and what else was found.

    Raises RecipeError for an ablation's model that did not sit the exam, ArtifactError for a stage of another kind.
    """
    evidence = gather(config, inputs)
    accuracy = accuracy_rows(evidence.exam)
    verdict = evidence.verdict
    facts = {
        "title": config.title,
        "verdict": verdict.to_json() if verdict else None,
        "accuracy": accuracy,
        "ablations": [found.to_json() for found in evidence.ablations],
        "probe": evidence.probe,
        "review": evidence.review,
        "stages": {name: _stage_facts(artifact) for name, artifact in evidence.stages.items()},
        "exam": {key: value for key, value in evidence.exam.items() if key != "models"},
    }
    (out.path / REPORT_JSON).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    (out.path / REPORT).write_text(render(evidence), encoding="utf-8")
    out.meta |= {"claim_met": verdict.met if verdict else None, "sentence": verdict.sentence if verdict else None}
    out.meta |= {"ablations": facts["ablations"]}
    run.log.result(accuracy_table(evidence.exam))
    if verdict:
        run.log.result(verdict_table(verdict))
        run.log.result(("CLAIM MET: " if verdict.met else "CLAIM FAILED: ") + verdict.sentence)
    for line in _said(evidence):
        run.log.result(line)


def _said(evidence: Evidence) -> Iterator[str]:
    """What stands on the page beside the exam, a line each."""
    yield from (found.sentence for found in evidence.ablations)
    if evidence.probe is not None:
        yield f"probe of {evidence.probe['models'][MODEL]['name']}: {' '.join(probe_card.verdict(evidence.probe))}"
    if evidence.review is not None:
        yield from (f"experts on {evidence.review['model']}: {line}" for line in review.sentences(evidence.review))


def gather(config: Config, inputs: Mapping[str, Artifact]) -> Evidence:
    """Read what the exam, the probe and the review wrote, judge the claim and weigh the ablations.

    Raises ArtifactError for an artifact that is none of these, RecipeError for a model that did not sit the exam.
    """
    source = inputs[config.exam]
    exam = json.loads(source.file(EXAM).read_text(encoding="utf-8"))
    ablation.check_names(config.ablations, exam, config.exam)
    others = {
        name: json.loads(inputs[stage].file(name).read_text(encoding="utf-8"))
        for stage, name in ((config.probe, PROBE), (config.review, review.REVIEW)) if stage is not None
    }  # fmt: skip
    items = read_lines(source.file(ITEMS))
    return Evidence(
        config.title, exam, items, read_lines(source.file(TRANSCRIPTS)), inputs, config.claim,
        judge(config.claim, exam, items) if config.claim else None,
        [ablation.weigh(one, items) for one in config.ablations], others.get(PROBE), others.get(review.REVIEW),
    )  # fmt: skip


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a file with one JSON object a line. Raises ArtifactError that names the line that is none."""
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            rows.append(json.loads(line))
        except ValueError:
            raise ArtifactError(
                f"{path}, line {number}: no JSON; run the recipe again to make this file anew"
            ) from None
    return rows


def render(evidence: Evidence) -> str:
    """The page as HTML. Text of models and tasks is escaped; only our own charts are put in as they are."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    source = (resources.files("schoolhouse.evaluate") / _TEMPLATE).read_text(encoding="utf-8")
    view = page.build(evidence)
    for figure in page.figures(view):
        figure["svg"] = Markup(figure["svg"])  # charts.py escapes every string that it draws
    return environment.from_string(source).render(**view)


def accuracy_rows(exam: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row for each model, mode, task and level with its share and 95% interval; "mean" weighs levels alike."""
    rows = []
    for model, by_mode in exam["models"].items():
        for mode, by_task in by_mode.items():
            for task, by_level in by_task.items():
                place = {"model": model, "mode": mode, "task": task}
                for level, counts in by_level.items():
                    found = share(counts["correct"], counts["n"])
                    rows.append(place | {"level": level, "accuracy": found.value, "interval": found.interval} | counts)
                if by_level:
                    mean = mean_of_levels([(c["correct"], c["n"]) for c in by_level.values()])
                    rows.append(
                        place | {"level": "mean", "accuracy": mean.value, "interval": mean.interval, "n": mean.n}
                    )
    return rows


def accuracy_table(exam: Mapping[str, Any]) -> Table:
    """The shares of right answers with their 95% intervals, a line for each task, mode and level."""
    models = list(exam["models"])
    table = Table(title="right answers on held-out questions, % (95% interval)", title_justify="left", expand=False)
    for name in ("task", "reply", "level"):
        table.add_column(name, no_wrap=True)
    for name in models:
        table.add_column(name, justify="right")
    by_place: dict[tuple[str, str, str], dict[str, dict[str, Any]]] = {}
    for row in accuracy_rows(exam):
        by_place.setdefault((row["task"], row["mode"], row["level"]), {})[row["model"]] = row
    order = {name: number for number, name in enumerate(exam["tasks"])}
    last = None
    for place, found in sorted(by_place.items(), key=lambda entry: (order[entry[0][0]], entry[0][1] != "thinking")):
        if last is not None and last != place[:2]:
            table.add_section()
        last = place[:2]
        cells = [_cell(found.get(model)) for model in models]
        table.add_row(*(Text(part) for part in place), *cells, style="bold" if place[2] == "mean" else None)
    return table


def _cell(row: Mapping[str, Any] | None) -> Text:
    if row is None:
        return Text("-")
    low, high = row["interval"]
    return Text(f"{100 * row['accuracy']:.0f} ({100 * low:.0f}-{100 * high:.0f})")


def verdict_table(verdict: Verdict) -> Table:
    """The checks of a claim, one a line."""
    title = f"claim: {verdict.better}, {verdict.control_note}"
    table = Table(title=title, title_justify="left")
    for name in ("check", verdict.better, "best control", "gain", "wanted", "holds"):
        table.add_column(name)
    for check in verdict.checks:
        view = page.check_view(check)
        gain = f"{view['gain']} ({view['gain_ends']})" if view["gain_ends"] else view["gain"]
        better = f"{view['better']} ({view['better_ends']})"
        control = f"{view['control']} ({view['control_ends']}) {view['control_name']}"
        holds = "yes" if check.met else f"NO: {check.reason}"
        table.add_row(*map(Text, (view["what"], better, control, gain, view["wanted"], holds)))
    return table


def _stage_facts(artifact: Artifact) -> dict[str, Any]:
    files = {name: facts["sha256"] for name, facts in artifact.manifest["files"].items()}
    return {
        "id": artifact.id,
        "kind": artifact.kind,
        "parents": artifact.parents,
        "meter": dict(artifact.meta.get("meter", {})),
        "files": files,
    }
