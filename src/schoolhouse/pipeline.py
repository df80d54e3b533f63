"""Runs a recipe: checks everything first, skips what exists, resumes what was cut off, and keeps the books."""

import contextlib
import importlib
import json
import shutil
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from rich import box
from rich.table import Table

from schoolhouse import __version__
from schoolhouse.core.artifact import Artifact, Draft, Store, artifact_id, lock_file, say_when_full
from schoolhouse.core.config import (
    RecipeSource,
    StageConfig,
    did_you_mean,
    format_duration,
    load_recipe,
    references,
)
from schoolhouse.core.errors import BudgetError, MachineError, SchoolhouseError, Stopped
from schoolhouse.core.ledger import Ledger
from schoolhouse.core.log import Log, clock
from schoolhouse.core.machine import available_memory_bytes
from schoolhouse.core.meter import Meter
from schoolhouse.core.run import Run, stop_on_signals
from schoolhouse.get.lineage import inherit
from schoolhouse.text import redaction

STAGES: Mapping[str, str] = {
    "get": "schoolhouse.get.hub",
    "get.replies": "schoolhouse.get.replies",
    "get.example": "schoolhouse.get.example",
    "get.text": "schoolhouse.get.text",
    "get.tagger": "schoolhouse.get.tagger",
    "prepare.tokenizer": "schoolhouse.prepare.tokenizer",
    "prepare.pack": "schoolhouse.prepare.pack",
    "prepare.traces": "schoolhouse.prepare.traces",
    "prepare.ratings": "schoolhouse.prepare.ratings",
    "prepare.read": "schoolhouse.prepare.read",
    "prepare.redact": "schoolhouse.prepare.redact",
    "prepare.clean": "schoolhouse.prepare.clean",
    "prepare.coverage": "schoolhouse.prepare.coverage",
    "prepare.ontology": "schoolhouse.prepare.ontology",
    "prepare.annotate": "schoolhouse.prepare.annotate",
    "prepare.canaries": "schoolhouse.prepare.canaries",
    "prepare.synthesize": "schoolhouse.prepare.synthesize",
    "prepare.lessons": "schoolhouse.prepare.lessons",
    "train.pretrain": "schoolhouse.train.pretrain",
    "train.sft": "schoolhouse.train.sft",
    "train.grpo": "schoolhouse.train.grpo",
    "train.sample": "schoolhouse.train.sample",
    "train.reward": "schoolhouse.train.reward",
    "train.prefer": "schoolhouse.train.prefer",
    "train.record": "schoolhouse.train.record",
    "train.distill": "schoolhouse.train.distill",
    "compress.prune": "schoolhouse.compress.prune",
    "compress.latent": "schoolhouse.compress.latent",
    "compress.average": "schoolhouse.compress.average",
    "compress.upcycle": "schoolhouse.compress.upcycle",
    "compress.quantize": "schoolhouse.compress.quantize",
    "compress.gguf": "schoolhouse.compress.export",
    "evaluate.exam": "schoolhouse.evaluate.exam",
    "evaluate.gate": "schoolhouse.evaluate.gate",
    "evaluate.probe": "schoolhouse.evaluate.probe",
    "evaluate.review": "schoolhouse.evaluate.review",
    "evaluate.report": "schoolhouse.evaluate.report",
}
"""The stages that a recipe may name with `run = "..."`, and the modules behind them.

Such a module has `class Config(StageConfig)` and `run(config, inputs, run, out)`; and, where it makes sense,
`check(config)` (raise early), `fingerprint(config) -> str` (what the result depends on outside of the recipe, like the
bytes of a file), `memory_bytes(config, inputs_meta) -> int`, and `CLOSES = True` for a stage of moments that is run
even when the recipe's time is spent: what was done must be told.
"""


PAGES = {"review.html": "redacted texts to look through", "sheet.html": "replies to mark", "report.html": "report"}
"""Files of stages that people open, and what they are; a recipe's folder has the latest."""


@dataclass(frozen=True)
class PlannedStage:
    """One stage with everything decided: its settings, what it reads, and the id that its result will have."""

    name: str
    kind: str
    module: ModuleType
    config: StageConfig
    inputs: Mapping[str, str]  # name of an earlier stage -> id of its artifact
    id: str
    share_s: float | None  # its part of the recipe's time


@dataclass(frozen=True)
class Plan:
    """A whole recipe, checked."""

    source: RecipeSource
    stages: tuple[PlannedStage, ...]

    @property
    def budget_s(self) -> float | None:
        """The seconds that all stages together may take."""
        return self.source.recipe.budget.time


@dataclass
class _Job:
    """What stays the same from the first stage of a run to the last."""

    plan: Plan
    home: Path
    store: Store
    ledger: Ledger
    run_id: str
    log: Log
    interrupted: threading.Event = field(default_factory=threading.Event)
    done: dict[str, Artifact] = field(default_factory=dict)
    made: set[str] = field(default_factory=set)

    def spent_s(self) -> float:
        """Seconds that the finished stages of this recipe took, whenever they ran."""
        return sum(float(artifact.meta.get("meter", {}).get("seconds", 0)) for artifact in self.done.values())

    @property
    def folder(self) -> Path:
        """The folder that belongs to this recipe's name."""
        return self.home / self.plan.source.recipe.name


def run_recipe(
    path: Path,
    overrides: Sequence[str] = (),
    home: Path = Path("runs"),
    dry_run: bool = False,
    stages: Mapping[str, str] = STAGES,
) -> dict[str, Artifact]:
    """Run every stage of a recipe that does not exist yet and return all artifacts by stage name.

    With `dry_run` only the plan is printed. Raises `RecipeError`, `MachineError` and the like before anything starts,
    `BudgetError` if the time is spent before a needed stage, `Stopped` after Ctrl-C; the same call then goes on.
    """
    return run_plan(plan_recipe(load_recipe(path, overrides), stages), home, dry_run)


def plan_recipe(source: RecipeSource, stages: Mapping[str, str] = STAGES) -> Plan:
    """Check every value of a recipe and work out the id of every result; raises `RecipeError` with the line."""
    recipe = source.recipe
    shares = [entry.share for entry in recipe.stages if entry.share is not None]
    if shares and recipe.budget.time is None:
        at = next(i for i, entry in enumerate(recipe.stages) if entry.share is not None)
        raise source.error('a share needs a budget to share: add budget = { time = "25m" }', ("stage", at, "share"))
    if sum(shares) > 1 + 1e-9:
        raise source.error(f"the shares of the stages add up to {sum(shares):g}, more than 1", ("budget",))
    planned: dict[str, PlannedStage] = {}
    for index, entry in enumerate(recipe.stages):
        if entry.run not in stages:
            known = did_you_mean(entry.run, stages)
            raise source.error(f"stage {entry.name!r}: there is no stage {entry.run!r}{known}", ("stage", index, "run"))
        module = importlib.import_module(stages[entry.run])
        config: StageConfig = source.configure(index, module.Config)
        planned[entry.name] = _plan_stage(source, index, module, config, planned)
    return Plan(source, tuple(planned.values()))


def _plan_stage(
    source: RecipeSource, index: int, module: ModuleType, config: StageConfig, before: Mapping[str, PlannedStage]
) -> PlannedStage:
    recipe, entry = source.recipe, source.recipe.stages[index]
    inputs = {}
    for name in references(config):
        if name not in before:
            later = name in {other.name for other in recipe.stages}
            what = (
                f"the stage {name!r} comes later; a stage can only read what is above it"
                if later
                else f"there is no stage {name!r} above it{did_you_mean(name, before)}"
            )
            raise source.error(f"stage {entry.name!r}: {what}", ("stage", index, *_key_of(entry.settings, name)))
        inputs[name] = before[name].id
    decides: dict[str, Any] = {"config": config.model_dump(mode="json")}
    try:
        if hasattr(module, "check"):
            module.check(config)
        if hasattr(module, "fingerprint"):
            decides["fingerprint"] = module.fingerprint(config)
    except SchoolhouseError as error:
        place = source.error(f"stage {entry.name!r}", ("stage", index))
        raise type(error)(f"{place}: {error}") from error
    share_s = None
    if entry.share is not None and recipe.budget.time is not None:
        share_s = entry.share * recipe.budget.time
        decides["share_s"] = share_s  # what is done in five minutes is another result than what is done in fifty
    id = artifact_id(entry.run, decides, list(inputs.values()), recipe.seed)
    return PlannedStage(entry.name, entry.run, module, config, inputs, id, share_s)


def _key_of(settings: Mapping[str, Any], name: str) -> tuple[str, ...]:
    """Find the setting that holds a stage's name, for the line in an error."""
    return next(((key,) for key, value in settings.items() if name == value or name in _flat(value)), ())


def _flat(value: Any) -> list[Any]:
    return list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []


def run_plan(plan: Plan, home: Path, dry_run: bool = False) -> dict[str, Artifact]:
    """Run a checked recipe; see `run_recipe`."""
    recipe = plan.source.recipe
    if recipe.name in ("store", "scratch", "cache"):
        raise plan.source.error(f"a recipe cannot be called {recipe.name!r}: that folder has another use", ("name",))
    store = Store(home / "store")
    if dry_run:
        Log().result(_plan_table(plan, store, home))
        return {}
    with say_when_full(home):
        folder = home / recipe.name
        folder.mkdir(parents=True, exist_ok=True)
        log = Log(recipe.name, folder / "log.jsonl")
        ledger = Ledger(f"sqlite:///{home / 'ledger.sqlite'}")
        run_id = ledger.start_run(recipe.name, recipe.seed, recipe.dump(), __version__)
        job = _Job(plan, home, store, ledger, run_id, log)
        status = "failed"
        try:
            with stop_on_signals(job.interrupted):
                _run_stages(job)
            status = "done"
        except (Stopped, KeyboardInterrupt):
            status = "stopped"
            again = "stopped; what was done is kept, and the same command goes on from there"
            log.warn(again)
            raise Stopped(again) from None
        except BudgetError:
            status = "budget spent"
            raise
        finally:
            ledger.end_run(run_id, status, plan.budget_s, job.spent_s())
        _finish(job)
    return job.done


def _run_stages(job: _Job) -> None:
    plan, store = job.plan, job.store
    (job.folder / "recipe.toml").write_text(plan.source.recipe.dump(), encoding="utf-8")
    exists = {stage.id: found for stage in plan.stages if (found := store.get(stage.id)) is not None}
    for stage in plan.stages:
        if stage.id not in exists:
            _need_memory(stage, {name: exists[id] for name, id in stage.inputs.items() if id in exists})
    for stage in plan.stages:
        if job.interrupted.is_set():
            raise Stopped(f"stopped before the stage {stage.name!r}")
        scratch = job.home / "scratch" / stage.id
        scratch.parent.mkdir(parents=True, exist_ok=True)
        # The lock covers making and booking: of two processes one makes and books, the other finds both done.
        with lock_file(scratch.with_suffix(".lock"), _waiting(job, stage)):
            artifact = exists.get(stage.id) or store.get(stage.id) or _make(job, stage, scratch)
            _book(job, stage, artifact)
            shutil.rmtree(scratch, ignore_errors=True)
        job.done[stage.name] = artifact
        _write_latest(job)


def _make(job: _Job, stage: PlannedStage, scratch: Path) -> Artifact:
    """Run one stage and return its finished artifact."""
    recipe = job.plan.source.recipe
    is_resumed = scratch.is_dir()
    scratch.mkdir(exist_ok=True)
    log = Log(stage.name, job.folder / "log.jsonl")
    meter = Meter(recipe.machine, scratch / "meter.json")
    limit_s = _limit_s(job, stage, meter.seconds)
    has_share = stage.share_s is not None
    run = Run(stage.name, recipe.seed, scratch, log, meter, recipe.machine, limit_s, has_share, job.interrupted)
    log.seconds_left = run.seconds_left
    inputs = {name: job.done[name] for name in stage.inputs}
    _need_memory(stage, inputs)
    so_far = f", resumed after {clock(meter.seconds)}" if is_resumed else ""
    log.info(f"{stage.kind} starts{so_far}" + (f", at most {clock(limit_s - meter.seconds)}" if limit_s else ""))
    with job.store.create(stage.id, stage.kind, list(stage.inputs.values())) as draft:
        try:
            with log.heartbeat(lambda: meter.phase_now), _plain_errors(stage):
                if stage.kind.startswith("train."):
                    redaction.gate(artifact.meta for artifact in job.store.lineage(stage.inputs.values()))
                stage.module.run(stage.config, inputs, run, draft)
        finally:
            meter.save()
        _describe(job, stage, run, draft)
        inherit(inputs, draft, stage.kind, f"{recipe.name}: {stage.name}")
    if "runtime" in vars(run):
        from schoolhouse.core.runtime import release_memory

        release_memory()
    artifact = job.store.get(stage.id)
    assert artifact is not None, "create() leaves an artifact behind or raises"
    job.made.add(stage.name)
    log.info(f"done in {clock(meter.seconds)}, artifact {stage.id}")
    return artifact


def _describe(job: _Job, stage: PlannedStage, run: Run, draft: Draft) -> None:
    recipe = job.plan.source.recipe
    draft.meta |= {
        "stage": stage.name,
        "recipe": recipe.name,
        "seed": recipe.seed,
        "config": stage.config.model_dump(mode="json"),
        "inputs": dict(stage.inputs),
        "schoolhouse": __version__,
        "made_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "meter": run.meter.summary(),
    }
    if "runtime" in vars(run):  # found out only if the stage asked for it
        from schoolhouse.kernels.native import status

        draft.meta["runtime"] = run.runtime.describe() | {"kernels": status()}


def _limit_s(job: _Job, stage: PlannedStage, own_s: float) -> float | None:
    """Return the seconds that this stage may use in all.

    A share gives way to stages that took long before it and to the shares after it; a stage without a share takes what
    it needs. Raises `BudgetError` if none of the recipe's time is left.
    """
    budget_s = job.plan.budget_s
    if budget_s is None:
        return None
    left_s = budget_s - job.spent_s()
    if getattr(stage.module, "CLOSES", False):
        return None
    if left_s <= own_s:
        spent = clock(job.spent_s() + own_s)
        raise BudgetError(
            f"the time of the recipe is spent ({spent} of {clock(budget_s)}) and the stage {stage.name!r} is still to "
            f"be run. Grant more, for example --set budget.time={format_duration(budget_s * 2)}: what was done is "
            "kept, but a stage that has a share of the time is done anew with its larger share."
        )
    if stage.share_s is None:
        return left_s
    later = job.plan.stages[job.plan.stages.index(stage) + 1 :]
    promised_s = sum(other.share_s or 0.0 for other in later if other.name not in job.done)
    return min(max(0.0, left_s - promised_s), stage.share_s)


def _need_memory(stage: PlannedStage, inputs: Mapping[str, Artifact]) -> None:
    """Raise `MachineError` if the stage says that it needs more memory than is free."""
    if not hasattr(stage.module, "memory_bytes"):
        return
    needed = stage.module.memory_bytes(stage.config, {name: artifact.meta for name, artifact in inputs.items()})
    free = available_memory_bytes()
    if needed > free:
        raise MachineError(
            f"stage {stage.name!r} ({stage.kind}) needs about {needed / 2**30:.1f} GiB of memory, and "
            f"{free / 2**30:.1f} GiB are free. Close other programs, or choose smaller values (batch, context, "
            "model) in the recipe."
        )


@contextlib.contextmanager
def _plain_errors(stage: PlannedStage) -> Iterator[None]:
    """Name the stage in every error that the user can cure, and turn "out of memory" into one of them."""
    try:
        yield
    except Stopped:
        raise
    except SchoolhouseError as error:
        raise type(error)(f"stage {stage.name!r}: {error}") from error
    except (MemoryError, RuntimeError) as error:
        words = str(error)
        if isinstance(error, MemoryError) or "can't allocate memory" in words or "out of memory" in words:
            raise MachineError(
                f"stage {stage.name!r} ran out of memory ({available_memory_bytes() / 2**30:.1f} GiB are free now). "
                "Choose smaller values (batch, context, model) in the recipe; the same command goes on from what "
                "was saved."
            ) from error
        raise


def _waiting(job: _Job, stage: PlannedStage) -> Any:
    """Return a function that says now and then that another process is making the same artifact."""
    said_at = [0.0]

    def say() -> None:
        if job.interrupted.is_set():
            raise Stopped("stopped while waiting for another process")
        if time.monotonic() - said_at[0] > 30:
            said_at[0] = time.monotonic()
            job.log.info(f"another process is making {stage.name!r} ({stage.id}); waiting for it")

    return say


def _book(job: _Job, stage: PlannedStage, artifact: Artifact) -> None:
    """Write the stage into the ledger; one that was made just before a kill is booked by the run that finds it."""
    is_new = stage.name in job.made or not job.ledger.is_booked(artifact.id)
    job.ledger.add_stage(
        job.run_id,
        stage.name,
        stage.kind,
        artifact.id,
        inputs=stage.inputs,
        config=stage.config.model_dump(mode="json"),
        status="made" if is_new else "kept",
        figures=artifact.meta.get("meter", {}) if is_new else None,
    )


def _write_latest(job: _Job) -> None:
    names = {name: artifact.id for name, artifact in job.done.items()}
    part = job.folder / "latest.json.part"
    part.write_text(json.dumps(names, indent=1) + "\n")
    part.replace(job.folder / "latest.json")


def _finish(job: _Job) -> None:
    """Put what people look at beside the log and print the table."""
    job.log.result(_result_table(job))
    for artifact in job.done.values():
        for name, what in PAGES.items():
            if name in artifact.manifest["files"]:
                shutil.copyfile(artifact.file(name), job.folder / name)
                job.log.result(f"{what}: {job.folder / name}")


def _result_table(job: _Job) -> Table:
    title = f"{job.plan.source.recipe.name}, seed {job.plan.source.recipe.seed}"
    table = Table(title=title, title_justify="left", caption_justify="left", box=box.SIMPLE_HEAD, show_edge=False)
    table.add_column("stage", style="bold cyan", no_wrap=True)
    table.add_column("", no_wrap=True)
    for column in ("time", "tokens", "memory", "energy", "cost"):
        table.add_column(column, justify="right", no_wrap=True)
    if job.log.width >= 100:
        table.add_column("artifact", style="dim", no_wrap=True)
    rows = [(stage, job.done[stage.name]) for stage in job.plan.stages]
    meters = [artifact.meta.get("meter", {}) for _, artifact in rows]
    for (stage, artifact), meter in zip(rows, meters, strict=True):
        how = "made" if stage.name in job.made else "kept"
        row = (stage.name, how, *_figures(meter), artifact.id)
        table.add_row(*row[: len(table.columns)], end_section=stage is rows[-1][0])
    total = {key: sum(meter.get(key, 0) for meter in meters) for key in ("seconds", "tokens", "energy_wh", "cost")}
    total["peak_rss_bytes"] = max(meter.get("peak_rss_bytes", 0) for meter in meters)
    last = meters[-1]
    table.add_row("all", "", *_figures(total | {"currency": last.get("currency", "")}))
    table.caption = f"energy {last.get('energy_source')}; cost {last.get('cost_source')}"
    return table


def _figures(meter: Mapping[str, Any]) -> list[str]:
    return [
        clock(meter.get("seconds", 0)),
        f"{meter.get('tokens', 0):,}",
        f"{meter.get('peak_rss_bytes', 0) / 2**30:.2f} GiB",
        f"{meter.get('energy_wh', 0):.2f} Wh",
        f"{meter.get('cost', 0):.4f} {meter.get('currency', '')}",
    ]


def _plan_table(plan: Plan, store: Store, home: Path) -> Table:
    budget = "no time budget" if plan.budget_s is None else f"{clock(plan.budget_s)} in all"
    table = Table(
        title=f"{plan.source.recipe.name}: what would run ({budget})", title_justify="left", box=box.SIMPLE_HEAD
    )
    for column in ("stage", "run", "now", "at most", "artifact", "settings"):
        table.add_column(column, overflow="fold", no_wrap=column in ("stage", "run", "now", "artifact"))
    for stage in plan.stages:
        half = (home / "scratch" / stage.id).is_dir()
        now = "exists" if store.get(stage.id) else "to be resumed" if half else "to be made"
        limit = "" if stage.share_s is None else clock(stage.share_s)
        settings = ", ".join(f"{key}={value!r}" for key, value in stage.config.model_dump(mode="json").items())
        table.add_row(stage.name, stage.kind, now, limit, stage.id, settings)
    return table
