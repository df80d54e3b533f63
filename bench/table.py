"""The stored results as one table, as pictures, and as the tables of docs/speed.md: ours beside others, and growth.

    python bench/table.py [--write]

Reads `bench/results/*.json` as the benches wrote them, measures nothing. Names that end in `-amx` are of a processor
with AMX's tiles, the others of one without. `--write` makes docs/speed.png, docs/growth.png and the tables between the
marks of docs/speed.md anew.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

BENCH = Path(__file__).parent
RESULTS, DOCS = BENCH / "results", BENCH.parent / "docs"
AMX = "-amx"
PROCESSORS = ("AMX", "AVX-512")

Found = list[tuple[str, str, float]]
"""The work, beside whom, how many times as fast."""


class Row(NamedTuple):
    """One comparison: the work, beside whom, how many times as fast, on what, and where that is stored."""

    work: str
    beside: str
    times: float
    processor: str
    source: str


def rows() -> list[Row]:
    """All that is there, in the order of the readers below."""
    return [
        Row(*found, processor, path.name)
        for name, read in READERS.items()
        for path, processor in stored(name)
        for found in read(json.loads(path.read_text()))
    ]


def stored(name: str) -> list[tuple[Path, str]]:
    """A bench's results, and the kind of processor that each is of."""
    paths = ((RESULTS / f"{name}{AMX}.json", "AMX"), (RESULTS / f"{name}.json", "AVX-512"))
    return [(path, processor) for path, processor in paths if path.exists()]


def generation(result: dict[str, Any]) -> Found:
    """Of `bench/generation.py`."""
    return [
        (f"generation, {batch['texts']} text{'s' * (batch['texts'] > 1)} at once", other, ratio["median"])
        for batch in result["batches"]
        for other, ratio in batch["ours_over"].items()
    ]


def prompts(result: dict[str, Any]) -> Found:
    """Of `bench/prefill.py`: of OpenVINO's two ways the faster one."""
    return [
        (f"reading, {batch['texts']} x 512 tokens", other, batch["ours_over"][other]["median"])
        for batch in result["batches"]
        for other in ("transformers", "OpenVINO GenAI")
        if other in batch["ours_over"]
    ]


def one_user(result: dict[str, Any]) -> Found:
    """Of `bench/one_user.py`."""
    return [
        (f"one user, {name}: {work}", "llama.cpp", found[key]["ours_over"]["llama.cpp"]["median"])
        for name, found in result["formats"].items()
        for key, work in (("new_tokens", "new tokens"), ("prompt", "prompt"))
    ]


def fine_tuning(result: dict[str, Any]) -> Found:
    """Of `bench/sft.py`."""
    names = {"TRL": "TRL SFTTrainer", "bare loop": "bare loop (transformers)"}
    return [("fine-tuning, 8 x 512 tokens", names[other], times) for other, times in result["times"].items()]


def rl_step(result: dict[str, Any]) -> Found:
    """Of `bench/grpo_step.py`."""
    return [("GRPO step, 8 x 8 x 128 tokens", "TRL GRPOTrainer", result["times_faster"])]


def mixture(result: dict[str, Any]) -> Found:
    """Of `bench/deepseek.py`."""
    works = {"training": "DeepSeek's network, training", "generation": "DeepSeek's network, 64 texts"}
    return [
        (work, other, times)
        for key, work in works.items()
        for other, times in result[key].get("ours_over", {"transformers": result[key]["ratio"]}).items()
    ]


READERS = {
    "generation": generation, "prefill": prompts, "one_user": one_user, "sft": fine_tuning, "grpo_step": rl_step,
    "deepseek": mixture,
}  # fmt: skip

WANTED = {
    ("generation, 64 texts at once", "OpenVINO GenAI"): 1.5,
    ("generation, 128 texts at once", "OpenVINO GenAI"): 1.5,
    ("reading, 1 x 512 tokens", "OpenVINO GenAI"): 1.2,
    ("reading, 8 x 512 tokens", "OpenVINO GenAI"): 1.2,
    ("one user, int8: new tokens", "llama.cpp"): 0.8,
    ("one user, int4, ends in int8: new tokens", "llama.cpp"): 0.8,
    ("one user, int4: new tokens", "llama.cpp"): 0.8,
    ("fine-tuning, 8 x 512 tokens", "TRL SFTTrainer"): 5.0,
    ("fine-tuning, 8 x 512 tokens", "bare loop (transformers)"): 2.0,
    ("GRPO step, 8 x 8 x 128 tokens", "TRL GRPOTrainer"): 6.0,
    ("DeepSeek's network, training", "transformers"): 4.0,
    ("DeepSeek's network, training", "our dense twin"): 0.8,
    ("DeepSeek's network, 64 texts", "transformers"): 4.0,
}
"""What was aimed at, on a processor with AMX."""


def labels(found: Iterable[Row]) -> list[tuple[str, str]]:
    """Each work and other once, in order."""
    return list(dict.fromkeys((row.work, row.beside) for row in found))


def draw(found: list[Row], path: Path) -> None:
    """A line for each comparison, a bar for each processor, a mark at what was aimed at; 1 is as fast as the other."""
    from matplotlib import pyplot

    lines = labels(found)
    figure, axes = pyplot.subplots(figsize=(9, 0.36 * len(lines) + 1), layout="constrained")
    for processor, colour, shift in zip(PROCESSORS, ("tab:blue", "tab:orange"), (-0.2, 0.2), strict=True):
        mine = [row for row in found if row.processor == processor]
        places = [lines.index((row.work, row.beside)) + shift for row in mine]
        axes.barh(places, [row.times for row in mine], height=0.38, color=colour, label=processor)
        for place, row in zip(places, mine, strict=True):
            aim = WANTED.get((row.work, row.beside), 0.0) if processor == "AMX" else 0.0
            beyond = aim if 0 <= aim - row.times < 0.4 else row.times  # the number keeps clear of the mark
            axes.text(beyond + 0.06, place, f"{row.times:.2f}", fontsize=7, va="center")
    aims = [(WANTED[line], i) for i, line in enumerate(lines) if line in WANTED]
    axes.plot([aim for aim, _ in aims], [i - 0.2 for _, i in aims], "k|", markersize=9, markeredgewidth=2, label="aim")
    axes.axvline(1, color="grey", linewidth=1)
    axes.set_yticks(range(len(lines)), [f"{work} / {beside}" for work, beside in lines], fontsize=8)
    axes.set_ylim(len(lines) - 0.4, -0.6)
    axes.set_xlim(0, 1.08 * max(row.times for row in found))
    axes.set_xlabel("times as fast as the other, on two cores")
    axes.legend(loc="upper right")
    figure.savefig(path, dpi=120)


def draw_growth(result: dict[str, Any], path: Path) -> None:
    """A panel for what grows; measured as dots and lines, arithmetic as dashes."""
    from matplotlib import pyplot

    titles = {
        "context": "tokens of context",
        "texts": "texts at once, 128 tokens each",
        "experts": "experts, of which a token meets two",
    }
    figure, panels = pyplot.subplots(1, 3, figsize=(13, 5), layout="constrained")
    for axes, (panel, title) in zip(panels, titles.items(), strict=True):
        for curve in (curve for curve in result["curves"] if curve["panel"] == panel):
            (line,) = axes.plot(curve["at"], curve["seconds"], "o-", markersize=4, label=curve["name"])
            axes.plot(curve["at"], curve["arithmetic_seconds"], "--", color=line.get_color(), linewidth=1)
            ticks = curve["at"]
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xticks(ticks, [str(tick) for tick in ticks])
        axes.set_xlabel(title)
        axes.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2)
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("seconds; dashed: by arithmetic")
    figure.savefig(path, dpi=110)


def comparisons(found: list[Row]) -> str:
    """As a table in Markdown."""
    times = {(row.work, row.beside, row.processor): f"[{row.times:.2f}]({link(row.source)})" for row in found}
    out = ["| work | beside | AMX | aim | AVX-512 |", "|---|---|---|---|---|"]
    for line in labels(found):
        amx, old = (times.get((*line, processor), "") for processor in PROCESSORS)
        out.append(f"| {line[0]} | {line[1]} | {amx} | {WANTED.get(line, '')} | {old} |")
    return "\n".join(out)


def commands() -> str:
    """What was run, and on which machine, of all that is stored."""
    out = ["| command | result | processor, two cores |", "|---|---|---|"]
    for name in (*READERS, "growth"):
        for path, processor in stored(name):
            machine = json.loads(path.read_text())["machine"]
            named = machine.get("processor") or machine["cpu"]
            named = named if isinstance(named, str) else named[0]
            out.append(f"| `{command(name)}` | [{path.name}]({link(path.name)}) | {named}, {processor} |")
    return "\n".join(out)


def command(name: str) -> str:
    """As the bench's own words give it."""
    found = re.search(r"^    (python bench/.*)$", (BENCH / f"{name}.py").read_text(), re.MULTILINE)
    assert found, name
    return found[1]


def link(source: str) -> str:
    """From docs/ to a stored result."""
    return f"../bench/results/{source}"


def growths() -> str:
    """Of all curves that are stored: measured growth beside what arithmetic says."""
    out = [
        "| processor | what | from, to | grows | by arithmetic | steepness at each point | efficiency of the first |",
        "|---|---|---|---|---|---|---|",
    ]
    for path, processor in stored("growth"):
        for c in json.loads(path.read_text())["curves"]:
            steep = ", ".join(f"{s:.2f}" for s in c["steepness"][1:])
            ends = f"{c['at'][0]}, {c['at'][-1]}"
            out.append(
                f"| {processor} | {c['panel']}; {c['name']} | {ends} | [{c['grows']:.2f}]({link(path.name)}) "
                f"| {c['by_arithmetic']:.2f} | {steep} | {c['efficiency']:.2f} |"
            )
    return "\n".join(out)


def page(text: str) -> str:
    """docs/speed.md with the tables of what is stored between its marks."""
    for mark, table in (("comparisons", comparisons(rows())), ("commands", commands()), ("growths", growths())):
        begin, end = f"<!-- {mark} -->\n", f"<!-- end of {mark} -->\n"
        before, _, rest = text.partition(begin)
        _, _, after = rest.partition(end)
        text = f"{before}{begin}\n{table}\n\n{end}{after}"
    return text


def write(found: list[Row]) -> None:
    import matplotlib

    matplotlib.use("agg")
    draw(found, DOCS / "speed.png")
    for path, _ in stored("growth")[:1]:
        draw_growth(json.loads(path.read_text()), DOCS / "growth.png")
    speed = DOCS / "speed.md"
    speed.write_text(page(speed.read_text()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="the pictures and tables of docs/speed.md anew")
    args = parser.parse_args()
    found = rows()
    for row in found:
        aim = WANTED.get((row.work, row.beside)) if row.processor == "AMX" else None
        aimed = "" if aim is None else f"  (aim {aim})"
        print(f"{row.work:<40} {row.beside:<26} {row.times:5.2f}  {row.processor:<8} {row.source}{aimed}")
    if args.write:
        write(found)


if __name__ == "__main__":
    main()
