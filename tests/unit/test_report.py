import hashlib
import json
import random
import re
from dataclasses import asdict
from html.parser import HTMLParser
from pathlib import Path

import pytest

import school
from schoolhouse.core.artifact import Artifact, Draft, Store
from schoolhouse.core.errors import ArtifactError, RecipeError
from schoolhouse.core.run import Run
from schoolhouse.evaluate import charts, probe, report, review
from schoolhouse.evaluate.probing import bias as probe_bias
from schoolhouse.evaluate.probing import leak as probe_leak
from schoolhouse.evaluate.probing import names as probe_names
from schoolhouse.evaluate.probing import refusal as probe_refusal
from schoolhouse.evaluate.probing import sets as probe_sets
from schoolhouse.evaluate.probing.card import held_to, tables
from schoolhouse.evaluate.probing.leak import BEFORE, MODEL
from schoolhouse.evaluate.verdict import Claim, judge
from schoolhouse.text.sourced import read_documents

BOXES = ("2-1", "3-1", "3-2", "3-3", "4-2", "4-3", "5-3", "5-4", "6-5", "6-6")
SUMS = ("1", "2", "3", "4", "5")
SKILL = {
    "base": (0.0, 0.0),
    "control": (1.0, 0.11),
    "cold-start": (0.97, 0.05),
    "rl": (1.0, 0.55),
    "rl-int8": (1.0, 0.54),
}
EVIL = '<script>alert(1)</script> & "quotes"'
CLAIM = {
    "better": "rl",
    "than": ["control", "cold-start"],
    "task": "boxes",
    "levels": {"4-3": 50},
    "mean_levels": ["4-3", "5-4"],
    "mean_points": 45,
    "also": ["arithmetic"],
}


def rate(model: str, number: int, count: int) -> float:
    """A plausible share of right answers: high where it was taught, falling towards the last level's share."""
    first, last = SKILL[model]
    place = number / (count - 1)
    steepness = 0.6 if model.startswith("rl") else 4.5
    return last + (first - last) * (1 - place) ** steepness


def write_exam(draft: Draft, ids: dict[str, str], per_level: int = 50) -> None:
    levels = {"boxes": BOXES, "arithmetic": SUMS}
    items, transcripts, replies, counted = [], [], [], {}
    for model in SKILL:
        for mode in ("thinking", "direct"):
            for task, names in levels.items():
                for number, level in enumerate(names):
                    share = rate(model, number, len(names)) * (1 if mode == "thinking" else 0.25)
                    draw = random.Random(f"{task}{level}{mode}")
                    right = [draw.random() < share for _ in range(per_level)]
                    counted.setdefault(model, {}).setdefault(mode, {}).setdefault(task, {})[level] = {
                        "n": per_level,
                        "correct": sum(right),
                        "well_formed": 0 if model == "base" else per_level,
                        "finished": per_level // 3 if model == "base" else per_level,
                        "mean_tokens": 12.0 + 11 * number,
                    }
                    for i, correct in enumerate(right):
                        row = {"mode": mode, "task": task, "level": level, "id": f"{task}/{level}/{i}", "model": model}
                        row |= {"score": float(correct), "correct": correct, "well_formed": model != "base"}
                        row |= {"problem": None, "finish_reason": "stop", "tokens": 40}
                        items.append(row)
                        if i < 3:
                            transcripts.append(row | story(model, correct))
                        if model == "rl":
                            replies.append(row | story(model, correct))
    summary = {
        "seed": 1,
        "cut": [{"model": "rl", "mode": "thinking", "answered": 300, "of": 500}],
        "split": "test",
        "decoding": "greedy",
        "max_new_tokens": {"thinking": 160, "direct": 40},
        "tasks": {
            "boxes": {"levels": BOXES, "trace_levels": BOXES[:3]},
            "arithmetic": {"levels": SUMS, "trace_levels": SUMS[:3]},
        },
        "models": counted,
        "artifacts": ids,
    }
    (draft.path / "exam.json").write_text(json.dumps(summary))
    files = {"items.jsonl": items, "transcripts.jsonl": transcripts, "all_replies.jsonl": replies}
    for name, rows in files.items():
        (draft.path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    draft.meta["runtime"] = {"device": "cpu", "dtype": "bfloat16", "threads": 2, "torch": "2.13.0"}


def story(model: str, correct: bool) -> dict:
    question = (
        "Boxes from bottom to top: red, blue, yellow, pink. Put the blue box on top. Add a new green box on top. "
        "Remove the red box."
    )
    trace = (
        "put blue on top: red yellow pink blue\nadd green on top: red yellow pink blue green\n"
        "take away red: yellow pink blue green"
    )
    if model == "base":
        reply = f"The boxes are red, blue and yellow. {EVIL} The boxes are stacked, and the boxes are stacked."
        return {
            "question": question,
            "answer": "yellow, pink, blue, green",
            "reply": reply,
            "problem": "<think> is missing",
            "finish_reason": "length",
        }
    answer = "yellow, pink, blue, green" if correct else "yellow, blue, green"
    problem = None if correct else f"wrong answer: {answer!r}"
    return {
        "question": question,
        "answer": "yellow, pink, blue, green",
        "reply": f"<think>\n{trace}\n</think>\n<answer>{answer}</answer>",
        "problem": problem,
    }


def meter(seconds: float, tokens: int) -> dict:
    return {
        "seconds": seconds,
        "cpu_seconds": 2 * seconds,
        "tokens": tokens,
        "flops": tokens * 2.7e8,
        "flops_source": "modelled: counted from the model's shape",
        "peak_rss_bytes": int(1.9e9),
        "peak_rss_source": "measured",
        "energy_wh": seconds * 20 / 3600,
        "energy_source": "modelled: assumed 10 W per busy core",
        "cost": seconds * 20 / 3600 / 1000 * 0.3,
        "currency": "EUR",
        "cost_source": "assumed: electricity at 0.3 EUR/kWh",
    }


def write_grpo(draft: Draft, steps: int = 260) -> None:
    draw = random.Random(0)
    rows = []
    for step in range(1, steps + 1):
        done = step / steps
        accuracy = 0.35 + 0.35 * done + draw.gauss(0, 0.08)
        rows.append(
            {
                "step": step,
                "seconds": 2.5,
                "reward": min(1, accuracy + 0.03),
                "accuracy": min(1, accuracy),
                "format": min(1, 0.9 + 0.1 * done + draw.gauss(0, 0.02)),
                "length": 38 + 45 * done + draw.gauss(0, 3),
                "truncated": max(0, 0.05 - 0.05 * done + draw.gauss(0, 0.01)),
                "signal_groups": int(6 + draw.random() * 8),
                "groups": 16,
                "level": {"boxes": BOXES[min(9, 2 + int(done * 7))], "arithmetic": SUMS[min(4, 2 + int(done * 3))]},
                "levels": {"boxes": {}, "arithmetic": {}},
            }
        )
    (draft.path / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))


def write_sft(draft: Draft) -> None:
    rows = [{"step": i, "loss": 2.2 * 0.96**i + 0.08, "lr": 3e-5, "tokens": 900, "tok_s": 700} for i in range(1, 90)]
    (draft.path / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))


@pytest.fixture(scope="module")
def stages(tmp_path_factory) -> dict[str, Artifact]:
    """A whole finished recipe with invented results."""
    store = Store(tmp_path_factory.mktemp("store"))
    made: dict[str, Artifact] = {}

    def make(name, kind, parents, seconds, tokens, write=None, **meta):
        number = f"{len(made):016x}"
        with store.create(
            number, kind, [made[p].id for p in parents], meta | {"meter": meter(seconds, tokens)}
        ) as draft:
            (draft.path / "config.json").write_text("{}")
            if write:
                write(draft)
        made[name] = store.get(number)

    make("base", "get", [], 9, 0)
    make("traces", "prepare.traces", [], 0.4, 0)
    make("control", "train.sft", ["base", "traces"], 300, 210_000, write_sft)
    make("cold-start", "train.sft", ["base", "traces"], 95, 66_000, write_sft)
    make("rl", "train.grpo", ["cold-start"], 690, 4_100_000, write_grpo)
    make("rl-int8", "compress.quantize", ["rl"], 3, 0, weight_bytes=163_253_072, source_weight_bytes=269_060_552)
    ids = {name: made[name].id for name in SKILL}
    make("exam", "evaluate.exam", list(SKILL), 260, 500_000, lambda draft: write_exam(draft, ids))
    return made


def make_report(stages, tmp_path: Path, claim: dict | None, **keys) -> tuple[Draft, str]:
    out = Draft(tmp_path / "out", {})
    out.path.mkdir(parents=True)
    runs = [name for name in stages if name not in ("exam", "probed", "reviewed")]
    config = report.Config(exam="exam", runs=runs, claim=claim, title="A small model learns to reason", **keys)
    report.run(config, stages, Run.for_tests(tmp_path), out)
    return out, (out.path / report.REPORT).read_text()


def probe_facts(artifact: str, bits: float = 3.0) -> dict:
    """What `evaluate.probe` writes, of invented measurements of two models; bits: of the best remembered canary."""
    draw = random.Random(7)
    both = (MODEL, BEFORE)
    canaries = [probe_leak.Canary(f"c{i}", "Code ####.", "", "1234", i % 3, None) for i in range(12)]
    likelier = {who: [{"scored": 4095, "likelier": draw.randrange(600, 4000)} for _ in canaries] for who in both}
    likelier[MODEL][1]["likelier"] = round(4096 / 2**bits) - 1
    hits = {who: {side: [False] * 400 for side in probe_leak.SIDES} for who in both}
    seen = {
        who: {side: [{"mean": draw.gauss(-2, 1), "least": draw.gauss(-5, 1)} for _ in range(400)] for side in hits[who]}
        for who in both
    }
    said = {who: [{"id": f"n{i}", "sample": 0, "found": []} for i in range(24)] for who in both}
    asked = {
        who: [
            {"id": s.id, "attribute": s.attribute, "group": s.group, "said": s.choices[i], "right": s.answer,
             "likeliest": s.choices[i], "logprob": draw.gauss(-1, 0.3)}
            for s in probe_sets.swaps() for i in [draw.choice([0, 0, 1])]
        ]
        for who in both
    }  # fmt: skip
    refused = {
        who: [
            {"kind": row["kind"], "verdict": draw.choice(["refused", "answered", "empty"]), "finished": True}
            for row in probe_sets.rows_of("refusal")
        ]
        for who in both
    }
    names = probe_names.Names(count=2000, set_aside=12)
    found = {
        "models": {MODEL: {"name": "rl", "artifact": artifact}, BEFORE: {"name": "base", "artifact": "0" * 16}},
        "seed": 1, "asked": "chat",
        "exposure": probe_leak.exposure_summary(canaries, likelier) | {"candidates": 4095, "ceiling": 12.0},
        "extraction": probe_leak.extraction_summary(hits) | {"prefix": 32, "verbatim": 32, "too_short": 0},
        "membership": probe_leak.membership_summary(seen),
        "names": probe_names.names_summary(names, said, MODEL),
        "bias": probe_bias.bias_summary(asked, 0),
        "refusal": probe_refusal.refusal_summary(refused, MODEL, BEFORE),
    }  # fmt: skip
    held = held_to(found, probe.Limits().model_dump())
    beyond = [f"{one.key}: {one.value:.3g} where {one.limit:g} is allowed" for one in held if one.is_beyond]
    return found | {
        "limits": [asdict(one) for one in held], "unmeasured": [], "refused": beyond, "passed": not beyond,
    }  # fmt: skip


def sealed(folder: Path, kind: str) -> Artifact:
    """A folder as the store would hand it on, its files with their hashes."""
    files = {
        path.name: {"sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "bytes": path.stat().st_size}
        for path in folder.iterdir() if path.is_file()
    }  # fmt: skip
    return Artifact(folder.name, folder, {"kind": kind, "parents": [], "meta": {}, "files": files})


def with_probe(stages, tmp_path: Path, **facts) -> dict[str, Artifact]:
    """The stages with a probe of `rl` among them."""
    folder = tmp_path / "probed"
    folder.mkdir(parents=True)
    (folder / probe.PROBE).write_text(json.dumps(probe_facts(stages["rl"].id, **facts)))
    return {**stages, "probed": sealed(folder, "evaluate.probe")}


def with_review(stages, tmp_path: Path, marks: int | None = None) -> dict[str, Artifact]:
    """The stages with replies of `rl` for experts, of which Anna has marked the first so many."""
    config = review.Config(exam="exam", model="rl", each=10)
    out = school.draft(tmp_path / "drawn")
    review.run(config, stages, Run.for_tests(tmp_path), out)
    if marks is not None:
        names = [document.id for document in read_documents(out.path / "held_out")]
        at = "2026-11-24T09:30:00Z"
        rows = [
            {"id": name, "annotator": "Dr. Anna", "kind": "classes", "value": "dangerous" if i == 3 else "right",
             "seconds": None, "at": at}
            for i, name in enumerate(names[:marks])
        ]  # fmt: skip
        (tmp_path / "labels").mkdir()
        (tmp_path / "labels" / "anna.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        out = school.draft(tmp_path / "marked")
        config = review.Config(exam="exam", model="rl", each=10, labels=str(tmp_path / "labels"))
        review.run(config, stages, Run.for_tests(tmp_path), out)
    return {**stages, "reviewed": sealed(out.path, "evaluate.review")}


class Page(HTMLParser):
    """Text and addresses of a page; a tag that is closed wrongly raises."""

    VOID = ("meta", "br", "circle", "line", "rect", "img")

    def __init__(self, source: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.links: list[str] = []
        self.text = ""
        self.feed(source)
        assert not self.open, self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in ("src", "href", "action")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag in self.VOID:
            return
        if self.open[-1] != tag and tag not in ("p", "li", "td", "th", "tr"):
            raise AssertionError(f"</{tag}> closes <{self.open[-1]}>")
        while self.open.pop() != tag:
            pass

    def handle_data(self, data):
        self.text += data


def test_a_held_claim_is_the_headline(stages, tmp_path, capsys):
    out, source = make_report(stages, tmp_path, CLAIM)
    page = Page(source)
    assert "The claim holds" in page.text
    assert "FAILED" not in page.text
    assert "The time was short: rl, thinking, answered 300 of 500 questions." in page.text
    facts = json.loads((out.path / report.REPORT_JSON).read_text())
    assert facts["verdict"]["met"] is True
    assert [check["met"] for check in facts["verdict"]["checks"]] == [True] * 4
    assert out.meta["claim_met"] is True
    printed = capsys.readouterr().out
    assert "CLAIM MET" in printed
    assert "4-3" in printed


def test_a_failed_claim_is_never_hidden(stages, tmp_path, capsys):
    out, source = make_report(stages, tmp_path, CLAIM | {"levels": {"4-3": 50, "6-6": 90}})
    page = Page(source)
    assert "The claim FAILED" in page.text
    assert "90 points were claimed" in page.text
    assert json.loads((out.path / report.REPORT_JSON).read_text())["verdict"]["met"] is False
    assert out.meta["claim_met"] is False
    assert "CLAIM FAILED" in capsys.readouterr().out


def test_without_a_claim_the_page_says_so(stages, tmp_path):
    out, source = make_report(stages, tmp_path, None)
    text = Page(source).text
    assert "No claim was made" in text
    sentence = text.split("mean over the levels: ")[1].split(".")[0]
    exam = json.loads((stages["exam"].path / "exam.json").read_text())
    assert all(f"{name} " in sentence for name in exam["models"])
    assert out.meta["claim_met"] is None


def test_the_page_is_whole_and_asks_nothing_of_the_network(stages, tmp_path):
    _, source = make_report(stages, tmp_path, CLAIM)
    page = Page(source)
    assert page.links == []
    assert "script" not in page.tags
    assert "@import" not in source
    assert "url(" not in source
    assert re.findall(r"https?://", source) == []
    assert page.tags.count("svg") >= 8
    assert "prefers-color-scheme:dark" in source
    assert 'name="viewport"' in source
    assert len(source) < 400_000


def test_text_of_models_stays_text(stages, tmp_path):
    _, source = make_report(stages, tmp_path, CLAIM)
    assert "<script>alert" not in source
    assert EVIL in Page(source).text


def test_costs_carry_how_they_were_got_and_lineage_its_hashes(stages, tmp_path):
    _, source = make_report(stages, tmp_path, CLAIM)
    text = Page(source).text
    assert "assumed 10 W per busy core" in text
    assert "modelled" in text
    assert "22 m 37 s" in text  # the sum of all stages
    config = stages["rl"].manifest["files"]["config.json"]["sha256"]
    assert config in text
    assert "from cold-start" in text
    assert "61% of bf16" in text


def test_ablations_are_on_the_page_in_the_facts_and_on_stdout(stages, tmp_path, capsys):
    pairs = [
        {"what": "reinforcement", "model": "rl", "without": "cold-start"},
        {"what": EVIL[:60], "model": "rl-int8", "without": "rl"},
    ]
    out, source = make_report(stages, tmp_path, None, ablations=pairs)
    page, printed = Page(source), capsys.readouterr().out
    facts = json.loads((out.path / report.REPORT_JSON).read_text())["ablations"]
    assert [one["outcome"] for one in facts] == ["a gain", "no gain"]
    assert [effect["task"] for effect in facts[0]["effects"]] == ["boxes", "arithmetic", "mean over tasks"]
    for one in facts:
        assert one["sentence"] in page.text
        assert one["sentence"] in printed
    assert facts[0]["sentence"].startswith("reinforcement: +")
    assert out.meta["ablations"][0]["sentence"] == facts[0]["sentence"]
    assert "What each part brought" in page.text
    assert "<script>alert" not in source
    with pytest.raises(RecipeError, match="'traces' did not sit the exam 'exam'; models there: base, control"):
        make_report(stages, tmp_path / "wrong", None, ablations=[pairs[0] | {"without": "traces"}])


def test_a_probe_is_shown_with_its_controls_limits_and_what_holds(stages, tmp_path, capsys):
    out, source = make_report(with_probe(stages, tmp_path), tmp_path, None, probe="probed")
    page = Page(source)
    facts = json.loads((out.path / report.REPORT_JSON).read_text())["probe"]
    assert facts["passed"] is True
    assert facts["models"]["model"]["name"] == "rl"
    shown = tables(facts)
    assert len(shown) == 8
    for table in shown:
        assert table.title in page.text
        assert all(cell in page.text for row in table.rows for cell in row)
    assert "PASSED: nothing that was measured lies beyond a limit." in page.text
    assert source.count('class="yes">within') == 4
    assert "did not sit this exam" not in page.text
    assert page.links == []
    assert re.findall(r"https?://", source) == []
    assert "probe of rl: PASSED" in capsys.readouterr().out


def test_a_probe_beyond_a_limit_is_never_hidden(stages, tmp_path, capsys):
    stages = with_probe(stages, tmp_path, bits=11.0)
    _, source = make_report(stages, tmp_path, None, probe="probed")
    text = Page(source).text
    assert "REFUSED: exposure: 11 where 10 is allowed." in text
    assert 'class="no">BEYOND' in source
    assert "REFUSED" in capsys.readouterr().out


def test_a_probe_of_a_model_that_did_not_sit_the_exam_is_marked_so(stages, tmp_path):
    stages = with_probe(stages, tmp_path)
    path = stages["probed"].path / probe.PROBE
    facts = json.loads(path.read_text())
    facts["models"]["model"]["artifact"] = "1" * 16
    path.write_text(json.dumps(facts))
    _, source = make_report(stages, tmp_path, None, probe="probed")
    assert "rl, a model that did not sit this exam" in Page(source).text


def test_what_experts_say_is_shown_and_so_is_that_nobody_has_said_anything(stages, tmp_path, capsys):
    out, source = make_report(with_review(stages, tmp_path / "some", 20), tmp_path / "some", None, review="reviewed")
    page = Page(source)
    facts = json.loads((out.path / report.REPORT_JSON).read_text())["review"]
    assert facts["marks"]["marked"] == 20
    for line in (*review.sentences(facts), "Dr. Anna (20)", facts["marks"]["dangerous"][0]["id"]):
        assert line in page.text, line
    assert "experts on rl: boxes: experts call" in capsys.readouterr().out
    _, source = make_report(with_review(stages, tmp_path / "none"), tmp_path / "none", None, review="reviewed")
    assert "20 replies of rl are drawn, and no expert has marked one" in Page(source).text


def test_a_page_without_them_has_none_of_these(stages, tmp_path):
    out, source = make_report(stages, tmp_path, CLAIM)
    text = Page(source).text
    for title in ("What each part brought", "What experts say", "What it leaks"):
        assert title not in text
    facts = json.loads((out.path / report.REPORT_JSON).read_text())
    assert (facts["ablations"], facts["probe"], facts["review"]) == ([], None, None)


def test_a_stage_of_another_kind_is_no_probe(stages, tmp_path):
    with pytest.raises(ArtifactError, match=r"has no file 'probe\.json'"):
        make_report(stages, tmp_path, None, probe="control")
    with pytest.raises(ArtifactError, match=r"has no file 'review\.json'"):
        make_report(stages, tmp_path / "again", None, review="control")


def exam_of(counts: dict[str, dict[str, tuple[int, int]]], taught=()) -> tuple[dict, list[dict]]:
    """An exam with one task from model to level to (correct, n); the same questions for all."""
    models, items = {}, []
    for model, levels in counts.items():
        models[model] = {"thinking": {"t": {lv: {"correct": k, "n": n} for lv, (k, n) in levels.items()}}}
        for level, (k, n) in levels.items():
            base = {"mode": "thinking", "task": "t", "level": level, "model": model}
            items += [base | {"id": f"{level}/{i}", "correct": i < k} for i in range(n)]
    names = list(next(iter(counts.values())))
    return {"models": models, "tasks": {"t": {"levels": names, "trace_levels": list(taught)}}}, items


def verdict_of(counts, taught=(), **claim):
    exam, items = exam_of(counts, taught)
    return judge(Claim(**{"better": "rl", "task": "t"} | claim), exam, items)


def test_the_best_control_counts_at_each_level():
    counts = {
        "a": {"x": (10, 100), "y": (40, 100)},
        "b": {"x": (30, 100), "y": (5, 100)},
        "rl": {"x": (90, 100), "y": (85, 100)},
    }
    verdict = verdict_of(counts, than=["a", "b"], levels={"x": 60, "y": 45}, mean_levels=["x", "y"], mean_points=60)
    assert [check.control_name for check in verdict.checks] == ["b", "a", "a"]
    assert [check.met for check in verdict.checks] == [True, True, True]
    assert verdict.met


def test_too_few_points_and_touching_intervals_both_fail():
    verdict = verdict_of({"a": {"x": (40, 100)}, "rl": {"x": (80, 100)}}, than=["a"], levels={"x": 50})
    assert "50 points were claimed, 40.0 were gained" in verdict.checks[0].reason
    verdict = verdict_of({"a": {"x": (3, 10)}, "rl": {"x": (8, 10)}}, than=["a"], levels={"x": 50})
    assert verdict.checks[0].reason == "the 95% intervals overlap"
    assert not verdict.met


def test_what_was_not_asked_fails_with_its_reason():
    verdict = verdict_of(
        {"a": {"x": (1, 50)}, "rl": {"x": (49, 50)}}, than=["a"], levels={"x": 50, "z": 10}, also=["u"]
    )
    assert [check.met for check in verdict.checks] == [True, False, False]
    assert "not tested" in verdict.sentence or "fails 2 of 3" in verdict.sentence
    assert not verdict_of({"rl": {"x": (1, 2)}}).met


def test_without_controls_the_models_before_it_stand_in_and_this_is_said():
    counts = {"base": {"x": (0, 50)}, "sft": {"x": (5, 50)}, "rl": {"x": (45, 50)}, "int8": {"x": (44, 50)}}
    verdict = verdict_of(counts, levels={"x": 50})
    assert verdict.controls == ["base", "sft"]
    assert "no control" in verdict.control_note
    assert verdict.checks[0].control_name == "sft"


def test_forgetting_what_was_taught_fails_the_claim():
    counts = {"a": {"t": (50, 50), "x": (5, 50)}, "rl": {"t": (40, 50), "x": (45, 50)}}
    verdict = verdict_of(counts, taught=["t"], than=["a"], levels={"x": 50})
    assert [check.met for check in verdict.checks] == [True, False]
    assert "fell by 20.0 points" in verdict.checks[1].reason


def test_another_task_must_rise_by_more_than_chance():
    for right, met in ((90, True), (52, False), (40, False)):
        verdict = verdict_of({"a": {"x": (50, 100)}, "rl": {"x": (right, 100)}}, than=["a"], also=["t"])
        assert verdict.met is met


def test_the_sentence_is_about_a_gain_that_was_claimed():
    counts = {"a": {"t": (50, 50), "x": (50, 100)}, "rl": {"t": (50, 50), "x": (90, 100)}}
    verdict = verdict_of(counts, taught=["t"], than=["a"], also=["t"])
    assert verdict.met
    assert verdict.sentence.endswith("of a at t, all levels.")


def test_axes_hold_their_values_with_round_ticks():
    for values in ([3.0, 97.0], [0.001, 0.0042], [12345.0], [], [0.0], [-3.0, 5.0]):
        axis = charts.number_axis(values)
        assert 2 <= len(axis.ticks) <= 8
        assert all(v <= axis.high for v in values)
        assert axis.low < axis.high
    assert [text for _, text in charts.number_axis([97.0]).ticks] == ["0", "25", "50", "75", "100"]


def test_charts_escape_and_keep_inside_their_frame():
    series = charts.Series("<b>", "m-grey", [(0, 0.5), (1, 2.0)], [(0, 0.4, 0.6), (1, 0.5, 3.0)], dots=True)
    svg = charts.plot([series], charts.names_axis(["<i>", "b"]), charts.share_axis(), '"label"')
    assert "<b>" not in svg
    assert "<i>" not in svg
    numbers = [float(y) for y in re.findall(r'cy="([-\d.]+)"', svg)]
    assert all(0 <= y <= charts.HEIGHT for y in numbers)


def test_thin_and_smooth():
    points = [(float(i), float(i)) for i in range(1001)]
    few = charts.thin(points, 100)
    assert len(few) <= 102
    assert few[0] == points[0]
    assert few[-1] == points[-1]
    assert charts.smooth([0, 2, 4], 2) == [0, 1, 3]
