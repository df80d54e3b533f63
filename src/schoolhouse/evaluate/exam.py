"""The stage `evaluate.exam`: the same held-out questions for every model, with and without thinking.

Questions depend on the seed, the task and the level only, so that models are compared pair by pair. Replies are greedy.
Each model in each mode is one unit of work: all of its questions go to the engine at once, and its results lie on disk
before the next unit starts, so that a stopped exam goes on with the unit it was at.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from schoolhouse.core.artifact import Artifact, Draft
from schoolhouse.core.config import Ref, StageConfig, did_you_mean
from schoolhouse.core.errors import RecipeError, Stopped, TaskError
from schoolhouse.core.run import Run
from schoolhouse.core.runtime import release_memory
from schoolhouse.infer.engine import Completion, Engine
from schoolhouse.infer.sampler import Sampling
from schoolhouse.kernels.native import status
from schoolhouse.model.transformer import Transformer
from schoolhouse.model.weights import load_model
from schoolhouse.tasks.load import TaskSpec, complaints, is_open, load_tasks, name_of, tasks_at_hand
from schoolhouse.tasks.load import fingerprint as fingerprint_of
from schoolhouse.tasks.task import Example, Task
from schoolhouse.text.chat import ChatFormat
from schoolhouse.text.records import write_rows

EXAM, ITEMS, TRANSCRIPTS = "exam.json", "items.jsonl", "transcripts.jsonl"
ALL_REPLIES = "all_replies.jsonl"
SLOTS = 256  # replies at once: an eighth faster here than 128 (docs/lab-log.md, 2026-11-23)
WAVE = 64  # questions that are handed over together, and begun even if there is no time for them
_SAY_EVERY_S = 3.0
_READING = 32  # tokens of a reply that take about as long as reading a question of 100 tokens

Mode = Literal["thinking", "direct"]


class Config(StageConfig):
    """Who is examined on what.

    `items` questions a task are spread over its levels; `levels` gives weights where they should not weigh the same,
    like `{ boxes = { "4-3" = 3, "5-4" = 3, "2-1" = 1 } }`, and leaves out levels that it does not name. The first model
    is where the others came from and gets `items_base`; replies without thinking get `items_direct`. `transcripts`
    replies a level are kept in full for the report, and with `all_replies` every one for experts. The models of
    `int8_cache` are asked the same once more, with a cache of int8 codes, as "NAME (int8 cache)".
    """

    models: list[Ref] = Field(min_length=1)
    int8_cache: list[Ref] = Field(default=[])
    tasks: list[TaskSpec] = Field(min_length=1)
    items: int = Field(default=500, ge=1)
    items_base: int = Field(default=200, ge=1)
    items_direct: int = Field(default=200, ge=1)
    levels: dict[str, dict[str, float]] = Field(default={})
    thinking: list[bool] = Field(default=[True, False], min_length=1)
    max_new_tokens: int = Field(default=128, ge=1)
    max_new_tokens_direct: int = Field(default=32, ge=1)
    transcripts: int = Field(default=3, ge=0)
    all_replies: bool = True  # every reply is kept with its question, for evaluate.review; false: only the transcripts


def check(config: Config) -> None:
    """Raise RecipeError or TaskError before anything starts for a model, task or level that does not exist."""
    for name in config.int8_cache:
        if name not in config.models:
            raise RecipeError(f"int8_cache names {name!r}, which is none of models{did_you_mean(name, config.models)}")
    named = list(map(name_of, config.tasks))
    for name in config.levels:
        if name not in named:
            raise TaskError(f"levels are given for {name!r}, which is no task of this exam{did_you_mean(name, named)}")
    for spec in config.tasks:
        if is_open(spec):
            raise TaskError(f"{name_of(spec)} has open questions, of which nobody can say what is right: leave it out")
    _check_levels(config, {task.name: task for task in tasks_at_hand(config.tasks)})


def _check_levels(config: Config, tasks: Mapping[str, Task]) -> None:
    for name, weights in config.levels.items():
        if name not in tasks:
            continue  # a stage is to make it, and it is looked at then
        for level, weight in weights.items():
            if level not in tasks[name].levels:
                raise TaskError(f"task {name} has no level {level!r}{did_you_mean(level, tasks[name].levels)}")
            if weight < 0:
                raise TaskError(f"level {level} of task {name} has the weight {weight:g}; weights are 0 or more")
        if not any(weights.values()):
            raise TaskError(f"no level of task {name} has a weight above 0: nothing would be asked")


def fingerprint(config: Config) -> str:
    """Return the hash of the question files that the exam is drawn from."""
    return fingerprint_of(config.tasks)


def run(config: Config, inputs: Mapping[str, Artifact], run: Run, out: Draft) -> None:
    """Examine every model; write exam.json (counts a level), items.jsonl (every verdict), transcripts.jsonl (some of
    the replies) and all_replies.jsonl.

    Raises Stopped after Ctrl-C; finished units are not asked again.
    """
    tasks = {task.name: task for task in load_tasks(config.tasks, inputs)}
    for complaint in complaints(list(tasks.values())):
        run.log.warn(complaint)
    _check_levels(config, tasks)
    run.log.info(f"kernels for replies: {status()}")
    questions = draw_questions(config, tasks, run.seed)
    modes: list[Mode] = ["thinking" if thinking else "direct" for thinking in dict.fromkeys(config.thinking)]
    names = list(dict.fromkeys(config.models))
    coded = {with_int8_cache(name): name for name in dict.fromkeys(config.int8_cache)}
    sources = dict(zip(names, names, strict=True)) | coded
    results: dict[str, dict[Mode, list[dict[str, Any]]]] = {}
    units: list[_Unit] = []
    for name, source in sources.items():
        candidate = _Candidate(name, inputs[source].path, run, int8_cache=name in coded)
        for mode in modes:
            examples = _share_of(config, tasks, questions, mode, is_base=source == names[0])
            units.append(_Unit(candidate, mode, examples, _limit(config, mode)))
    for number, unit in enumerate(units):
        rows = _verdicts(config, tasks, unit, _until(units[number:], run), run)
        results.setdefault(unit.candidate.name, {})[unit.mode] = rows
        if all(later.candidate is not unit.candidate for later in units[number + 1 :]):
            unit.candidate.leave()
    rows = [row for by_mode in results.values() for rows in by_mode.values() for row in rows]
    _write_lines(out.path / ITEMS, ({k: v for k, v in row.items() if k not in _TEXTS} for row in rows))
    _write_lines(out.path / TRANSCRIPTS, (row for row in rows if "reply" in row))
    if config.all_replies:
        _join(out.path / ALL_REPLIES, [unit.replies_in(run.scratch) for unit in units])
    summary = summarize(config, tasks, results, run.seed)
    summary |= {"artifacts": {name: inputs[source].id for name, source in sources.items()}, "int8_cache": coded}
    summary["cut"] = [cut for unit in units if (cut := _cut(unit, results[unit.candidate.name][unit.mode]))]
    (out.path / EXAM).write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    out.meta |= {"items": len(rows), "models": list(sources), "runtime": run.runtime.describe()}


_TEXTS = ("question", "answer", "reply")


def draw_questions(config: Config, tasks: Mapping[str, Task], seed: int) -> dict[str, dict[str, list[Example]]]:
    """The held-out questions by task and level, the same for every model of every exam with this seed."""
    drawn: dict[str, dict[str, list[Example]]] = {}
    items = max(config.items, config.items_base, config.items_direct)
    for name, task in tasks.items():
        drawn[name] = _draw(task, items, _weights(config, task), seed)
    return drawn


def _draw(task: Task, items: int, weights: Mapping[str, float], seed: int) -> dict[str, list[Example]]:
    """So many questions by level; what a level lacks, for it has no more, the others give."""
    most: dict[str, int] = {}
    while True:
        counts = spread(items, weights, most)
        drawn = {level: task.examples("test", level, n, seed) for level, n in counts.items() if n}
        short = {level: len(examples) for level, examples in drawn.items() if len(examples) < counts[level]}
        if not short:
            return drawn
        most |= short


def spread(items: int, weights: Mapping[str, float], most: Mapping[str, int]) -> dict[str, int]:
    """Divide items over levels by weight, exactly: what is left over goes to the largest remainders.

    A level in `most` gets no more than that, and the others share what it cannot take.
    """
    total = sum(weights.values())
    exact = {level: items * weight / total if total else 0.0 for level, weight in weights.items()}
    full = {level: most[level] for level, value in exact.items() if value > most.get(level, value)}
    if full:
        others = {level: weight for level, weight in weights.items() if level not in full}
        counts = full | spread(items - sum(full.values()), others, most)
        return {level: counts[level] for level in weights}
    if not total:
        return dict.fromkeys(weights, 0)
    counts = {level: int(value) for level, value in exact.items()}
    by_remainder = sorted(exact, key=lambda level: counts[level] - exact[level])
    for level in by_remainder[: items - sum(counts.values())]:
        counts[level] += 1
    return counts


def _weights(config: Config, task: Task) -> dict[str, float]:
    given = config.levels.get(task.name)
    return {level: 1.0 if given is None else given.get(level, 0.0) for level in task.levels}


def _share_of(
    config: Config,
    tasks: Mapping[str, Task],
    questions: Mapping[str, Mapping[str, list[Example]]],
    mode: Mode,
    is_base: bool,
) -> list[Example]:
    """The questions of one unit: the first of each level, mixed so that any beginning has its part of every level.

    Where two are due the harder one comes first, for its reply is the longer.
    """
    items = config.items if mode == "thinking" else min(config.items, config.items_direct)
    items = min(items, config.items_base) if is_base else items
    due: list[tuple[float, int, str, Example]] = []
    for name, task in tasks.items():
        drawn = questions[name]
        counts = spread(items, _weights(config, task), {level: len(examples) for level, examples in drawn.items()})
        for rank, level in enumerate(task.levels):
            asked = drawn.get(level, [])[: counts[level]]
            due += [((place + 0.5) / len(asked), -rank, name, e) for place, e in enumerate(asked)]
    return [example for *_, example in sorted(due, key=lambda row: row[:3])]


def with_int8_cache(model: str) -> str:
    """The name under which a model sits the exam with a cache of int8 codes."""
    return f"{model} (int8 cache)"


class _Candidate:
    """A model that is loaded when its first question comes, and not at all if all of its units are on disk."""

    def __init__(self, name: str, folder: Path, run: Run, *, int8_cache: bool = False) -> None:
        self.name, self.folder, self.int8_cache, self._run = name, folder, int8_cache, run
        self._loaded: tuple[Transformer, ChatFormat] | None = None

    def load(self) -> tuple[Transformer, ChatFormat]:
        """The network in the machine's number type, and how it is talked to."""
        if self._loaded is None:
            runtime = self._run.runtime
            self._loaded = load_model(self.folder, runtime.dtype, runtime.device), ChatFormat.load(self.folder)
        return self._loaded

    def leave(self) -> None:
        """Give the memory back: every question was put to it."""
        self._loaded = None
        release_memory()


@dataclass(frozen=True)
class _Unit:
    """All questions of one model in one mode, and the most tokens that a reply may have."""

    candidate: _Candidate
    mode: Mode
    examples: list[Example]
    most_tokens: int

    @property
    def work(self) -> int:
        """Tokens that it may take at most, and what reading costs: by it the time of the exam is divided."""
        return len(self.examples) * (self.most_tokens + _READING)

    def replies_in(self, scratch: Path) -> Path:
        """Where its replies lie until the exam is over: not in memory, for those of large models are long."""
        return scratch / f"{self.candidate.name}.{self.mode}.replies.jsonl"


def _cut(unit: _Unit, rows: Sequence[object]) -> dict[str, Any] | None:
    """How many of a unit's questions were answered, where not all were."""
    if len(rows) == len(unit.examples):
        return None
    return {"model": unit.candidate.name, "mode": unit.mode, "answered": len(rows), "of": len(unit.examples)}


def _limit(config: Config, mode: Mode) -> int:
    return config.max_new_tokens if mode == "thinking" else config.max_new_tokens_direct


def _until(units: Sequence[_Unit], run: Run) -> float | None:
    """When the first of the units that are still to come has used its part of the exam's share of the time."""
    left = run.seconds_left() if run.has_share else None
    if left is None:
        return None
    return time.monotonic() + left * units[0].work / max(1, sum(unit.work for unit in units))


def _verdicts(
    config: Config, tasks: Mapping[str, Task], unit: _Unit, until: float | None, run: Run
) -> list[dict[str, Any]]:
    """A unit's verdicts, from disk if they lie there."""
    candidate, mode = unit.candidate, unit.mode
    path = run.scratch / f"{candidate.name}.{mode}.json"
    if path.exists():
        rows: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
        return rows
    if until is None and run.seconds_left() == 0:
        run.log.warn("the time is spent; the exam goes on all the same, for it has no share that could cut it short")
    completions = _ask(tasks, unit, until, run)
    if len(completions) < len(unit.examples):
        run.log.warn(f"{candidate.name}, {mode}: time for {len(completions)} of {len(unit.examples)} questions only")
    chat = candidate.load()[1]
    judged = [_judged(tasks[e.task], e, reply, chat, mode) | {"model": candidate.name} for e, reply in completions]
    if config.all_replies:
        write_rows(unit.replies_in(run.scratch), judged)
    rows = _shortened(judged, config.transcripts)
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(rows), encoding="utf-8")
    part.replace(path)
    right = sum(row["correct"] for row in rows)
    run.log.info(f"{candidate.name}, {mode}: {right} of {len(rows)} right ({right / max(1, len(rows)):.0%})")
    return rows


def _shortened(judged: Iterable[dict[str, Any]], transcripts: int) -> list[dict[str, Any]]:
    """The verdicts, of which only the first of each level keep their texts."""
    kept: dict[tuple[str, str], int] = {}
    rows = []
    for row in judged:
        place = (row["task"], row["level"])
        kept[place] = kept.get(place, 0) + 1
        rows.append(row if kept[place] <= transcripts else {k: v for k, v in row.items() if k not in _TEXTS})
    return rows


def _ask(tasks: Mapping[str, Task], unit: _Unit, until: float | None, run: Run) -> list[tuple[Example, Completion]]:
    """Hand the questions to the engine wave by wave, so that it is never half empty until the very end.

    `until` is when no further question is handed over; those of the first wave always are.
    """
    candidate, mode, examples = unit.candidate, unit.mode, unit.examples
    model, chat = candidate.load()
    prompts = [chat.prompt(tasks[e.task].conversation(e, mode == "thinking")) for e in examples]
    sampling = Sampling(max_new_tokens=unit.most_tokens, temperature=0.0, stop_ids=chat.stop_ids)
    engine = Engine(model, slots=SLOTS, int8_cache=candidate.int8_cache)
    with run.meter.phase(f"{candidate.name} {mode}"):
        places: dict[int, int] = {}
        completions = [Completion() for _ in prompts]
        started = said = time.monotonic()
        ended: set[int] = set()
        made = 0
        while True:
            if run.should_stop() == "interrupted":
                raise Stopped(f"stopped at {candidate.name}, {mode}; the same command goes on with it")
            if not places or until is None or time.monotonic() <= until:
                for place in range(len(places), min(len(places) + WAVE - engine.waiting, len(prompts))):
                    places[engine.submit(prompts[place], sampling)] = place
            if engine.idle:
                break
            for token in engine.step():
                place = places[token.request]
                completions[place].ids.append(token.id)
                if token.finish_reason is not None:
                    completions[place].finish_reason = token.finish_reason
                    ended.add(place)
                made += 1
            now = time.monotonic()
            if now - said >= _SAY_EVERY_S or engine.idle:
                said = now
                speed = made / (now - started)
                run.log.step(len(ended), len(prompts), model=candidate.name, mode=mode, tok_s=speed)
    tokens = made + sum(len(prompts[place]) for place in ended)
    run.meter.add(tokens=tokens, flops=tokens * model.config.flops_per_token(0))
    return [(examples[place], completions[place]) for place in sorted(ended)]


def _judged(task: Task, example: Example, completion: Completion, chat: ChatFormat, mode: Mode) -> dict[str, Any]:
    reply = chat.reply_text(completion.ids)
    verdict = task.judge(example, reply, thinking=mode == "thinking")
    return {
        "mode": mode,
        "task": example.task,
        "level": example.level,
        "id": example.id,
        "score": verdict.score,
        "correct": verdict.parts.get("answer", 0.0) == 1.0,
        "well_formed": verdict.parts.get("format", 0.0) == 1.0,
        "problem": verdict.problem,
        "finish_reason": completion.finish_reason,
        "tokens": len(completion.ids),
        "question": example.question,
        "answer": example.answer,
        "reply": reply,
        **({"meta": dict(example.meta)} if example.meta else {}),
    }


def summarize(
    config: Config,
    tasks: Mapping[str, Task],
    results: Mapping[str, Mapping[Mode, Sequence[Mapping[str, Any]]]],
    seed: int,
) -> dict[str, Any]:
    """Counts by model, mode, task and level, with what a reader needs to trust them."""
    models: dict[str, Any] = {}
    for name, by_mode in results.items():
        for mode, rows in by_mode.items():
            for task_name, task in tasks.items():
                own = [row for row in rows if row["task"] == task_name]
                by_level = {lv: _count([r for r in own if r["level"] == lv]) for lv in task.levels}
                held = {level: counts for level, counts in by_level.items() if counts["n"]}
                models.setdefault(name, {}).setdefault(mode, {})[task_name] = held
    return {
        "seed": seed,
        "split": "test",
        "decoding": "greedy",
        "max_new_tokens": {"thinking": config.max_new_tokens, "direct": config.max_new_tokens_direct},
        "tasks": {n: {"levels": list(t.levels), "trace_levels": list(t.trace_levels)} for n, t in tasks.items()},
        "models": models,
    }


def _count(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    n = len(rows)
    return {
        "n": n,
        "correct": sum(row["correct"] for row in rows),
        "well_formed": sum(row["well_formed"] for row in rows),
        "finished": sum(row["finish_reason"] == "stop" for row in rows),
        "mean_tokens": sum(row["tokens"] for row in rows) / n if n else 0.0,
    }


def _join(path: Path, parts: Sequence[Path]) -> None:
    with path.open("wb") as file:
        for part in parts:
            with part.open("rb") as source:
                shutil.copyfileobj(source, file)


def _write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
