"""What stands on the report's page, as plain values and charts: the template only lays it out."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from schoolhouse.core.artifact import Artifact
from schoolhouse.core.log import clock
from schoolhouse.evaluate import ablation, charts, review
from schoolhouse.evaluate.charts import Axis, Series, Zone
from schoolhouse.evaluate.compare import Estimate, mean_of_levels, paired_difference, share
from schoolhouse.evaluate.probing import card as probe_card
from schoolhouse.evaluate.probing.leak import MODEL
from schoolhouse.evaluate.verdict import MAY_FALL, Check
from schoolhouse.text.reply import parse_reply

if TYPE_CHECKING:
    from schoolhouse.evaluate.report import Evidence

_COLOURS = ("m-grey", "m-amber", "m-blue", "m-plum", "m-brown", "m-rose")
_STORIES = 3  # transcripts of each task where the model got better, and one where it still fails
_SMOOTHED = 25  # a curve of training is smoothed over about its length divided by this

View = dict[str, Any]


def build(evidence: Evidence) -> View:
    """Every value that the template names."""
    exam = evidence.exam
    colours = model_colours(evidence)
    thinking = [name for name in exam["models"] if "thinking" in exam["models"][name]]
    tasks = [_task_view(evidence, task, colours, thinking) for task in exam["tasks"]]
    return {
        "title": evidence.title,
        "subject": evidence.subject,
        "verdict": _verdict_view(evidence),
        "tiles": _tiles(evidence),
        "tasks": tasks,
        "ablations": _ablations_view(evidence),
        "probe": _probe_view(evidence.probe) if evidence.probe else None,
        "review": _review_view(evidence.review) if evidence.review else None,
        "curves": _all_curves(evidence),
        "stories": [story for task in exam["tasks"] for story in _stories(evidence, task)],
        "stages": [
            _cost_view(name, artifact) for name, artifact in evidence.stages.items() if artifact.meta.get("meter")
        ],
        "totals": _totals(evidence),
        "lineage": [_lineage_view(name, artifact, evidence.stages) for name, artifact in evidence.stages.items()],
        "exam": exam,
        "machine": _machine(evidence),
    }


def figures(view: View) -> Iterator[View]:
    """Every part of a view that holds a chart."""
    yield from (task["chart"] for task in view["tasks"] if task["chart"])
    yield from view["curves"]


def model_colours(evidence: Evidence) -> dict[str, str]:
    """A CSS variable for each model of the exam: the subject has the accent, its quantized form a lighter one."""
    kinds = {artifact.id: artifact.kind for artifact in evidence.stages.values()}
    colours = {}
    rest = iter(_COLOURS * 4)
    for name in evidence.exam["models"]:
        if name == evidence.subject:
            colours[name] = "m-accent"
        elif kinds.get(evidence.exam["artifacts"][name]) == "compress.quantize":
            colours[name] = "m-light"
        else:
            colours[name] = next(rest)
    return colours


def percent(value: float) -> str:
    """A share in whole percents."""
    return f"{100 * value:.0f}%"


def check_view(check: Check) -> dict[str, str]:
    """One check in words and rounded numbers."""
    if check.wanted_points is None:
        wanted = f"at most {100 * MAY_FALL:g} points lost"
    else:
        wanted = f"{check.wanted_points:+g} points, intervals apart" if check.wanted_points else "a gain beyond chance"
    ends = check.interval_points
    return {
        "what": check.what,
        "better": percent(check.better.value) if check.better else "-",
        "better_ends": _ends(check.better) if check.better else "",
        "control": percent(check.control.value) if check.control else "-",
        "control_ends": _ends(check.control) if check.control else "",
        "control_name": check.control_name,
        "gain": "-" if check.gained_points is None else f"{check.gained_points:+.1f} points",
        "gain_ends": f"{ends.low:+.1f} to {ends.high:+.1f}" if ends else "",
        "wanted": wanted,
        "reason": check.reason,
    }


def _verdict_view(evidence: Evidence) -> View:
    verdict = evidence.verdict
    if verdict is None:
        compared = "; ".join(_overall(evidence)) or "nothing to compare"
        return {
            "state": "none",
            "headline": "No claim was made",
            "sentence": f"Right answers, mean over the levels: {compared}.",
            "note": "Name a claim in the recipe to have it tested.",
            "checks": [],
        }
    return {
        "state": "met" if verdict.met else "failed",
        "headline": "The claim holds" if verdict.met else "The claim FAILED",
        "sentence": verdict.sentence,
        "note": verdict.control_note[:1].upper() + verdict.control_note[1:] + ".",
        "checks": [check_view(check) | {"met": check.met} for check in verdict.checks],
    }


def _overall(evidence: Evidence) -> list[str]:
    """Each task with what every model reaches in it: a model between the first and the last may be the best."""
    rows = []
    for task in evidence.exam["tasks"]:
        means = {name: _mean(evidence, name, task) for name in evidence.exam["models"]}
        found = [f"{name} {percent(mean.value)}" for name, mean in means.items() if mean]
        if found:
            rows.append(f"{task}: {', '.join(found)}")
    return rows


def _mean(evidence: Evidence, model: str, task: str) -> Estimate | None:
    by_level = evidence.exam["models"][model].get("thinking", {}).get(task, {})
    return mean_of_levels([(c["correct"], c["n"]) for c in by_level.values()]) if by_level else None


def _tiles(evidence: Evidence) -> list[View]:
    tiles: list[View] = []
    for check in evidence.verdict.checks if evidence.verdict else []:
        if check.better and check.control and check.wanted_points is not None:
            value = f"{percent(check.control.value)} → {percent(check.better.value)}"
            note = f"{check.control_name} → {evidence.subject}" + ("" if check.met else ", not enough")
            tiles.append({"label": check.what, "value": value, "note": note, "failed": not check.met})
    tiles += _small_tile(evidence)
    totals = _totals(evidence)
    if totals:
        tiles.append({"label": "Time, all stages", "value": totals["seconds"], "note": f"{totals['tokens']} tokens"})
        tiles.append(
            {"label": "Energy and cost", "value": totals["energy"], "note": f"{totals['cost']} · {totals['mark']}"}
        )
    return tiles


def _small_tile(evidence: Evidence) -> list[View]:
    """How much smaller the quantized model is, and what that cost on the same questions."""
    coded = evidence.exam.get("int8_cache", {})
    names = {artifact: name for name, artifact in evidence.exam["artifacts"].items() if name not in coded}
    for artifact in evidence.stages.values():
        source = next((names[p] for p in artifact.parents if p in names), None)
        if artifact.kind != "compress.quantize" or artifact.id not in names or source is None:
            continue
        ratio = artifact.meta["weight_bytes"] / artifact.meta["source_weight_bytes"]
        right: dict[str, dict[str, bool]] = {names[artifact.id]: {}, source: {}}
        for row in evidence.items:
            if row["mode"] == "thinking" and row["model"] in right:
                right[row["model"]][row["id"]] = row["correct"]
        small, large = right[names[artifact.id]], right[source]
        common = [key for key in small if key in large]
        note = f"{artifact.meta['weight_bytes'] / 1e6:.0f} MB"
        if common:
            change = paired_difference([small[k] for k in common], [large[k] for k in common])
            low, high = change.interval
            note += f"; accuracy {100 * change.value:+.1f} points ({100 * low:+.1f} to {100 * high:+.1f})"
        return [{"label": f"Size of {names[artifact.id]}", "value": f"{percent(ratio)} of bf16", "note": note}]
    return []


def _task_view(evidence: Evidence, task: str, colours: Mapping[str, str], thinking: Sequence[str]) -> View:
    exam = evidence.exam
    asked = {lv for m in thinking for lv in exam["models"][m]["thinking"].get(task, {})}
    levels = [level for level in exam["tasks"][task]["levels"] if level in asked]
    taught = [level for level in exam["tasks"][task]["trace_levels"] if level in levels]
    lines = []
    for name in thinking:
        by_level = exam["models"][name]["thinking"].get(task, {})
        found = [
            (i, share(by_level[level]["correct"], by_level[level]["n"]))
            for i, level in enumerate(levels)
            if level in by_level
        ]
        points = [(float(i), one.value) for i, one in found]
        band = [(float(i), *one.interval) for i, one in found]
        lines.append(Series(name, colours[name], points, band, dots=True, dashed=colours[name] == "m-light"))
    zone = Zone(-0.4, len(taught) - 0.5, "shown worked") if taught == levels[: len(taught)] and taught else None
    chart = None
    if levels:
        label = f"Right answers in {task} by level, with 95% intervals, for {', '.join(thinking)}"
        axis = charts.names_axis(levels, "level, harder to the right")
        chart = {"svg": charts.plot(lines, axis, charts.share_axis(), label, zone), "legend": _legend(lines)}
    return {
        "name": task,
        "chart": chart,
        "modes": [_table_view(evidence, task, mode) for mode in ("thinking", "direct")],
    }


def _legend(lines: Sequence[Series]) -> list[View]:
    return [{"name": one.name, "colour": one.colour, "dashed": one.dashed} for one in lines if not one.faint]


def _table_view(evidence: Evidence, task: str, mode: str) -> View:
    """The accuracy table of one task and mode: a row a level, a column a model, and how the replies were formed."""
    exam = evidence.exam
    models = [name for name in exam["models"] if exam["models"][name].get(mode, {}).get(task)]
    counts = {name: exam["models"][name][mode][task] for name in models}
    taught = exam["tasks"][task]["trace_levels"]
    rows = []
    for level in exam["tasks"][task]["levels"]:
        if any(level in counts[name] for name in models):
            cells = [_share_cell(counts[name].get(level)) for name in models]
            rows.append({"level": level, "taught": level in taught, "cells": cells})
    totals = {n: {k: sum(c[k] for c in counts[n].values()) for k in ("n", "well_formed", "finished")} for n in models}
    means = [mean_of_levels([(c["correct"], c["n"]) for c in counts[name].values()]) for name in models]
    tokens = [sum(c["mean_tokens"] * c["n"] for c in counts[n].values()) / totals[n]["n"] for n in models]
    return {
        "mode": mode,
        "models": models,
        "rows": rows,
        "means": [{"value": percent(m.value), "interval": _ends(m), "n": m.n} for m in means],
        "well_formed": [percent(totals[n]["well_formed"] / totals[n]["n"]) for n in models],
        "finished": [percent(totals[n]["finished"] / totals[n]["n"]) for n in models],
        "tokens": [f"{value:.0f}" for value in tokens],
    }


def _ends(estimate: Estimate) -> str:
    return f"{100 * estimate.interval.low:.0f}-{100 * estimate.interval.high:.0f}"


def _share_cell(counts: Mapping[str, Any] | None) -> View | None:
    if counts is None:
        return None
    found = share(counts["correct"], counts["n"])
    return {
        "value": percent(found.value),
        "interval": _ends(found),
        "n": counts["n"],
        "width": round(100 * found.value),
    }


def _ablations_view(evidence: Evidence) -> View:
    lines = [{"outcome": found.outcome, "sentence": found.sentence} for found in evidence.ablations]
    return {"lines": lines, "table": ablation.table(evidence.ablations)}


def _probe_view(facts: Mapping[str, Any]) -> View:
    state = {True: "met", False: "failed", None: "none"}[facts["passed"]]
    words = {"sentences": probe_card.verdict(facts), "asked": probe_card.asked(facts)}
    return {"model": facts["models"][MODEL], "state": state, "tables": probe_card.tables(facts), **words}


def _review_view(facts: Mapping[str, Any]) -> View:
    model = {"name": facts["model"], "artifact": facts["artifact"]}
    return {"model": model, "sentences": review.sentences(facts), "tables": review.tables(facts)}


def _all_curves(evidence: Evidence) -> list[View]:
    """The curves of every stage that trained, those of reinforcement learning first."""
    figures: list[View] = []
    losses: list[View] = []
    for name, artifact in evidence.stages.items():
        if "metrics.jsonl" not in artifact.manifest["files"]:
            continue
        lines = artifact.file("metrics.jsonl").read_text(encoding="utf-8").splitlines()
        steps = [json.loads(line) for line in lines]
        if len(steps) >= 2:
            (figures if "reward" in steps[0] else losses).extend(_curves(name, steps))
    return figures + losses


def _curves(stage: str, steps: Sequence[Mapping[str, Any]]) -> list[View]:
    if "reward" not in steps[0]:
        loss = [_curve(steps, "loss", "loss", "m-blue")]
        return [_figure(f"{stage}: loss", loss, steps, charts.number_axis(_values(loss)))]
    parts = [
        _curve(steps, "accuracy", "right answers", "m-accent"),
        _curve(steps, "format", "well-formed", "m-blue"),
        _curve(steps, "reward", "reward", "m-amber"),
    ]
    length = [_curve(steps, "length", "tokens a reply", "m-accent")]
    teaching = [
        _rate(steps, "signal_groups", "groups", "groups that teach", "m-plum"),
        _curve(steps, "truncated", "cut off", "m-rose"),
    ]
    made = [
        _figure(f"{stage}: reward and its parts", parts, steps, charts.share_axis()),
        _figure(f"{stage}: length of replies", length, steps, charts.number_axis(_values(length))),
        *_ladders(stage, steps),
        _figure(f"{stage}: groups with mixed rewards, replies cut off", teaching, steps, charts.share_axis()),
    ]
    return [figure for figure in made if figure["legend"]]


def _curve(steps: Sequence[Mapping[str, Any]], key: str, name: str, colour: str) -> list[Series]:
    points = [(float(s["step"]), float(s[key])) for s in steps if s.get(key) is not None]
    return _smoothed(points, name, colour)


def _rate(steps: Sequence[Mapping[str, Any]], part: str, whole: str, name: str, colour: str) -> list[Series]:
    points = [(float(s["step"]), s[part] / s[whole]) for s in steps if s.get(whole)]
    return _smoothed(points, name, colour)


def _smoothed(points: Sequence[tuple[float, float]], name: str, colour: str) -> list[Series]:
    """The raw values faintly, and their running mean over them."""
    if len(points) < 2:
        return []
    means = charts.smooth([y for _, y in points], max(1, len(points) // _SMOOTHED))
    line = list(zip((x for x, _ in points), means, strict=True))
    return [Series(name, colour, charts.thin(points), faint=True), Series(name, colour, charts.thin(line))]


def _values(pairs: Sequence[Sequence[Series]]) -> list[float]:
    return [y for pair in pairs for series in pair for _, y in series.points]


def _figure(title: str, pairs: Sequence[Sequence[Series]], steps: Sequence[Mapping[str, Any]], y: Axis) -> View:
    lines = [series for pair in pairs for series in pair]
    x = _step_axis(steps)
    return {"title": title, "svg": charts.plot(lines, x, y, title), "legend": _legend(lines)}


def _step_axis(steps: Sequence[Mapping[str, Any]]) -> Axis:
    first, last = float(steps[0]["step"]), float(steps[-1]["step"])
    inner = charts.number_axis([last], from_zero=True)
    ticks = [(value, text) for value, text in inner.ticks if first <= value <= last]
    return Axis(first, max(last, first + 1), ticks, "step")


def _ladders(stage: str, steps: Sequence[Mapping[str, Any]]) -> list[View]:
    """The level that each task stood at, step by step, as a staircase."""
    figures = []
    for task in steps[-1].get("level", {}):
        names = list(dict.fromkeys([*steps[-1].get("levels", {}).get(task, {}), *(s["level"][task] for s in steps)]))
        names = sorted(names, key=_natural)
        raw = [(float(s["step"]), float(names.index(s["level"][task]))) for s in steps]
        stairs = [raw[0]]
        for before, after in pairwise(raw):
            if after[1] != before[1]:
                stairs += [(after[0], before[1]), after]
        stairs.append(raw[-1])
        line = [Series(f"level of {task}", "m-accent", stairs)]
        y = Axis(0, max(1, len(names) - 1), list(enumerate(names)))
        figures.append(_figure(f"{stage}: ladder of {task}", [line], steps, y))
    return figures


def _natural(level: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (0, part) for part in level.replace("_", "-").split("-")]


def _stories(evidence: Evidence, task: str) -> list[View]:
    """Replies to one question side by side: hard ones that are right only now, and one that is still wrong."""
    names = list(evidence.exam["models"])
    subject = evidence.subject
    control = [c.control_name for c in evidence.verdict.checks if c.control_name in names] if evidence.verdict else []
    columns = list(dict.fromkeys([names[0], *control[:1], subject]))
    replies: dict[str, dict[str, Mapping[str, Any]]] = {}
    for row in evidence.transcripts:
        if row["task"] == task and row["mode"] == "thinking" and row["model"] in columns:
            replies.setdefault(row["id"], {})[row["model"]] = row
    order = evidence.exam["tasks"][task]["levels"]
    shared = sorted((r for r in replies.values() if subject in r), key=lambda r: -order.index(r[subject]["level"]))
    full = [r for r in shared if len(r) == len(columns)] or shared
    better = [r for r in full if r[subject]["correct"] and not all(row["correct"] for row in r.values())]
    failing = [r for r in full if not r[subject]["correct"]]
    wanted = list(evidence.claim.levels) if evidence.claim and evidence.claim.task == task else []
    better.sort(key=lambda r: r[subject]["level"] not in wanted)
    return [_story(by_model, columns) for by_model in better[:_STORIES] + failing[-1:]]


def _story(by_model: Mapping[str, Mapping[str, Any]], columns: Sequence[str]) -> View:
    rows = [by_model[name] for name in columns if name in by_model]
    first = rows[0]
    return {
        "task": first["task"],
        "level": first["level"],
        "question": first["question"],
        "answer": first["answer"],
        "solved": rows[-1]["correct"],
        "replies": [_reply_view(row) for row in rows],
    }


def _reply_view(row: Mapping[str, Any]) -> View:
    parsed = parse_reply(row["reply"])
    whole = parsed.well_formed
    return {
        "model": row["model"],
        "right": row["correct"],
        "reasoning": parsed.reasoning if whole else None,
        "answer": parsed.answer if whole else None,
        "raw": None if whole else row["reply"].strip(),
        "problem": None if whole else row["problem"],  # a wrong answer stands there to be seen
        "tokens": row["tokens"],
        "cut": row["finish_reason"] != "stop",
    }


def _cost_view(name: str, artifact: Artifact) -> View:
    meter = artifact.meta["meter"]
    return {
        "name": name,
        "kind": artifact.kind,
        "seconds": clock(meter["seconds"]),
        "share": meter["seconds"],
        "tokens": f"{meter['tokens']:,}" if meter["tokens"] else "",
        "flops": _operations(meter["flops"]),
        "flops_mark": _mark(meter.get("flops_source", "")),
        "memory": f"{meter['peak_rss_bytes'] / 2**30:.2f} GiB",
        "memory_mark": _mark(meter.get("peak_rss_source", "measured")),
        "energy": f"{meter['energy_wh']:.2f} Wh",
        "energy_mark": _mark(meter["energy_source"]),
        "cost": f"{meter['cost']:.2g} {meter.get('currency', '')}".strip(),
        "cost_mark": _mark(meter["cost_source"]),
    }


def _operations(flops: float) -> str:
    for size, unit in ((1e15, "PFLOP"), (1e12, "TFLOP"), (1e9, "GFLOP")):
        if flops >= size:
            return f"{flops / size:.1f} {unit}"
    return ""


def _mark(source: str) -> View:
    """How a figure was got: its first word is the mark, the rest its explanation."""
    word = source.split(":")[0].split(";")[0].strip()
    return {"word": word if word in ("measured", "modelled", "assumed") else "", "why": source}


def _totals(evidence: Evidence) -> View | None:
    meters = {a.id: a.meta["meter"] for a in evidence.stages.values() if a.meta.get("meter")}
    if not meters:
        return None
    seconds = sum(m["seconds"] for m in meters.values())
    words = {_mark(m[key])["word"] for m in meters.values() for key in ("energy_source", "cost_source")}
    currency = next((m.get("currency", "") for m in meters.values()), "")
    return {
        "seconds": clock(seconds),
        "seconds_raw": seconds,
        "tokens": f"{sum(m['tokens'] for m in meters.values()):,}",
        "energy": f"{sum(m['energy_wh'] for m in meters.values()):.1f} Wh",
        "cost": f"{sum(m['cost'] for m in meters.values()):.2g} {currency}".strip(),
        "mark": " and ".join(sorted(words - {""})) or "as stated below",
        "sources": sorted(
            {s for m in meters.values() for s in (m["energy_source"], m["cost_source"], m.get("flops_source", "")) if s}
        ),
    }


def _lineage_view(name: str, artifact: Artifact, stages: Mapping[str, Artifact]) -> View:
    names = {other.id: other_name for other_name, other in stages.items()}
    files = [(file, facts["sha256"], facts["bytes"]) for file, facts in artifact.manifest["files"].items()]
    return {
        "name": name,
        "kind": artifact.kind,
        "id": artifact.id,
        "parents": [names.get(parent, parent) for parent in artifact.parents],
        "files": [{"name": f, "sha256": sha, "size": f"{size / 1e6:,.2f} MB"} for f, sha, size in files],
    }


def _machine(evidence: Evidence) -> str:
    """Where the exam ran, as its manifest says."""
    for artifact in evidence.stages.values():
        if artifact.kind == "evaluate.exam" and artifact.meta.get("runtime"):
            facts = artifact.meta["runtime"]
            return ", ".join(f"{key} {value}" for key, value in facts.items())
    return ""
